"""Secrets and TLS to brokers, from settings and from files, which are read anew each time.

No text that leaves this module has a secret in it; each names the setting and the file that is to be looked at.
"""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import TYPE_CHECKING

from bridge.core.errors import TransientError

if TYPE_CHECKING:
    from pydantic import SecretStr

    from config.sinks.common import TlsSettings


def secret(name: str, value: SecretStr | None, path: str | None) -> str | None:
    """Return a secret of the settings, or of a file, whose last line feed does not belong to it; None for neither.

    Raises:
        TransientError: The file cannot be read, or is empty.
    """
    if value is not None:
        return value.get_secret_value()
    if path is None:
        return None
    found = read(f"{name}_file", path).removesuffix("\n").removesuffix("\r")
    if not found:
        raise TransientError(f"{name}_file {path} is empty")
    return found


def read(name: str, path: str) -> str:
    """Return what is in the text file of the setting ``name``.

    Raises:
        TransientError: It cannot be read.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise TransientError(f"{name} {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        # Not chained: the error has the file's content in it.
        raise TransientError(f"{name} {path} is not a text file") from None


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
    """Return whom to trust, and the certificate to show.

    Raises:
        TransientError: A file is missing or useless.
    """
    try:
        context = ssl.create_default_context(cafile=tls.ca_file)
    except ssl.SSLError as error:
        raise TransientError(f"tls.ca_file {tls.ca_file} has no certificate in it (PEM is wanted)") from error
    except OSError as error:
        raise TransientError(f"tls.ca_file {tls.ca_file} cannot be read: {error.strerror}") from error
    if tls.cert_file:
        _load_certificate(context, tls, tls.cert_file)
    return context


def _load_certificate(context: ssl.SSLContext, tls: TlsSettings, cert_file: str) -> None:
    password = secret("tls.key_password", tls.key_password, tls.key_password_file)
    key_file = tls.key_file or cert_file
    read("tls.cert_file", cert_file)  # for OpenSSL does not say which of the two it cannot read
    encrypted = "ENCRYPTED" in read("tls.key_file", key_file)
    try:
        # An empty password where there is none: OpenSSL would ask for it at the terminal.
        context.load_cert_chain(cert_file, key_file, password or "")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            text = f"tls.key_file {key_file} is not the key of tls.cert_file {cert_file}"
        elif encrypted:
            wrong = "is wrong" if password else "is missing, or tls.key_password_file"
            text = f"tls.key_file {key_file} is encrypted, and tls.key_password {wrong}"
        else:
            text = (
                f"tls.cert_file {cert_file} and tls.key_file {key_file} are no certificate and its key (PEM is wanted)"
            )
        raise TransientError(text) from error
