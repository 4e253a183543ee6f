"""One connection to one server. It is never mended: after trouble it is let go, and the sink makes another one.

nats-py can reconnect by itself, but then it gives up for good after a while, keeps the credentials of the beginning,
and buffers what nobody may wait for any more. So it is told not to.

Invariants:
- Whoever waits for something of this connection learns at once that it has failed, and why (``failed``).
- Nothing is sent to a server before TLS, where TLS is asked for: nats-py alone would go on in clear text where a server
  (or somebody before it) offers none.
- Letting go is bounded, whatever the server does.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import Awaitable, Callable, Coroutine
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import nats.errors
from nats.aio.msg import Msg
from nats.js.errors import APIError

from bridge.core.errors import TransientError
from config.sinks.common import host_and_port
from config.sinks.nats import PORT
from sinks.access import tls_context
from sinks.nats import login
from sinks.nats.client import StrictClient
from sinks.nats.failures import Texts, is_denial

if TYPE_CHECKING:
    from nats.js import JetStreamContext

    from config.sinks.nats import NatsSettings

T = TypeVar("T")

CLOSE_SECONDS = 1.0  # what the server is given to take leave
PING_SECONDS = 10  # two in a row unanswered end the connection
PENDING_BYTES = 256 * 1024  # what is held before the network has to take it
_NAME = "whalebridge"


class Place(NamedTuple):
    """A server, and the name that its certificate has to have."""

    server: str
    name: str


class Link:
    """A connection that works until ``failed`` is done, which then says why it does not any more."""

    def __init__(self, client: StrictClient, place: Place, texts: Texts) -> None:
        self.place = place
        self.timeout = texts.seconds
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._client = client
        self._listener: Callable[[int, Msg], None] = lambda _, __: None
        self._numbers = 0
        self._texts = texts
        self._inbox = ""

    @classmethod
    async def open(cls, settings: NatsSettings, place: Place) -> Link:
        """Connect, with the files as they are now.

        Raises:
            TransientError: That did not work.
        """
        must_encrypt = settings.tls.enabled
        certificate = f"tls.cert_file {settings.tls.cert_file}" if settings.tls.cert_file else ""
        seconds = settings.timeout.total_seconds()
        texts = Texts(place.server, seconds, login.named(settings.auth), certificate)
        link = cls(StrictClient(must_encrypt=must_encrypt), place, texts)
        options = {**login.options(settings.auth), "tls_handshake_first": settings.tls.handshake_first}
        if must_encrypt:
            options["tls"] = tls_context(settings.tls)
        try:
            await link._connect(inbox_prefix=settings.inbox_prefix, **options)
        except BaseException:
            await link.close()
            raise
        return link

    async def _connect(self, **options: Any) -> None:
        last: Exception | None = None

        async def note(error: Exception) -> None:
            nonlocal last
            last = error
            self._on_error(error)

        async def closed() -> None:
            self._fail(self._texts.ended(self._client.last_error))

        try:
            async with asyncio.timeout(self.timeout):
                await self._client.connect(
                    f"nats://{self.place.server}",
                    name=_NAME,
                    error_cb=note,
                    closed_cb=closed,
                    tls_hostname=self.place.name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=ceil(self.timeout),  # of each step
                    ping_interval=PING_SECONDS,
                    pending_size=PENDING_BYTES,
                    **options,
                )
                self._inbox = self._client.new_inbox()
                await self._client.subscribe(f"{self._inbox}.*", cb=self._take)
        except (OSError, nats.errors.Error) as error:
            cause = last if last and isinstance(error, nats.errors.NoServersError) else error
            text = self._texts.unreachable(cause, asks_certificate=self._client.asks_certificate)
            raise TransientError(text) from cause

    @property
    def max_payload(self) -> int:
        """How many bytes a message may have, headers included."""
        return self._client.max_payload

    def discovered(self) -> list[Place]:
        """Return the servers that this one has named as others of its cluster.

        Their certificates are for their own names, or, where they are named by address, for this one's.
        """
        found = (_discovered(each.netloc, self.place.name) for each in self._client.discovered_servers)
        return [place for place in found if place]

    def jetstream(self, domain: str | None) -> JetStreamContext:
        """Return what asks JetStream's API; each call is to be made through ``ask``."""
        return self._client.jetstream(domain=domain, timeout=2 * self.timeout)  # ask() ends it before

    async def ask(self, doing: str, request: Coroutine[Any, Any, T]) -> T:
        """Await a request for as long as the connection lives, within its time; ``doing`` names it for the text.

        Raises:
            TransientError: There was no answer, or one that says no (AnsweredError).
        """
        task = asyncio.ensure_future(request)
        try:
            either: set[asyncio.Future[Any]] = {task, self.failed}
            await asyncio.wait(either, timeout=self.timeout, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                self.check()
                raise TransientError(f"NATS at {self.place.server} did not {doing} within {self.timeout:g} s")
            return task.result()
        except (OSError, nats.errors.Error, ValueError) as error:  # ValueError: it is no JSON
            self.check()
            raise self._texts.answered(doing, error) from error
        finally:
            task.cancel()

    async def request(self, doing: str, domain: str | None, call: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make a call of JetStream's API that nats-py does not have.

        Raises:
            TransientError: There was no answer, or one that says no (AnsweredError).
        """
        return await self.ask(doing, self._request(f"$JS.{domain}.API.{call}" if domain else f"$JS.API.{call}", body))

    async def _request(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        message = await self._client.request(subject, json.dumps(body).encode(), 2 * self.timeout)
        answer: dict[str, Any] = json.loads(message.data)
        if error := answer.get("error"):
            raise APIError(**error)
        return answer

    def check(self) -> None:
        """Raise what has failed, if it has."""
        if self.failed.done():
            raise TransientError(self.failed.result())

    def claim(self, count: int, listener: Callable[[int, Msg], None]) -> int:
        """Return the first of so many numbers for messages to send; answers go to ``listener`` from now on."""
        first = self._numbers
        self._numbers += count
        self._listener = listener
        return first

    async def send(self, subject: str, data: bytes, headers: dict[str, str] | None, number: int | None) -> None:
        """Hand over a message; with a ``number``, an answer to it goes to the listener.

        nats-py swallows a cancellation while this waits for the network: the caller has to look for another sign.
        """
        reply = "" if number is None else f"{self._inbox}.{number}"
        await self._client.publish(subject, data, reply, headers)

    async def subscribe(self, pattern: str, take: Callable[[Msg], Awaitable[None]]) -> None:
        """Have ``take`` called with each message whose subject fits ``pattern``, from when this returns."""
        await self.ask(f"let us listen to {pattern}", self._client.subscribe(pattern, cb=take))
        await self.flush()

    def new_inbox(self) -> str:
        """Return a subject for answers that nobody else has."""
        return self._client.new_inbox()

    async def call(self, subject: str, data: bytes, inbox: str) -> None:
        """Hand over a message; answers to it go to ``inbox``."""
        await self._client.publish(subject, data, inbox)

    async def flush(self) -> None:
        """Wait until the server has read what was sent."""
        await self.ask("take what was sent", self._client.flush(timeout=ceil(2 * self.timeout)))

    def abort(self, reason: str = "the connection was given up") -> None:
        """End the connection at once, whatever is still to be sent."""
        self._fail(reason)
        self._client.abort()

    async def close(self) -> None:
        """Take leave in a bounded time; harmless when repeated."""
        self._fail("the connection is closed")
        leaving = asyncio.ensure_future(self._client.close())
        await asyncio.wait({leaving}, timeout=CLOSE_SECONDS)
        self._client.abort()
        leaving.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError, nats.errors.Error):
            await leaving

    async def _take(self, message: Msg) -> None:
        self._listener(int(message.subject.rpartition(".")[2]), message)

    def _on_error(self, error: Exception) -> None:
        if is_denial(error):
            self._fail(self._texts.denied(error))

    def _fail(self, reason: str) -> None:
        if not self.failed.done():
            self.failed.set_result(reason)


def _discovered(server: str, name: str) -> Place | None:
    try:
        found = place(server)
    except ValueError:  # what a server says of others is not ours to check
        return None
    try:
        ipaddress.ip_address(found.name)
    except ValueError:
        return found
    return found._replace(name=name)


def place(server: str) -> Place:
    """Return the place of a server as settings have it."""
    host, port = host_and_port(server, PORT)
    return Place(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", host)
