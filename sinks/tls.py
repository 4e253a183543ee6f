"""TLS contexts for connections to brokers. Certificate files are read again for each connection."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

from bridge.core.errors import TransientError
from sinks.secret_files import read_setting_file, resolve_secret

if TYPE_CHECKING:
    from config.sinks.common import TlsSettings


def tls_context(tls: TlsSettings) -> ssl.SSLContext:
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


def _load_certificate(context: ssl.SSLContext, tls: TlsSettings, cert_file: str) -> None:
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
