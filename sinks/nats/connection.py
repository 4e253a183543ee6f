"""Connections to NATS: the servers to try, and one connection to one of them.

A connection never reconnects: after an error it is closed, and the sink opens a new one.

nats-py can reconnect by itself, but then it stops for good after some attempts, keeps the initial credentials, and
buffers messages that no task waits for. Therefore its reconnect is disabled.

Invariants:
- Every task that waits on the connection learns at once that it has failed, and why (``failed``).
- If TLS is required, nothing is sent before TLS: nats-py alone would continue in clear text if the server (or an
  attacker in between) offers no TLS.
- Closing takes a bounded time, regardless of the server.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import json
from collections.abc import Awaitable, Callable
from math import ceil
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

import nats.errors
from nats.aio.msg import Msg
from nats.js.errors import APIError

from bridge.clock import shuffled
from bridge.core.errors import TransientError
from bridge.task_groups import first_of, with_timeout
from config.sinks.common import CLIENT_NAME, host_and_port
from config.sinks.nats import PORT
from sinks.credentials import configured_credentials, tls_context
from sinks.nats import auth
from sinks.nats.errors import PROTOCOL_ERRORS, ErrorMessages, is_permission_error
from sinks.nats.messages import MessageIds
from sinks.nats.nats_patches import TlsEnforcingClient

if TYPE_CHECKING:
    from nats.js import JetStreamContext

    from bridge.core.ports import Clock
    from config.sinks.nats import NatsSettings

T = TypeVar("T")

CLOSE_SECONDS = 1.0  # for an orderly close
PING_SECONDS = 10  # the connection ends after two pings without a response
MAX_PENDING_BYTES = 256 * 1024  # buffered before a write waits for the network


class ServerAddress(NamedTuple):
    """A server, and the host name that its certificate must have."""

    server: str
    tls_hostname: str


class NatsConnection:
    """A connection that is usable until ``failed`` is done; its result is the reason."""

    def __init__(
        self, client: TlsEnforcingClient, address: ServerAddress, error_messages: ErrorMessages, owner: ServerConnector
    ) -> None:
        self.address = address
        self.clock = owner.clock
        self.message_ids = owner.message_ids
        self.timeout = error_messages.timeout
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._client = client
        self._listener: Callable[[int, Msg], None] = lambda _, __: None
        self._next_reply_id = 0
        self._error_messages = error_messages
        self._inbox = ""

    @classmethod
    async def open(cls, settings: NatsSettings, address: ServerAddress, owner: ServerConnector) -> NatsConnection:
        """Connect; read the files of the settings again.

        Raises:
            TransientError: Connecting failed, or a file is invalid.
        """
        require_tls = settings.tls.enabled
        certificate = f"tls.cert_file {settings.tls.cert_file}" if settings.tls.cert_file else ""
        seconds = settings.timeout.total_seconds()
        messages = ErrorMessages(address.server, seconds, configured_credentials(settings.auth), certificate)
        connection = cls(TlsEnforcingClient(require_tls=require_tls), address, messages, owner)
        options = {
            "name": CLIENT_NAME if settings.connection_name is None else settings.connection_name,
            "inbox_prefix": settings.inbox_prefix,
            "tls_handshake_first": settings.tls.handshake_first,
            **await auth.connect_options(settings.auth, owner.clock),
        }
        if require_tls:
            options["tls"] = tls_context(settings.tls)
        try:
            await connection._connect(**options)
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _connect(self, **options: Any) -> None:
        last_error: Exception | None = None

        async def on_error(error: Exception) -> None:
            nonlocal last_error
            last_error = error
            self._on_error(error)

        async def on_closed() -> None:
            self._fail(self._error_messages.disconnected(self._client.last_error))

        try:
            async with self.clock.timeout(self.timeout):
                await self._client.connect(
                    f"nats://{self.address.server}",
                    error_cb=on_error,
                    closed_cb=on_closed,
                    tls_hostname=self.address.tls_hostname,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=ceil(self.timeout),  # for each step
                    ping_interval=PING_SECONDS,
                    pending_size=MAX_PENDING_BYTES,
                    **options,
                )
                self._inbox = self._client.new_inbox()
                await self._client.subscribe(f"{self._inbox}.*", cb=self._on_reply)
        except (OSError, nats.errors.Error, *PROTOCOL_ERRORS) as error:
            cause = last_error if last_error and isinstance(error, nats.errors.NoServersError) else error
            text = self._error_messages.unreachable(cause, requests_certificate=self._client.requests_certificate)
            raise TransientError(text) from cause

    @property
    def max_payload(self) -> int:
        """The maximum size of a message in bytes, headers included."""
        return self._client.max_payload

    def discovered_servers(self) -> list[ServerAddress]:
        """Return the other servers of the cluster that the server has announced.

        Their certificates must have their own names, or, if announced by IP address, the name of this server.
        """
        hostname = self.address.tls_hostname
        parsed = (_parse_discovered(server.netloc, hostname) for server in self._client.discovered_servers)
        return [address for address in parsed if address]

    def jetstream(self, domain: str | None) -> JetStreamContext:
        """Return the client of JetStream's API; await its calls with ``await_request``."""
        return self._client.jetstream(domain=domain, timeout=2 * self.timeout)  # await_request() times out earlier

    async def await_request(self, purpose: str, request: Callable[[], Awaitable[T]]) -> T:
        """Await a request until it times out or the connection fails; ``purpose`` is a verb phrase for error messages.

        Raises:
            TransientError: There was no response.
            ApiResponseError: The response is an error.
        """
        try:
            _, response = await with_timeout(lambda: first_of(request(), self.failed), self.timeout, self.clock)
        except (OSError, nats.errors.Error, ValueError, TransientError) as error:  # ValueError: invalid JSON
            self.raise_if_failed()
            raise self._error_messages.request_failed(purpose, error) from error
        self.raise_if_failed()
        return cast("T", response)

    async def api_request(
        self, purpose: str, domain: str | None, endpoint: str, body: dict[str, Any]
    ) -> dict[str, Any]:
        """Send a request to an endpoint of JetStream's API that nats-py does not cover.

        Raises:
            TransientError: There was no response.
            ApiResponseError: The response is an error.
        """
        return await self.await_request(
            purpose,
            lambda: self._send_api_request(f"$JS.{domain}.API.{endpoint}" if domain else f"$JS.API.{endpoint}", body),
        )

    async def _send_api_request(self, subject: str, body: dict[str, Any]) -> dict[str, Any]:
        message = await self._client.request(subject, json.dumps(body).encode(), 2 * self.timeout)
        response: dict[str, Any] = json.loads(message.data)
        if error := response.get("error"):
            raise APIError(**error)
        return response

    def raise_if_failed(self) -> None:
        """Raise a TransientError if the connection has failed."""
        if self.failed.done():
            raise TransientError(self.failed.result())

    def allocate_reply_ids(self, count: int, listener: Callable[[int, Msg], None]) -> int:
        """Allocate ``count`` consecutive reply ids and return the first; replies go to ``listener`` from now on."""
        first = self._next_reply_id
        self._next_reply_id += count
        self._listener = listener
        return first

    async def publish(self, subject: str, data: bytes, headers: dict[str, str] | None, reply_id: int | None) -> None:
        """Publish a message; with a ``reply_id``, the reply goes to the listener.

        nats-py swallows a cancellation while this waits for the network, so the caller needs another stop condition.
        """
        reply = "" if reply_id is None else f"{self._inbox}.{reply_id}"
        await self._client.publish(subject, data, reply, headers)

    async def subscribe(self, pattern: str, callback: Callable[[Msg], Awaitable[None]]) -> None:
        """Call ``callback`` with each message whose subject matches ``pattern``; active when this returns."""
        await self.await_request(f"subscribe to {pattern}", lambda: self._client.subscribe(pattern, cb=callback))
        await self.flush()

    def new_inbox(self) -> str:
        """Return a unique subject for replies."""
        return self._client.new_inbox()

    async def publish_with_reply(self, subject: str, data: bytes, reply: str) -> None:
        """Publish a message; replies go to the subject ``reply``."""
        await self._client.publish(subject, data, reply)

    async def flush(self) -> None:
        """Wait until the server has read all sent messages."""
        await self.await_request("flush sent messages", lambda: self._client.flush(timeout=ceil(2 * self.timeout)))

    def abort(self, reason: str = "the connection was aborted") -> None:
        """Close the connection at once; unsent messages are discarded."""
        self._fail(reason)
        self._client.abort()

    async def close(self) -> None:
        """Close the connection in a bounded time. Idempotent."""
        self._fail("the connection is closed")
        try:
            with contextlib.suppress(TransientError, OSError, nats.errors.Error):  # it is closed in any case
                await with_timeout(self._client.close, CLOSE_SECONDS, self.clock)
        finally:
            self._client.abort()

    async def _on_reply(self, message: Msg) -> None:
        self._listener(int(message.subject.rpartition(".")[2]), message)

    def _on_error(self, error: Exception) -> None:
        if is_permission_error(error):
            self._fail(self._error_messages.denied(error))

    def _fail(self, reason: str) -> None:
        if not self.failed.done():
            self.failed.set_result(reason)


