"""Relays calls to containerd and responses to the client, as ``policy`` allows.

Each call is relayed in one of three ways:
- Small responses are relayed as they arrive.
- Large responses are relayed as a stream, even if there is only one (the wire format is the same). The number of such
  calls is limited, each message waits until the client has room for it, and a client that reads nothing for a while
  loses its call, because containerd keeps a database transaction open while it lists.
- Events are read immediately into the bounded queue of a ``RawEventStream``, because containerd's queue for a slow
  subscriber is unbounded. A client that is too slow loses its stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

import grpc
import structlog

from bridge.containerd import envelope_batches, methods
from bridge.containerd.event_stream import RawEventStream
from bridge.containerd.http2 import StatusCode
from bridge.containerd.protos.events_pb2 import PublishResponse
from bridge.containerd.proxy import policy
from bridge.containerd.proxy.policy import CallDenied, Policy
from bridge.containerd.proxy.waits import PendingWaits, TaskWaits
from bridge.containerd.socket_probe import probe
from bridge.core.errors import BridgeError, StreamOverflowError, TransientError
from bridge.core.ports import Clock
from bridge.core.time import to_seconds
from bridge.task_groups import task_group
from bridge.telemetry.rate_limit import RateLimiter
from bridge.telemetry.safe_text import one_line, printable

MAX_SUBSCRIPTIONS = 8  # at a time, and as many calls of Waits.Wait; the bridge has one of each, and briefly two
SUBSCRIBER_BUFFER_BYTES = 16 * 1024 * 1024  # of unread events, for each subscription
# At a time, of lists, subscriptions and calls of Waits.Wait. A call whose client reads nothing ends after a while, but
# gRPC keeps its last message, of up to 16 MiB, until the client disconnects: it has no way to drop that.
MAX_STREAMING_CALLS = 32
MAX_LARGE_CALLS = 4  # at a time, others wait; each holds up to 16 MiB from containerd and its filtered copy
WRITE_TIMEOUT_SECONDS = 30.0  # until a client that reads nothing loses its call
MARKERS_PER_SECOND = 20.0
MARKER_BURST = 100
_PROBE_SECONDS = 2.0
_MAX_METHOD_LENGTH = 120  # characters of a method's name, which can be any text that a client sends
_log = structlog.get_logger(__name__)

_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
_Result = TypeVar("_Result")
_Request = TypeVar("_Request")
_Behavior: TypeAlias = Callable[[_Request, _Context], Awaitable[_Result]]
_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class Relay(grpc.GenericRpcHandler):
    """Handles every gRPC method; create, use and close it on one event loop."""

    def __init__(self, path: str, clock: Clock) -> None:
        self.denied_calls = DeniedCalls(clock)
        self._path = path
        self._clock = clock
        self._channel = grpc.aio.insecure_channel(methods.target(path), options=methods.channel_options())
        self._marker_bucket = TokenBucket(clock, per_second=MARKERS_PER_SECOND, burst=MARKER_BURST)
        self._large_calls = asyncio.Semaphore(MAX_LARGE_CALLS)
        self._streaming_calls = self._subscribers = self._waiting_clients = 0
        self._pending_waits = PendingWaits()
        self._handlers = {each.method.path: self._policy_handler(each) for each in policy.POLICIES}
        self._handlers[methods.SUBSCRIBE.path] = self._streaming_handler(methods.SUBSCRIBE.path, self._subscribe)
        self._handlers[methods.WAITS.path] = self._waits_handler()
        self._handlers[methods.PUBLISH.path] = self._unary_handler(methods.PUBLISH.path, self._publish_marker)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler:
        """Return the handler of a call; never None, which would mean that the method does not exist."""
        method = handler_call_details.method
        return self._handlers.get(method) or self._denying_handler(method)

    async def close(self) -> None:
        """Close the connection to containerd."""
        await self._channel.close()

    # --- all calls ---

    def _policy_handler(self, call_policy: Policy) -> _Handler:
        if call_policy.large_response:
            return self._streaming_handler(call_policy.method.path, partial(self._relay_stream, call_policy))
        return self._unary_handler(call_policy.method.path, partial(self._relay_unary, call_policy))

    def _unary_handler(self, method: str, behavior: _Behavior[bytes, bytes]) -> _Handler:
        async def handle(raw: bytes, context: _Context) -> bytes:
            return await self._run_guarded(method, behavior, raw, context)

        return grpc.unary_unary_rpc_method_handler(handle)

    def _streaming_handler(self, method: str, behavior: _Behavior[bytes, None]) -> _Handler:
        async def handle(raw: bytes, context: _Context) -> None:
            await self._run_streaming(method, behavior, raw, context)

        return grpc.unary_stream_rpc_method_handler(handle)

    def _waits_handler(self) -> _Handler:
        async def handle(requests: AsyncIterator[bytes], context: _Context) -> None:
            await self._run_streaming(methods.WAITS.path, self._wait, requests, context)

        return grpc.stream_stream_rpc_method_handler(handle)

    async def _run_streaming(
        self, method: str, behavior: _Behavior[_Request, None], request: _Request, context: _Context
    ) -> None:
        """Relay a call with messages of any size; it counts until gRPC has sent all of them, and the status."""
        self._streaming_calls += 1
        try:
            if self._streaming_calls > MAX_STREAMING_CALLS:
                behavior = self._deny_streaming
            await self._run_guarded(method, behavior, request, context)
        finally:
            self._streaming_calls -= 1

    async def _deny_streaming(self, _: object, __: _Context) -> None:
        text = f"{MAX_STREAMING_CALLS} lists, subscriptions and waits are open already, or their clients read nothing"
        raise CallDenied(StatusCode.RESOURCE_EXHAUSTED, text)

    async def _run_guarded(
        self, method: str, behavior: _Behavior[_Request, _Result], request: _Request, context: _Context
    ) -> _Result:
        """Relay a call; if it is denied or fails, abort it with the corresponding status."""
        try:
            return await behavior(request, context)
        except (CallDenied, TimeoutError) as error:
            denied = error if isinstance(error, CallDenied) else _too_slow_error()
            self.denied_calls.add(method, denied.code.name, str(denied))
            await context.abort(_grpc_code(denied.code), str(denied))
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), self._error_details(error))

    def _denying_handler(self, method: str) -> _Handler:
        """Deny a call without reading its requests, which could be none or an endless stream.

        The status is PERMISSION_DENIED: UNIMPLEMENTED would make clients treat containerd as an older version.
        """

        async def deny(_: AsyncIterator[bytes], context: _Context) -> None:
            code = StatusCode.PERMISSION_DENIED
            self.denied_calls.add(method, code.name, "the method is not allowed")
            await context.abort(
                _grpc_code(code), "whalebridge's read-only proxy does not allow this call to containerd"
            )

        return grpc.stream_stream_rpc_method_handler(deny)

    def _error_details(self, error: grpc.aio.AioRpcError) -> str:
        details = one_line(error.details() or "")
        if error.code() is grpc.StatusCode.UNAVAILABLE:
            return f"the proxy cannot connect to containerd at {self._path}: {details}"
        return details

    # --- requests ---

    async def _relay_unary(self, call_policy: Policy, raw: bytes, context: _Context) -> bytes:
        request, namespace = call_policy.rebuild_request(raw), policy.get_namespace(_metadata(context))
        response = await self._call(call_policy.method.path, request, namespace, context)
        return (
            await self._add_pid(response)
            if call_policy.method is methods.SERVER
            else call_policy.filter_response(response)
        )

    async def _relay_stream(self, call_policy: Policy, raw: bytes, context: _Context) -> None:
        request, namespace = call_policy.rebuild_request(raw), policy.get_namespace(_metadata(context))
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(call_policy.method.path)
        async with self._large_calls:
            responses = method(request, timeout=context.time_remaining(), metadata=_headers(namespace))
            try:
                async for response in responses:
                    await self._write(context, call_policy.filter_response(response))
            finally:
                responses.cancel()

    async def _add_pid(self, raw: bytes) -> bytes:
        """Add containerd's process id, from the socket or from the response: the bridge's socket has the proxy's."""
        server = policy.strip_unknown(methods.SERVER, raw)
        peer_pid = 0
        with contextlib.suppress(BridgeError):
            peer_pid = (await probe(self._path, _PROBE_SECONDS, self._clock)).pid
        server.proxied_pid = peer_pid or server.pid
        return bytes(server.SerializeToString())

    async def _publish_marker(self, raw: bytes, context: _Context) -> bytes:
        marker = policy.rebuild_marker(raw, policy.get_namespace(_metadata(context)))
        if not self._marker_bucket.try_take():
            raise CallDenied(StatusCode.RESOURCE_EXHAUSTED, f"more than {MARKERS_PER_SECOND:g} markers per second")
        await self._call(methods.PUBLISH.path, marker, methods.MARKER_NAMESPACE, context)
        return PublishResponse(proxy_denied_calls=self.denied_calls.count).SerializeToString()

    async def _call(self, method: str, request: bytes, namespace: str, context: _Context) -> bytes:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)
        return await call(request, timeout=context.time_remaining(), metadata=_headers(namespace))

    # --- waits for exits ---

    async def _wait(self, requests: AsyncIterator[bytes], context: _Context) -> None:
        """Relay waits until the client ends the call."""
        if self._waiting_clients >= MAX_SUBSCRIPTIONS:
            raise CallDenied(StatusCode.RESOURCE_EXHAUSTED, f"{MAX_SUBSCRIPTIONS} calls wait for tasks already")
        self._waiting_clients += 1
        waits = TaskWaits(self._path, self._pending_waits)
        try:
            await context.send_initial_metadata(())  # so that the client knows that this proxy has the method
            async with task_group() as tasks:
                relaying = tasks.create_task(waits.relay_ends(partial(self._write, context)))
                async for request in requests:
                    waits.start(request)
                    await waits.wait_until_read()
                relaying.cancel()
        finally:
            waits.close()
            self._waiting_clients -= 1

    # --- events ---

    async def _subscribe(self, raw: bytes, context: _Context) -> None:
        policy.check_subscription(raw)
        if self._subscribers >= MAX_SUBSCRIPTIONS:
            raise CallDenied(StatusCode.RESOURCE_EXHAUSTED, f"{MAX_SUBSCRIPTIONS} subscriptions are already open")
        self._subscribers += 1
        stream = RawEventStream(self._path, buffer_bytes=SUBSCRIBER_BUFFER_BYTES)
        try:
            await self._relay_events(stream, context)
        except StreamOverflowError as error:
            raise _too_slow_error() from error
        except TransientError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, one_line(str(error)))
        finally:
            stream.close()
            self._subscribers -= 1

    async def _relay_events(self, stream: RawEventStream, context: _Context) -> None:
        batched = envelope_batches.supports_batches(_metadata(context))
        await context.send_initial_metadata((envelope_batches.HEADER,) if batched else ())
        while True:
            envelopes = await stream.raw_batch()
            for message in envelope_batches.batch(envelopes) if batched else envelopes:
                await self._write(context, message)

    async def _write(self, context: _Context, message: bytes) -> None:
        """Send a message and wait until the client has room for it.

        Raises:
            TimeoutError: The client reads nothing.
        """
        async with self._clock.timeout(WRITE_TIMEOUT_SECONDS):
            await context.write(message)


