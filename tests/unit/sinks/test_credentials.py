"""Test that errors about secret and certificate files name the setting and the file."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bridge.core.errors import TransientError
from config.sinks.common import TlsSettings
from sinks import credentials
from tests.certificates import Authority
from tests.golden import Golden

SECRET = "s3cret-content"  # noqa: S105 (not a real secret)


@pytest.mark.parametrize("content", [None, b"\n", b"\xff\xfe"], ids=["missing", "empty", "binary"])
def test_unusable_secret_file_is_named(
    content: bytes | None, tmp_path: Path, golden: Golden, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    case = request.node.callspec.id
    with golden.error("credential_errors", f"secret file, {case}", TransientError, "auth.password_file", path):
        credentials.resolve_secret("auth.password", None, str(path))


@pytest.mark.parametrize(
    ("case", "options", "named"),
    [
        ("ca missing", {"ca_file": "/nonexistent"}, ["tls.ca_file /nonexistent", "No such file or directory"]),
        ("invalid ca", {"ca_file": "{invalid}"}, ["tls.ca_file {invalid}"]),
        ("certificate missing", {"cert_file": "/nonexistent"}, ["tls.cert_file /nonexistent"]),
        ("invalid certificate", {"cert_file": "{invalid}"}, ["tls.cert_file {invalid}", "tls.key_file {invalid}"]),
        ("key missing", {"cert_file": "{cert}", "key_file": "/nonexistent"}, ["tls.key_file /nonexistent"]),
        ("password missing", {"cert_file": "{cert}", "key_file": "{key}"}, ["tls.key_file {key}", "tls.key_password"]),
        (
            "password wrong",
            {"cert_file": "{cert}", "key_file": "{key}", "key_password": "wrong"},
            ["tls.key_file {key}", "tls.key_password"],
        ),
        (
            "password file missing",
            {"cert_file": "{cert}", "key_file": "{key}", "key_password_file": "/nonexistent"},
            ["tls.key_password_file /nonexistent"],
        ),
        (
            "key of another certificate",
            {"cert_file": "{cert}", "key_file": "{other}"},
            ["tls.key_file {other}", "tls.cert_file {cert}"],
        ),
    ],
)
def test_unusable_tls_file_is_named(
    case: str, options: dict[str, str], named: list[str], tmp_path: Path, authority: Authority, golden: Golden
) -> None:
    bridge, other = authority.issue("bridge", password=SECRET), authority.issue("other")
    invalid = tmp_path / "invalid"
    invalid.write_text(SECRET)
    files: dict[str, Any] = {"cert": bridge.certificate, "key": bridge.key, "other": other.key, "invalid": invalid}
    tls_options = {name: value.format(**files) for name, value in options.items()}
    placeholders = {name.upper(): path for name, path in files.items()}
    expected = [text.format(**files) for text in named]
    with golden.error("credential_errors", f"tls, {case}", TransientError, *expected, **placeholders) as caught:
        credentials.tls_context(TlsSettings.model_validate({"enabled": True} | tls_options))
    assert SECRET not in str(caught.value)


def test_abort_of_closed_tls_transport_is_harmless() -> None:
    class ClosedTransport(asyncio.Transport):
        _ssl_protocol: asyncio.Transport | None = None

        def abort(self) -> None:  # as in Python 3.11.2
            self._ssl_protocol.abort()  # type: ignore[union-attr] # the error of Python 3.11.2

    credentials.abort_transport(ClosedTransport())
