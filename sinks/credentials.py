"""Secrets and TLS contexts, from settings or from the files that settings name; the end of TLS connections.

Files are read again for each connection.

Invariant: no error message contains a secret; each names the setting and the file to check.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.core.errors import TransientError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from config.sinks.common import TlsFiles, UserOrTokenSettings


MIN_REDACTED_LENGTH = 4  # characters; shorter ones, such as -c, are no secrets


def redact(text: str, secrets: Iterable[str]) -> str:
    """Return ``text`` without ``secrets``."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= MIN_REDACTED_LENGTH:
            text = text.replace(secret, "[redacted]")
    return text


def configured_credentials(auth: UserOrTokenSettings) -> str:
    """Return the names of the settings with the credentials, for error messages; "" if there are none."""
    given = {name: value for name in type(auth).model_fields if (value := getattr(auth, name)) is not None}
    names = [f"auth.{name} {path}" for name, path in given.items() if name.endswith("_file")]
    names += [f"auth.{name}" for name in given if not name.endswith(("_file", "_command"))]
    if auth.token_command:
        names.append(f"auth.token_command {auth.token_command[0]}")
    return " and ".join(names)


def resolve_secret(setting: str, value: SecretStr | None, file: str | None) -> str | None:
    """Return a secret from the settings, or from a file without its last line feed; None if neither is set.

    Raises:
        TransientError: The file cannot be read, or is empty.
    """
    if value is not None:
        return value.get_secret_value()
    if file is None:
        return None
    secret = read_setting_file(f"{setting}_file", file).removesuffix("\n").removesuffix("\r")
    if not secret:
        raise TransientError(f"{setting}_file {file} is empty")
    return secret


def read_setting_file(setting: str, path: str) -> str:
    """Return the content of the text file that a setting names.

    Raises:
        TransientError: The file cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise TransientError(f"{setting} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        # Not chained: the error contains the file's content.
        raise TransientError(f"{setting} {path} is not a text file") from None


def tls_context(tls: TlsFiles) -> ssl.SSLContext:
    """Return a TLS context with the trusted CAs and, if set, the client certificate.

    Raises:
        TransientError: A file is missing or invalid.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
    except ssl.SSLError as error:
        raise TransientError(f"tls.ca_file {tls.ca_file} contains no certificate in PEM format") from error
    except OSError as error:
        raise TransientError(f"tls.ca_file {tls.ca_file} cannot be read: {error.strerror}") from error
    if tls.cert_file:
        _load_certificate(context, tls, tls.cert_file)
    return context


def _load_certificate(context: ssl.SSLContext, tls: TlsFiles, cert_file: str) -> None:
    password = resolve_secret("tls.key_password", tls.key_password, tls.key_password_file)
    key_file = tls.key_file or cert_file
    read_setting_file("tls.cert_file", cert_file)  # OpenSSL does not report which of the two files is unreadable
    encrypted = "ENCRYPTED" in read_setting_file("tls.key_file", key_file)
    try:
        # Without a password OpenSSL would prompt for one on the terminal.
        context.load_cert_chain(cert_file, key_file, password or "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            text = f"tls.key_file {key_file} is not the key of tls.cert_file {cert_file}"
        elif encrypted:
            hint = "check tls.key_password" if password else "set tls.key_password or tls.key_password_file"
            text = f"tls.key_file {key_file} is encrypted and cannot be decrypted; {hint}"
        else:
            text = (
                f"tls.cert_file {cert_file} and tls.key_file {key_file} are not a certificate and its key in PEM format"
            )
        raise TransientError(text) from error


def abort_transport(transport: asyncio.WriteTransport) -> None:
    """Drop a connection without sending what is buffered.

    A TLS transport that was closed twice has nothing to drop; that of Python 3.11.2 raises AttributeError then.
    """
    with contextlib.suppress(AttributeError):
        transport.abort()
