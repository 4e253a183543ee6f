"""The HTTP sink: records in POST requests; published means that the receiver has responded with a status of 2xx.

Invariants:
- One request is in flight at a time, and the next one follows its response: records arrive in order.
- A record that the receiver has accepted is not sent again because a later one of the same batch failed. If the
  response was lost, the record is sent again, with the same idempotency key if the request has the same records.
- A rejected record ends a batch, so that the record of its loss comes before later records.
- With OTLP, a receiver that rejects some records of a request, which it does not name, gets none of them again: the
  others would arrive twice. All of them count as rejected.
- A response that no request has caused acknowledges nothing.
- Requests go to the configured URL only: redirects are not followed, cookies not stored, proxies of the environment
  not used.
- Files are read again for each connection, and those with credentials for each batch. After an error, the next request
  has a new connection.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
import yarl

from bridge.core.errors import FatalError, RejectedRecordError, TransientError
from bridge.core.time import SECOND
from bridge.telemetry.safe_text import one_line
from config.sinks.common import CLIENT_NAME
from sinks.cloudevents import PROTOBUF_CONTENT_TYPE
from sinks.credentials import configured_credentials, redact, resolve_secret, tls_context
from sinks.http.errors import (
    REJECTED,
    RETRY_LATER,
    Response,
    classify,
    describe_connection_error,
    describe_rejection,
    describe_rejections,
    probe_error,
)
from sinks.http.messages import Message, MessageEncoder, Request, split_batch
from sinks.token_command import TokenCommand

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from bridge.core.records import Record
    from config.sinks.http import HttpSinkSettings

MAX_REJECTIONS = 10  # consecutive rejected records, above which url or settings are probably not right
MAX_RETRY_AFTER_SECONDS = 300
KEEPALIVE_SECONDS = 4.0  # less than those of servers (Node.js, uvicorn: 5 s), which would end it during a request
_MAX_RESPONSE_BYTES = 1024 * 1024  # to read; a response of OTLP may have a reason for each record
_TEXT_TYPES = re.compile(r"text/plain|application/([a-z.-]+\+)?json")
_VISIBLE = re.compile("[!-~]+")


class Authorization(NamedTuple):
    """The headers with the credentials, and the secrets in them, which no message may contain."""

    headers: dict[str, str]
    secrets: tuple[str, ...]


class _Request(aiohttp.ClientRequest):
    """A request whose response is the first that arrives after it (RFC 9112, section 9.2)."""

    async def send(self, conn: aiohttp.connector.Connection) -> aiohttp.ClientResponse:
        if conn.protocol is None or conn.protocol.should_close:  # aiohttp would return what has arrived before
            raise aiohttp.ClientResponseError(self.request_info, (), message="a response without a request")
        return await super().send(conn)


class HttpSink:
    """Publishes records to one URL."""

    def __init__(self, settings: HttpSinkSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._encoder = MessageEncoder(settings)
        self._url = yarl.URL(settings.url, encoded=True)
        self._query = (self._url.raw_query_string, self._url.query_string, *self._url.query.values())  # has keys
        self._session: aiohttp.ClientSession | None = None  # has one connection, and the files for it
        self._used_at = 0
        self._token_command = TokenCommand(command, clock) if (command := settings.auth.token_command) else None
        self._max_records = 1 if settings.sends_single_records else settings.max_batch_records
        self._max_bytes = settings.max_batch_bytes
        self._accepted: set[tuple[str, str]] = set()  # of a batch that may be published again
        self._rejections = 0  # since the last accepted record
        self._busy_until = 0
        self._busy_error = ""

    async def start(self) -> None:
        """Connect, and send an OPTIONS request, which has no effect on any receiver.

        Raises:
            TransientError: The receiver cannot be reached, or rejects the credentials.
            FatalError: The receiver redirects to another URL.
        """
        response = await self._exchange("OPTIONS", Request({}, b""), await self._authorize())
        if error := probe_error(response, self._settings):
            raise error
        if response.status in REJECTED:  # such as a server's for TLS that gets a request without it
            self._rejections = MAX_REJECTIONS

    async def publish(self, batch: Sequence[Record]) -> None:
        """Publish records in order; return when the receiver has accepted all of them.

        Raises:
            TransientError: The receiver has not accepted some records, and may later.
            RejectedRecordError: The receiver rejects a record, or it is too large.
            FatalError: The receiver cannot take any records until its or this configuration changes.
        """
        messages = [message for record in batch if (message := self._encoder.encode(record))]
        limit = self._settings.max_record_bytes
        if too_large := frozenset(message.position for message in messages if len(message.body) > limit):
            raise RejectedRecordError(f"record is larger than max_record_bytes ({limit} bytes)", too_large)
        remaining = [message for message in messages if message.id not in self._accepted]
        authorization = await self._authorize()
        for each in split_batch(remaining, self._max_records, lambda: self._max_bytes):
            await self._send(each, authorization)
        self._accepted.clear()

    async def close(self) -> None:
        """Close the connection. Idempotent."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def _send(self, messages: Sequence[Message], authorization: Authorization) -> None:
        """Send messages in one request; if the receiver rejects it, send its halves, up to the message that is why."""
        pending = [messages]
        while pending:
            current = pending.pop()
            request = self._encoder.build_request(current)
            response = await self._exchange("POST", request, authorization)
            if response.is_success and not response.rejected_records:
                self._accepted.update(message.id for message in current)
                self._rejections = 0
            elif response.status in REJECTED and len(current) > 1:
                middle = len(current) // 2
                pending += [current[middle:], current[:middle]]
                if response.status == HTTPStatus.REQUEST_ENTITY_TOO_LARGE:
                    self._max_bytes = min(self._max_bytes, len(request.body) // 2)
            elif response.status in REJECTED or response.is_success:  # of a success, not in halves: a part is accepted
                raise self._rejection(response, current)
            else:
                raise classify(response, self._settings)

    def _rejection(self, response: Response, messages: Sequence[Message]) -> RejectedRecordError | FatalError:
        """Return the error for rejected messages; if nothing is accepted, the messages are probably not the reason."""
        accepted_some = response.is_success and response.rejected_records < len(messages)
        self._rejections = 0 if accepted_some else self._rejections + 1
        if self._rejections > MAX_REJECTIONS:
            return FatalError(describe_rejections(response, self._settings))
        text = describe_rejection(response, len(messages), self._settings)
        return RejectedRecordError(text, frozenset(message.position for message in messages))

    # --- requests ---

    async def _exchange(self, method: str, request: Request, authorization: Authorization) -> Response:
        """Send a request, and return the response.

        Raises:
            TransientError: There was no response, a certificate is invalid, or the receiver has requested a pause.
        """
        if self._clock.now().monotonic < self._busy_until:
            raise TransientError(self._busy_error)
        try:
            async with self._clock.timeout(self._settings.timeout.total_seconds()):
                response = await self._request(method, request, authorization)
        except (aiohttp.ClientError, OSError) as error:
            await self.close()
            raise TransientError(describe_connection_error(error, self._settings)) from error
        except BaseException:  # a timeout of the pump cancels this
            await self.close()
            raise
        if not response.is_success:
            await self._note_failure(response)
        return response

    async def _request(self, method: str, request: Request, authorization: Authorization) -> Response:
        settings = self._settings
        if self._clock.now().monotonic - self._used_at > KEEPALIVE_SECONDS * SECOND:
            await self.close()  # the connection is closed as well
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=1,
                    ssl=tls_context(settings.tls) if settings.uses_tls else True,
                    keepalive_timeout=KEEPALIVE_SECONDS,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),  # the clock's counts
                headers={"User-Agent": settings.user_agent or CLIENT_NAME} | settings.headers,
                request_class=_Request,
            )
        secrets = (*authorization.secrets, *self._query)
        data = io.BytesIO(request.body) if request.body else None  # of bytes, aiohttp sends all at once
        headers = request.headers | authorization.headers
        async with self._session.request(
            method, self._url, data=data, headers=headers, allow_redirects=False
        ) as response:
            body = b""
            while len(body) < _MAX_RESPONSE_BYTES and (chunk := await response.content.readany()):
                body += chunk
            location = redact(re.split("[?#]", response.headers.get("Location", ""))[0], secrets)
            text, rejected = self._read_body(response.status, response.content_type, body)
            text = redact(text, secrets)
            retry_after = response.headers.get("Retry-After", "")
            self._used_at = self._clock.now().monotonic
            return Response(response.status, one_line(text), one_line(location), retry_after, rejected)

    def _read_body(self, status: int, content_type: str, body: bytes) -> tuple[str, int]:
        """Return the text of a response, "" if it has none for humans, and the number of records that it rejects."""
        if _TEXT_TYPES.fullmatch(content_type):
            return body.decode(errors="replace"), 0
        if self._settings.encoding == "otlp" and content_type == PROTOBUF_CONTENT_TYPE:
            from sinks.http.otlp_responses import read_error, read_success  # noqa: PLC0415 (only if it is configured)

            return read_success(body) if status // 100 == 2 else (read_error(body), 0)  # noqa: PLR2004 (2xx)
        return "", 0

    async def _authorize(self) -> Authorization:
        """Return the credentials; read files again.

        Raises:
            TransientError: A file is invalid, or the token command failed.
        """
        auth = self._settings.auth
        if auth.user is not None:
            password = resolve_secret("auth.password", auth.password, auth.password_file) or ""
            encoded = base64.b64encode(f"{auth.user}:{password}".encode()).decode()
            return Authorization({"Authorization": f"Basic {encoded}"}, (password, encoded))
        if self._token_command:
            token: str | None = await self._token_command.token()
        else:
            token = resolve_secret("auth.token", auth.token, auth.token_file)
        if token is None:
            return Authorization({}, ())
        if not _VISIBLE.fullmatch(token):
            name = configured_credentials(auth)
            raise TransientError(f"{name} is not a token: it has spaces, or characters other than printable ASCII")
        return Authorization({"Authorization": f"Bearer {token}"}, (token,))

    async def _note_failure(self, response: Response) -> None:
        """Prepare the next request after an error: a new token if it was rejected, a pause if it was requested."""
        if response.status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            if self._token_command:
                self._token_command.discard()
            await self.close()
        if response.status in RETRY_LATER and response.retry_after.isascii() and response.retry_after.isdecimal():
            seconds = min(int(response.retry_after[:9]), MAX_RETRY_AFTER_SECONDS)
            self._busy_until = self._clock.now().monotonic + seconds * SECOND
            self._busy_error = str(classify(response, self._settings))