def _parse_discovered(server: str, tls_hostname: str) -> ServerAddress | None:
    try:
        address = parse_address(server)
    except ValueError:  # an announced address may be invalid
        return None
    try:
        ipaddress.ip_address(address.tls_hostname)
    except ValueError:
        return address
    return address._replace(tls_hostname=tls_hostname)


def parse_address(server: str) -> ServerAddress:
    """Return the address of a server in the settings."""
    host, port = host_and_port(server, PORT)
    return ServerAddress(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", host)


class ServerConnector:
    """Connects to the first usable server; remembers the servers of the cluster that servers announce."""

    def __init__(self, settings: NatsSettings, clock: Clock) -> None:
        self._settings = settings
        self.clock = clock
        self.message_ids = MessageIds()
        self._configured = [parse_address(server) for server in settings.servers]
        self._discovered_servers: list[ServerAddress] = []

    async def connect(self) -> NatsConnection:
        """Return a new connection.

        Raises:
            TransientError: No server is usable; the message has the reason for each.
        """
        reasons: dict[str, None] = {}
        for address in self._candidates():
            try:
                return await NatsConnection.open(self._settings, address, self)
            except TransientError as error:
                reasons[str(error)] = None
        raise TransientError("; ".join(reasons))

    def remember_servers(self, connection: NatsConnection) -> None:
        """Remember the servers that this connection's server has announced."""
        self._discovered_servers = connection.discovered_servers() or self._discovered_servers

    def _candidates(self) -> list[ServerAddress]:
        known = {each.server for each in self._configured}
        others = [each for each in self._discovered_servers if each.server not in known]
        # Random order, so that bridges spread over the cluster.
        return [*shuffled(self._configured, self.clock), *shuffled(others, self.clock)]
