"""What nats-py and the servers say, as one sentence that names what is wrong, where, and what to do. Pure.

Everything here is worth another try: someone can start a server, replace a file or grant a permission meanwhile.
No sentence holds a secret: servers do not repeat them, and of settings only names are told.
"""

from __future__ import annotations

import ssl

import nats.errors
from nats.js.errors import APIError, ServiceUnavailableError

from bridge.core.errors import TransientError

_SHOWN = 300  # characters of a foreign text
_DENIED = "permissions violation"
_REFUSED = ("authorization violation", "authentication expired", "authentication revoked", "authentication timeout")
_NOT_ENABLED = (10039, 10076)


class AnsweredError(TransientError):
    """The server said no, over a connection that is as good as before; ``code`` is JetStream's own."""

    def __init__(self, text: str, code: int = 0) -> None:
        super().__init__(text)
        self.code = code


def one_line(text: object) -> str:
    """Return a foreign text fit for a log line: one line, printable, bounded."""
    line = " ".join(str(text).split())
    return "".join(character if character.isprintable() else "?" for character in line[:_SHOWN])


def is_denial(error: Exception) -> bool:
    """Tell whether the server refuses one subject; the connection goes on."""
    return _DENIED in str(error).lower()


def denied(server: str, error: Exception) -> str:
    """Say that a permission is missing; ``error`` names the subject."""
    said = one_line(error).removeprefix("nats: ")
    return f"NATS at {server} refuses us a subject: {said}; docs/nats.md lists the permissions that are needed"


def unreachable(server: str, error: Exception, seconds: float, login: str) -> str:
    """Say why there is no connection; ``login`` names the settings that say who we are, "" for none."""
    where = f"NATS at {server}"
    match error:
        case nats.errors.SecureConnWantedError():
            return f"{where} offers no TLS: nothing was sent to it; turn TLS on there, or off here"
        case ssl.SSLCertVerificationError():
            reason = one_line(error.verify_message)
            return (
                f"{where} has a certificate that is not to be trusted: {reason}; check tls.ca_file and the host's name"
            )
        case ssl.SSLError():
            reason = one_line(error.reason or error)
            return f"{where}: TLS failed: {reason}; check tls.cert_file and tls.key_file, and whether TLS is meant"
        case TimeoutError():
            return f"{where} did not answer within {seconds:g} s"
        case OSError():
            return f"{where} cannot be reached: {one_line(error.strerror or error)}"
    return _refused(where, error, login)


def _refused(where: str, error: Exception, login: str) -> str:
    said = one_line(error).removeprefix("nats: ").strip("'")
    if any(each in said.lower() for each in (*_REFUSED, "authorization failed")):
        return f"{where} refused us ({said}): {f'check {login}' if login else 'it asks for a login, and there is none'}"
    if "expecting INFO" in said:
        return f"{where} ended the connection: it wants TLS first (handshake_first), or is no NATS server"
    return f"{where} refused the connection: {said}"


def ended(server: str, error: Exception | None, login: str) -> str:
    """Say why a connection that worked does not go on."""
    if error is None or isinstance(error, nats.errors.UnexpectedEOF):
        return f"NATS at {server} ended the connection"
    if isinstance(error, nats.errors.StaleConnectionError):
        return f"NATS at {server} does not answer pings any more"
    if isinstance(error, OSError):
        return f"the connection to NATS at {server} broke: {one_line(error.strerror or error)}"
    return _refused(f"NATS at {server}", error, login)


def answered(server: str, doing: str, error: Exception) -> TransientError:
    """Say that a request to JetStream's API failed."""
    where = f"NATS at {server}"
    if isinstance(error, ServiceUnavailableError) and error.err_code in (None, *_NOT_ENABLED):
        return AnsweredError(
            f"{where} has no JetStream for us, needed to {doing}: turn it on there (jetstream {{}} in its "
            "configuration; per account, where there are accounts), set domain, or set mode: core"
        )
    if isinstance(error, APIError):
        return AnsweredError(
            f"{where} failed to {doing}: {one_line(error.description)} ({error.err_code})", error.err_code or 0
        )
    if isinstance(error, TimeoutError):
        return TransientError(f"{where} did not {doing} in time")
    return TransientError(f"{where} failed to {doing}: {one_line(error)}")
