"""Errors for failures of the HTTP sink: the class that says what to do next, the cause, and what an operator can do.

Invariant: no message contains a secret. A text of the receiver, which may repeat what it has received, is shortened,
and secrets are removed from it.
"""

from __future__ import annotations

import re
import socket
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import aiohttp

from bridge.core.errors import BridgeError, FatalError, TransientError
from bridge.telemetry.safe_text import one_line
from sinks.credentials import configured_credentials
from sinks.tls_errors import describe_tls_error, find_tls_error

if TYPE_CHECKING:
    from config.sinks.http import HttpSinkSettings

REJECTED = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    }
)
"""Statuses for a request whose content the receiver will never accept."""
_BUSY = frozenset(
    {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.CONFLICT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS}
)  # 409: a request with the same idempotency key is being processed
RETRY_LATER = frozenset({HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE})
"""Statuses whose header Retry-After counts."""
_UNAVAILABLE = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.GATEWAY_TIMEOUT})
_QUOTATION = re.compile(r"""[:\s]*(?<!\w)b?["'].*""", re.DOTALL)  # but not the apostrophe in "can't"
_HINTS = {
    HTTPStatus.NOT_FOUND: "check the path of url",
    HTTPStatus.GONE: "check the path of url",
    HTTPStatus.METHOD_NOT_ALLOWED: "set url to a path that accepts POST requests",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "set cloudevents and encoding to what the receiver supports",
}


_OTLP_HINT = "check whether url is that of an OTLP/HTTP receiver of logs, such as http://HOST:4318/v1/logs"


class Response(NamedTuple):
    """A response; ``text`` is the beginning of its body, if that is for humans, without secrets.

    With OTLP, a response of success may reject ``rejected_records`` of the request, without saying which.
    """

    status: int
    text: str = ""
    location: str = ""
    retry_after: str = ""
    rejected_records: int = 0

    @property
    def is_success(self) -> bool:
        """Whether the status is one of success."""
        return self.status // 100 == 2  # noqa: PLR2004 (2xx)

    @property
    def is_redirect(self) -> bool:
        """Whether the receiver refers to another URL."""
        return self.status // 100 == 3  # noqa: PLR2004 (3xx)

    def __str__(self) -> str:
        try:
            text = f"{self.status} {HTTPStatus(self.status).phrase}"
        except ValueError:
            text = str(self.status)
        return f"{text}: {self.text}" if self.text else text


def classify(response: Response, settings: HttpSinkSettings) -> BridgeError:
    """Return the error for a response that neither accepts nor rejects the content of a request."""
    where, credentials = settings.endpoint, configured_credentials(settings.auth)
    status = response.status
    if status == HTTPStatus.UNAUTHORIZED:
        text = f"rejected the credentials ({response}); check {credentials}"  # they can be replaced at any time
        return TransientError(f"{where} {text if credentials else f'requires credentials ({response}); set auth'}")
    if status == HTTPStatus.FORBIDDEN:
        hint = f"allow POST requests with {credentials}" if credentials else "set auth"
        return TransientError(f"{where} denied access ({response}); {hint}")
    if response.is_redirect:
        return FatalError(
            f"{where} redirects ({response}) to {response.location or 'another URL'}, which is not followed; set url "
            "to the final one"
        )
    if status in _BUSY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return TransientError(f"{where} responded {response}")
    hint = _HINTS.get(HTTPStatus(status), "") if status in HTTPStatus._value2member_map_ else ""
    if hint and settings.encoding == "otlp":
        hint = _OTLP_HINT
    return FatalError(f"{where} responded {response}; {hint or 'check url and the receiver'}")


def probe_error(response: Response, settings: HttpSinkSettings) -> BridgeError | None:
    """Return the error for a response to a request that is not a POST; None if it says nothing about one.

    Receivers may respond with any status to a method that they do not have, also with 403, 404 and 501.
    """
    rejects_credentials = response.status == HTTPStatus.UNAUTHORIZED and configured_credentials(settings.auth)
    if rejects_credentials or response.is_redirect or response.status in _UNAVAILABLE:
        return classify(response, settings)
    return None


def describe_rejection(response: Response, records: int, settings: HttpSinkSettings) -> str:
    """Describe that the receiver rejects records of a request with this number of them."""
    if not response.is_success:
        return f"{settings.endpoint} rejected the record: {response}"
    rejected = min(response.rejected_records, records)
    reason = f": {response.text}" if response.text else ", without a reason"
    return f"{settings.endpoint} rejected {rejected} of {records} log records in a request{reason}"


def describe_rejections(response: Response, settings: HttpSinkSettings) -> str:
    """Describe that the receiver rejects all requests."""
    hint = "check url, and set cloudevents to a mode that the receiver supports"
    if settings.encoding == "otlp":
        hint = _OTLP_HINT
    return f"{settings.endpoint} rejects all requests ({response}); {hint}{_missing_tls(settings)}"


def describe_connection_error(error: BaseException, settings: HttpSinkSettings) -> str:
    """Describe why there was no response."""
    # aiohttp's own errors have fewer details than their causes.
    cause = error.__cause__ or error
    match error:
        case _ if tls_error := find_tls_error(cause):
            text = describe_tls_error(tls_error, settings.tls)
        case TimeoutError():
            text = f"no complete response within {settings.timeout.total_seconds():g} s"
        case _ if isinstance(cause, aiohttp.ServerDisconnectedError | ConnectionResetError | BrokenPipeError):
            text = f"connection closed by the receiver{_missing_tls(settings)}"
        case aiohttp.ClientConnectorDNSError():
            text = "host name cannot be resolved"
            if isinstance(cause, socket.gaierror):
                text = f"{text}: {cause.strerror}"
        case OSError() if isinstance(cause, ConnectionRefusedError):
            text = "connection refused (no listener at this address)"
        case OSError():
            text = one_line(error.strerror or error)
        case aiohttp.ClientPayloadError():
            text = "response is cut off, or its body is invalid"
        case aiohttp.ClientResponseError():
            # aiohttp quotes what it cannot parse, which may repeat the request: its query, and the credentials.
            reason = _QUOTATION.sub("", error.message)
            text = f"invalid response ({one_line(reason)}); check whether the port is that of an HTTP server"
        case _:
            text = f"invalid response ({type(error).__name__}); check whether the port is that of an HTTP server"
    return f"{settings.endpoint}: {text}"


def _missing_tls(settings: HttpSinkSettings) -> str:
    if settings.uses_tls:
        return "" if settings.tls.cert_file else "; it may require a client certificate (tls.cert_file)"
    return "; it may require TLS (https://)"
