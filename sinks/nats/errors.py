"""Error messages for failures of NATS: where, the cause, and what to do. Pure.

All errors are transient: a server can be started, a file replaced or a permission granted at any time.

Invariant: no message contains a secret. Servers do not repeat secrets, and only names of settings are used.
"""

from __future__ import annotations

import ssl
from typing import NamedTuple

import nats.errors
from nats.js.errors import APIError, ServiceUnavailableError

from bridge.core.errors import TransientError
from bridge.telemetry.safe_text import one_line

_PERMISSION_DENIED = "permissions violation"
_AUTH_ERRORS = (
    "authorization violation",
    "authorization failed",
    "authentication expired",
    "authentication revoked",
    "authentication timeout",
)
PROTOCOL_ERRORS = (ValueError, TypeError, AttributeError)
"""Errors of nats-py in ``connect`` if the peer violates the protocol."""

_JETSTREAM_DISABLED = (10039, 10076)


class ApiResponseError(TransientError):
    """The server responded with an error; the connection is still usable. ``code`` is JetStream's error code."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


def is_permission_error(error: Exception) -> bool:
    """Return whether an error is a missing permission for a subject; the connection stays open."""
    return _PERMISSION_DENIED in str(error).lower()


class ErrorMessages(NamedTuple):
    """Error messages for one server.

    ``timeout`` is in seconds. ``auth`` and ``certificate`` name the settings with the credentials, "" for none.
    """

    server: str
    timeout: float
    auth: str
    certificate: str

    def unreachable(self, error: Exception, *, requests_certificate: bool) -> str:
        """Describe why connecting failed."""
        where = f"NATS at {self.server}"
        match error:
            case nats.errors.SecureConnWantedError():
                text = f"{where} does not offer TLS, nothing was sent; enable TLS there, or set tls.enabled to false"
            case ssl.SSLCertVerificationError():
                reason = one_line(error.verify_message)
                text = f"{where}: certificate is not trusted: {reason}; check tls.ca_file"
            case TimeoutError():
                text = f"{where}: no response within {self.timeout:g} s"
            case ssl.SSLError() | ConnectionResetError() | BrokenPipeError() if requests_certificate:
                # The server's reason, if any, arrives during authentication.
                details = f" and rejected {self.certificate}" if self.certificate else "; set tls.cert_file"
                text = f"{where} requires a client certificate{details}"
            case ssl.SSLError():
                reason = one_line(getattr(error, "reason", None) or error)
                text = f"{where}: TLS handshake failed: {reason}; check whether the port uses TLS"
            case ConnectionRefusedError():  # whose text is asyncio's
                text = f"{where} is unreachable: connection refused (no listener at this address)"
            case OSError():
                text = f"{where} is unreachable: {one_line(error.strerror or error)}"
            case ValueError() | TypeError() | AttributeError():
                text = f"{where} violates the protocol ({one_line(error)}); check whether the port is that of NATS"
            case _:
                text = self._rejected(error)
        return text

    def disconnected(self, error: Exception | None) -> str:
        """Describe why an established connection ended."""
        if error is None or isinstance(error, nats.errors.UnexpectedEOF):
            return f"NATS at {self.server} closed the connection"
        if isinstance(error, nats.errors.StaleConnectionError):
            return f"NATS at {self.server} no longer responds to pings"
        if isinstance(error, OSError):
            return f"connection to NATS at {self.server} failed: {one_line(error.strerror or error)}"
        return self._rejected(error)

    def denied(self, error: Exception) -> str:
        """Describe a missing permission; ``error`` names the subject."""
        reason = one_line(error).removeprefix("nats: ")
        return f"NATS at {self.server}: {reason}; grant the permissions in docs/nats.md"

    def request_failed(self, purpose: str, error: Exception) -> TransientError:
        """Return the error for a failed request to JetStream's API; ``purpose`` describes the request."""
        where = f"NATS at {self.server}"
        if isinstance(error, ServiceUnavailableError) and error.err_code in (None, *_JETSTREAM_DISABLED):
            return ApiResponseError(
                f"{where}: JetStream is not enabled, failed to {purpose}; enable it (jetstream {{}} in the server's "
                "configuration, or in the account's), set domain, or set mode: core"
            )
        if isinstance(error, APIError):
            return ApiResponseError(
                f"{where}: failed to {purpose}: {one_line(error.description)} ({error.err_code})", error.err_code or 0
            )
        return TransientError(f"{where}: failed to {purpose}: {one_line(error)}")

    def _rejected(self, error: Exception) -> str:
        where = f"NATS at {self.server}"
        reason = one_line(error).removeprefix("nats: ").strip("'")
        if any(text in reason.lower() for text in _AUTH_ERRORS):
            if self.auth:
                return f"{where} rejected the credentials ({reason}); check {self.auth}"
            return f"{where} requires credentials ({reason}); set auth"
        if "expecting INFO" in reason:
            return f"{where} closed the connection; it may require tls.handshake_first, or not be a NATS server"
        return f"{where} closed the connection: {reason}"
