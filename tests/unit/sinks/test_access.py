"""Secrets and certificates from files: errors name the setting and the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bridge.core.errors import TransientError
from config.sinks.common import TlsSettings
from sinks import credentials
from tests.certificates import Authority
from tests.golden import Golden

SECRET = "s3cret-content"  # noqa: S105 (it opens nothing)


@pytest.mark.parametrize("content", [None, b"\n", b"\xff\xfe"], ids=["missing", "empty", "binary"])
def test_unusable_secret_file_is_named(
    content: bytes | None, tmp_path: Path, golden: Golden, request: pytest.FixtureRequest
) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    case = request.node.callspec.id
    with golden.error(
        "access_errors", f"secret file, {case}", TransientError, "sasl.password_file", path, TMP=tmp_path
    ):
        credentials.resolve_secret("sasl.password", None, str(path))


@pytest.mark.parametrize(
    ("case", "options", "named"),
    [
        ("ca missing", {"ca_file": "/nonexistent"}, ["tls.ca_file /nonexistent", "No such file or directory"]),
        ("ca useless", {"ca_file": "{rubbish}"}, ["tls.ca_file {rubbish}"]),
        ("certificate missing", {"cert_file": "/nonexistent"}, ["tls.cert_file /nonexistent"]),
        ("certificate useless", {"cert_file": "{rubbish}"}, ["tls.cert_file {rubbish}", "tls.key_file {rubbish}"]),
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
            "another key",
            {"cert_file": "{cert}", "key_file": "{other}"},
            ["tls.key_file {other}", "tls.cert_file {cert}"],
        ),
    ],
)
def test_unusable_tls_file_is_named(
    case: str, options: dict[str, str], named: list[str], tmp_path: Path, authority: Authority, golden: Golden
) -> None:
    ours, others = authority.issue("bridge", password=SECRET), authority.issue("other")
    rubbish = tmp_path / "rubbish"
    rubbish.write_text(SECRET)
    files: dict[str, Any] = {"cert": ours.certificate, "key": ours.key, "other": others.key, "rubbish": rubbish}
    given = {name: value.format(**files) for name, value in options.items()}
    hidden = {name.upper(): path for name, path in files.items()}
    wanted = [each.format(**files) for each in named]
    with golden.error("access_errors", f"tls, {case}", TransientError, *wanted, **hidden) as caught:
        credentials.tls_context(TlsSettings.model_validate({"enabled": True} | given))
    assert SECRET not in str(caught.value)
