"""What nats-py and the servers say, as one sentence that names what is wrong, where, and what to do. Pure.

Everything here is worth another try: someone can start a server, replace a file or grant a permission meanwhile.
No sentence holds a secret: servers do not repeat them, and of settings only names are told.
"""

from __future__ import annotations

import ssl
from typing import NamedTuple

import nats.errors
from nats.js.errors import APIError, ServiceUnavailableError

from bridge.core.errors import TransientError

_SHOWN = 300  # characters of a foreign text
_DENIED = "permissions violation"
_REFUSED = (
    "authorization violation",
    "authorization failed",
    "authentication expired",
    "authentication revoked",
    "authentication timeout",
)
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


class Texts(NamedTuple):
    """Says what is wrong with one server.

    ``login`` and ``certificate`` name the settings that say who we are, "" for none.
    """

    server: str
    seconds: float
    login: str
    certificate: str

    def unreachable(self, error: Exception, *, asks_certificate: bool) -> str:
        """Say why there is no connection."""
        where = f"NATS at {self.server}"
        match error:
            case nats.errors.SecureConnWantedError():
                text = f"{where} offers no TLS: nothing was sent to it; turn TLS on there, or off here"
            case ssl.SSLCertVerificationError():
                reason = one_line(error.verify_message)
                text = f"{where} shows a certificate that is not to be trusted: {reason}; check tls.ca_file"
            case TimeoutError():
                text = f"{where} did not answer within {self.seconds:g} s"
            case ssl.SSLError() | ConnectionResetError() | BrokenPipeError() if asks_certificate:
                # The server's own reason comes in the midst of the login, if at all.
                told = (
                    f"does not like ours, {self.certificate}"
                    if self.certificate
                    else "there is none: set tls.cert_file"
                )
                text = f"{where} asks for a certificate, and {told}"
            case ssl.SSLError():
                text = f"{where}: TLS failed: {one_line(getattr(error, 'reason', None) or error)}; is TLS meant there?"
            case OSError():
                text = f"{where} cannot be reached: {one_line(error.strerror or error)}"
            case _:
                text = self._refused(error)
        return text

    def ended(self, error: Exception | None) -> str:
        """Say why a connection that worked does not go on."""
        if error is None or isinstance(error, nats.errors.UnexpectedEOF):
            return f"NATS at {self.server} ended the connection"
        if isinstance(error, nats.errors.StaleConnectionError):
            return f"NATS at {self.server} does not answer pings any more"
        if isinstance(error, OSError):
            return f"the connection to NATS at {self.server} broke: {one_line(error.strerror or error)}"
        return self._refused(error)

    def denied(self, error: Exception) -> str:
        """Say that a permission is missing; ``error`` names the subject."""
        said = one_line(error).removeprefix("nats: ")
        return f"NATS at {self.server} refuses us a subject: {said}; docs/nats.md lists the permissions that are needed"

    def answered(self, doing: str, error: Exception) -> TransientError:
        """Say that a request to JetStream's API failed."""
        where = f"NATS at {self.server}"
        if isinstance(error, ServiceUnavailableError) and error.err_code in (None, *_NOT_ENABLED):
            return AnsweredError(
                f"{where} has no JetStream for us, needed to {doing}: turn it on there (jetstream {{}} in its "
                "configuration; per account, where there are accounts), set domain, or set mode: core"
            )
        if isinstance(error, APIError):
            return AnsweredError(
                f"{where} failed to {doing}: {one_line(error.description)} ({error.err_code})", error.err_code or 0
            )
        return TransientError(f"{where} failed to {doing}: {one_line(error)}")

    def _refused(self, error: Exception) -> str:
        where = f"NATS at {self.server}"
        said = one_line(error).removeprefix("nats: ").strip("'")
        if any(each in said.lower() for each in _REFUSED):
            advice = f"check {self.login}" if self.login else "it asks for a login, and there is none"
            return f"{where} refused us ({said}): {advice}"
        if "expecting INFO" in said:
            return f"{where} ended the connection: it wants TLS first (tls.handshake_first), or is no NATS server"
        return f"{where} refused the connection: {said}"