def _grpc_code(code: StatusCode) -> grpc.StatusCode:
    return grpc.StatusCode[code.name]


def _too_slow_error() -> CallDenied:
    text = "the client is too slow; its unsent messages are dropped"
    return CallDenied(StatusCode.RESOURCE_EXHAUSTED, text)


def _metadata(context: _Context) -> Sequence[tuple[str, str | bytes]]:
    return [(key, value) for key, value in context.invocation_metadata() or ()]


def _headers(namespace: str) -> tuple[tuple[str, str], ...]:
    return ((methods.NAMESPACE_HEADER, namespace),) if namespace else ()


class DeniedCalls:
    """Counts denied calls, and logs at most one line per method and minute."""

    def __init__(self, clock: Clock) -> None:
        self.count = 0
        self._rate_limiter = RateLimiter(clock)

    def add(self, method: str, status: str, reason: str) -> None:
        """Count and log a denied call."""
        self.count += 1
        name = printable(method[:_MAX_METHOD_LENGTH])
        self._rate_limiter.log(
            _log.warning,
            (name, status),
            "call_denied",
            method=name,
            status=status,
            reason=reason,
            denied_total=self.count,
        )


class TokenBucket:
    """A rate limit: ``burst`` tokens at once, refilled with ``per_second``."""

    def __init__(self, clock: Clock, *, per_second: float, burst: int) -> None:
        self._clock = clock
        self._per_second = per_second
        self._burst = burst
        self._tokens = float(burst)
        self._refilled_at = clock.now().monotonic

    def try_take(self) -> bool:
        """Take a token if there is one; return whether there was."""
        now = self._clock.now().monotonic
        self._tokens = min(self._burst, self._tokens + to_seconds(now - self._refilled_at) * self._per_second)
        self._refilled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
