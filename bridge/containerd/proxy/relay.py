"""Passes calls on to containerd, and the answers back; the rules say which, and what of them.

There are three ways. A small answer is passed as it comes. Answers that can be large are passed as a stream, also where
there is one only (on the wire that is the same): few at a time, each when the client has room for it, and a client that
takes nothing for a while is given up, since containerd keeps a transaction of its database open while it lists. Events
are drained at once into the bounded buffer of a ``RawStream``, since containerd queues without bound for a slow
subscriber; a client that is too slow for that loses its stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias, TypeVar

import grpc
from grpc import StatusCode

from bridge.containerd import packing, rpc
from bridge.containerd.endpoint import probe
from bridge.containerd.proxy import rules
from bridge.containerd.proxy.refusals import Rate, Refusals
from bridge.containerd.proxy.rules import CallRefused, Rule
from bridge.containerd.stream import RawStream
from bridge.core.errors import BridgeError, StreamOverflowError, TransientError
from bridge.core.ports import Clock
from bridge.telemetry.text import one_line

SUBSCRIPTIONS = 8  # at a time: the bridge has one, two for a moment
SUBSCRIBER_BYTES = 16 * 1024 * 1024  # of events that a client has not taken yet, for each of them
LARGE_CALLS = 4  # at a time, more wait: each holds up to 16 MiB of containerd's and what is left of it
WRITE_SECONDS = 30.0  # a client that takes nothing for so long is given up
MARKS_PER_SECOND = 20.0
MARKS_AT_ONCE = 100
_PROBE_SECONDS = 2.0

_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
_Result = TypeVar("_Result")
_Behaviour: TypeAlias = Callable[[bytes, _Context], Awaitable[_Result]]
_Handler: TypeAlias = "grpc.RpcMethodHandler[bytes, bytes]"


class Relay(grpc.GenericRpcHandler):
    """The handler of every method there is; to be made, used and closed on one event loop."""

    def __init__(self, path: str, clock: Clock) -> None:
        self.refusals = Refusals(clock)
        self._path = path
        self._channel = grpc.aio.insecure_channel(rpc.target(path), options=rpc.channel_options())
        self._marks = Rate(clock, per_second=MARKS_PER_SECOND, burst=MARKS_AT_ONCE)
        self._large = asyncio.Semaphore(LARGE_CALLS)
        self._subscribers = 0
        self._handlers = {rule.method.path: self._passing(rule) for rule in rules.RULES}
        self._handlers[rpc.SUBSCRIBE.path] = self._streaming(rpc.SUBSCRIBE.path, self._subscribe)
        self._handlers[rpc.PUBLISH.path] = self._unary(rpc.PUBLISH.path, self._publish)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> _Handler:
        """Return who answers a call; never None, which would say that there is no such method."""
        method = handler_call_details.method
        return self._handlers.get(method) or self._refusing(method)

    async def close(self) -> None:
        """Let go of containerd."""
        await self._channel.close()

    # --- all calls ---

    def _passing(self, rule: Rule) -> _Handler:
        if rule.large:
            return self._streaming(rule.method.path, partial(self._list, rule))
        return self._unary(rule.method.path, partial(self._ask, rule))

    def _unary(self, method: str, behaviour: _Behaviour[bytes]) -> _Handler:
        async def handle(raw: bytes, context: _Context) -> bytes:
            return await self._guarded(method, behaviour, raw, context)

        return grpc.unary_unary_rpc_method_handler(handle)

    def _streaming(self, method: str, behaviour: _Behaviour[None]) -> _Handler:
        async def handle(raw: bytes, context: _Context) -> None:
            await self._guarded(method, behaviour, raw, context)

        return grpc.unary_stream_rpc_method_handler(handle)

    async def _guarded(self, method: str, behaviour: _Behaviour[_Result], raw: bytes, context: _Context) -> _Result:
        """Let a call pass; where it does not, or fails, end it with the status that says so."""
        try:
            return await behaviour(raw, context)
        except (CallRefused, TimeoutError) as error:
            refused = error if isinstance(error, CallRefused) else _too_slow()
            self.refusals.add(method, refused.code.name, str(refused))
            await context.abort(refused.code, str(refused))
        except grpc.aio.AioRpcError as error:
            await context.abort(error.code(), self._told(error))

    def _refusing(self, method: str) -> _Handler:
        """Refuse without reading what was sent, be it no message, or endless ones.

        PERMISSION_DENIED, for the method exists: UNIMPLEMENTED would let clients take containerd for an older one.
        """

        async def refuse(_: AsyncIterator[bytes], context: _Context) -> None:
            code = StatusCode.PERMISSION_DENIED
            self.refusals.add(method, code.name, "it is none of the calls that pass")
            await context.abort(code, "whalebridge's read-only proxy does not pass this call to containerd")

        return grpc.stream_stream_rpc_method_handler(refuse)

    def _told(self, error: grpc.aio.AioRpcError) -> str:
        details = one_line(error.details() or "")
        if error.code() is StatusCode.UNAVAILABLE:
            return f"the proxy cannot reach containerd at {self._path}: {details}"
        return details

    # --- questions ---

    async def _ask(self, rule: Rule, raw: bytes, context: _Context) -> bytes:
        question, namespace = rule.question(raw), rules.namespace(_metadata(context))
        answer = await self._call(rule.method.path, question, namespace, context)
        return await self._with_pid(answer) if rule.method is rpc.SERVER else rule.answer(answer)

    async def _list(self, rule: Rule, raw: bytes, context: _Context) -> None:
        question, namespace = rule.question(raw), rules.namespace(_metadata(context))
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = self._channel.unary_stream(rule.method.path)
        async with self._large:
            answers = method(question, timeout=context.time_remaining(), metadata=_headers(namespace))
            try:
                async for answer in answers:
                    await _write(context, rule.answer(answer))
            finally:
                answers.cancel()

    async def _with_pid(self, raw: bytes) -> bytes:
        """Add which process containerd is, as the socket tells or it says itself: the bridge sees the proxy's."""
        server = rules.known(rpc.SERVER, raw)
        seen = 0
        with contextlib.suppress(BridgeError):
            seen = (await probe(self._path, _PROBE_SECONDS)).pid
        server.proxied_pid = seen or server.pid
        return bytes(server.SerializeToString())

    async def _publish(self, raw: bytes, context: _Context) -> bytes:
        mark = rules.mark(raw, rules.namespace(_metadata(context)))
        if not self._marks.passes():
            raise CallRefused(StatusCode.RESOURCE_EXHAUSTED, f"more than {MARKS_PER_SECOND:g} marks a second")
        await self._call(rpc.PUBLISH.path, mark, rpc.MARK_NAMESPACE, context)
        return b""

    async def _call(self, method: str, question: bytes, namespace: str, context: _Context) -> bytes:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)
        return await call(question, timeout=context.time_remaining(), metadata=_headers(namespace))

    # --- events ---

    async def _subscribe(self, raw: bytes, context: _Context) -> None:
        rules.check_subscription(raw)
        if self._subscribers >= SUBSCRIPTIONS:
            raise CallRefused(StatusCode.RESOURCE_EXHAUSTED, f"{SUBSCRIPTIONS} subscriptions are open already")
        self._subscribers += 1
        stream = RawStream(self._path, buffer_bytes=SUBSCRIBER_BYTES)
        try:
            await _pass_events(stream, context)
        except StreamOverflowError as error:
            raise _too_slow() from error
        except TransientError as error:
            await context.abort(StatusCode.UNAVAILABLE, one_line(str(error)))
        finally:
            stream.close()
            self._subscribers -= 1


async def _pass_events(stream: RawStream, context: _Context) -> None:
    packed = packing.is_packed(_metadata(context))
    await context.send_initial_metadata((packing.HEADER,) if packed else ())
    while True:
        envelopes = await stream.raw_batch()
        for message in packing.pack(envelopes) if packed else envelopes:
            await _write(context, message)


async def _write(context: _Context, message: bytes) -> None:
    """Send a message; it is on its way, within what the client has room for, when this returns.

    Raises:
        TimeoutError: The client takes nothing.
    """
    async with asyncio.timeout(WRITE_SECONDS):
        await context.write(message)


def _too_slow() -> CallRefused:
    text = "the client is too slow: what was still to be sent is dropped"
    return CallRefused(StatusCode.RESOURCE_EXHAUSTED, text)


def _metadata(context: _Context) -> Sequence[tuple[str, str | bytes]]:
    return [(key, value) for key, value in context.invocation_metadata() or ()]


def _headers(namespace: str) -> tuple[tuple[str, str], ...]:
    return ((rpc.NAMESPACE_HEADER, namespace),) if namespace else ()
