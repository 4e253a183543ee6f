"""Error messages for failures of TLS: the cause, and what to do."""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from config.sinks.common import TlsFiles

_HOST_MISMATCH = (62, 64)  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH


def find_tls_error(error: BaseException | None) -> ssl.SSLError | None:
    """Return the TLS error that an error is, or that has led to it; None if there is none."""
    while error is not None:
        if isinstance(error, ssl.SSLError):
            return error
        error = error.__cause__ or error.__context__
    return None


def describe_tls_error(error: ssl.SSLError, tls: TlsFiles) -> str:
    """Describe why a handshake failed."""
    if isinstance(error, ssl.SSLCertVerificationError):
        if error.verify_code in _HOST_MISMATCH:
            return f"certificate is for another host: {error.verify_message}; use a host name of the certificate"
        hint = f"check tls.ca_file {tls.ca_file}" if tls.ca_file else "set tls.ca_file"
        return f"certificate is not trusted: {error.verify_message}; {hint}"
    reason = (error.reason or "").replace("_", " ").lower()
    if "alert" in reason or "certificate" in reason:
        if tls.cert_file:
            return f"client certificate {tls.cert_file} rejected ({reason}); use one that the server trusts"
        return f"client certificate required ({reason}); set tls.cert_file"
    return f"TLS handshake failed ({reason or error}); check whether the port uses TLS"
