"""Test what the proxy forwards, with a server that records all calls."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from bridge.clock import SystemClock
from bridge.containerd import http2, methods
from bridge.containerd.protos.waits_pb2 import TaskWait, WaitsRequest
from bridge.containerd.proxy import policy, waits
from bridge.containerd.proxy import relay as relay_module
from bridge.containerd.proxy import server as server_module
from bridge.containerd.proxy.policy import POLICIES
from bridge.containerd.proxy.relay import MAX_SUBSCRIPTIONS, Relay
from bridge.containerd.proxy.server import create_server
from bridge.containerd.rpc_errors import RpcError
from bridge.containerd.wait_calls import ContainerdWaitCalls
from bridge.core.containerd_model import ContainerKey
from tests.eventually import eventually_async
from tests.golden import Golden
from tests.simulator import wire

pytestmark = pytest.mark.real_time


class Recorder(grpc.GenericRpcHandler):
    """Record every call and respond with an empty message; `Wait` never returns."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.metadata: dict[str, str | bytes] = {}
        self.remaining: float | None = None
        self.waiting = asyncio.Event()
        self.cancelled = asyncio.Event()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        self.calls.append(handler_call_details.method)

        async def respond(_: bytes, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            self.metadata = dict(context.invocation_metadata() or ())
            self.remaining = context.time_remaining()
            if handler_call_details.method == methods.WAIT.path:
                self.waiting.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    self.cancelled.set()
            await context.write(b"")

        return grpc.unary_stream_rpc_method_handler(respond)


@pytest.fixture
async def recorder(tmp_path: Path) -> AsyncIterator[Recorder]:
    recorder = Recorder()
    server = grpc.aio.server(handlers=(recorder,))
    server.add_insecure_port(methods.target(f"{tmp_path}/c.sock"))
    await server.start()
    yield recorder
    await server.stop(0)


@pytest.fixture
async def relay(recorder: Recorder, tmp_path: Path) -> AsyncIterator[Relay]:  # noqa: ARG001 (the server behind the relay)
    relay = Relay(f"{tmp_path}/c.sock", SystemClock())
    server = create_server(relay)
    server.add_insecure_port(methods.target(f"{tmp_path}/p.sock"))
    await server.start()
    yield relay
    await server.stop(0)
    await relay.close()


@pytest.fixture
async def channel(relay: Relay, tmp_path: Path) -> AsyncIterator[grpc.aio.Channel]:  # noqa: ARG001 (the relay serves the channel)
    async with grpc.aio.insecure_channel(methods.target(f"{tmp_path}/p.sock")) as channel:
        yield channel


def method(channel: grpc.aio.Channel, path: str) -> grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]:
    return channel.unary_unary(path)


async def test_relay_forwards_every_allowed_method(channel: grpc.aio.Channel, recorder: Recorder) -> None:
    for rule in POLICIES:
        if rule.method is not methods.WAIT:
            request = b"" if rule.only_request is None else rule.only_request.SerializeToString()
            await method(channel, rule.method.path)(request)
    assert recorder.calls == [rule.method.path for rule in POLICIES if rule.method is not methods.WAIT]


async def test_relay_forwards_nothing_of_denied_call_and_counts_call(
    channel: grpc.aio.Channel, recorder: Recorder, relay: Relay, golden: Golden
) -> None:
    allowed = methods.VERSION.path
    variants = ["/x", allowed.lower(), f"{allowed}/", f"/{allowed}", f"{allowed}x", f"/a/../{allowed}", "/" * 999]
    names = ["/containerd.services.tasks.v1.Tasks/Kill", "/a.B/C", "/", *variants]
    for number, path in enumerate(names, 1):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(channel, path)(wire.field(1, "web"))
        assert caught.value.code() is StatusCode.PERMISSION_DENIED
        golden.entry("proxy_errors", "denied, method", caught.value.details() or "")
        assert relay.denied_calls.count == number
    with pytest.raises(grpc.aio.AioRpcError):
        await method(channel, methods.TASK.path)(wire.field(2, "exec"))
    assert relay.denied_calls.count == len(names) + 1
    assert recorder.calls == []


async def test_relay_forwards_only_namespace_metadata(channel: grpc.aio.Channel, recorder: Recorder) -> None:
    metadata = (
        ("containerd-namespace", "shop"),
        ("containerd-lease", "x"),
        ("authorization", "secret"),
        ("x-bin", b"1"),
    )
    await method(channel, methods.TASKS.path)(b"", metadata=metadata)
    assert recorder.metadata.keys() == {"containerd-namespace", "user-agent"}
    assert recorder.metadata["containerd-namespace"] == "shop"


async def test_relay_forwards_deadline(channel: grpc.aio.Channel, recorder: Recorder) -> None:
    await method(channel, methods.TASKS.path)(b"", timeout=50)
    assert recorder.remaining is not None
    assert 40 < recorder.remaining < 55  # gRPC rounds it up
    await method(channel, methods.TASKS.path)(b"")
    assert recorder.remaining is None


async def test_relay_forwards_cancellation(channel: grpc.aio.Channel, recorder: Recorder) -> None:
    call = method(channel, methods.WAIT.path)(wire.field(1, "web"))
    async with asyncio.timeout(60):
        await recorder.waiting.wait()
        call.cancel()
        await recorder.cancelled.wait()


async def test_waits_beyond_connection_limit_leave_room_for_calls(
    recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "MAX_CONNECTION_CALLS", 2)
    relay = Relay(f"{tmp_path}/c.sock", SystemClock())
    server = create_server(relay)
    server.add_insecure_port(methods.target(f"{tmp_path}/p.sock"))
    await server.start()
    results: list[object] = []
    calls = ContainerdWaitCalls(f"{tmp_path}/p.sock")
    for number in range(4):
        calls.start(ContainerKey("default", f"c{number}"), results.append)
    await eventually_async(lambda: recorder.calls.count(methods.WAIT.path) == 2)
    async with grpc.aio.insecure_channel(methods.target(f"{tmp_path}/p.sock")) as channel:
        await method(channel, methods.VERSION.path)(b"")
    assert recorder.calls.count(methods.WAIT.path) == 2
    assert results == []
    calls.close()
    await server.stop(0)
    await relay.close()


async def test_waits_of_one_call_are_relayed_and_end_with_it(
    relay: Relay, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waits, "MAX_WAITS", 2)
    results: list[object] = []
    calls = ContainerdWaitCalls(f"{tmp_path}/p.sock", proxied=True)
    for number in range(4):
        calls.start(ContainerKey("default", f"c{number}"), results.append)
    await eventually_async(lambda: recorder.calls.count(methods.WAIT.path) == 2 and len(results) == 2)
    assert [isinstance(each, RpcError) and each.code for each in results] == [http2.StatusCode.RESOURCE_EXHAUSTED] * 2
    assert relay.denied_calls.count == 0
    calls.close()
    async with asyncio.timeout(60):
        await recorder.cancelled.wait()
    again = ContainerdWaitCalls(f"{tmp_path}/p.sock", proxied=True)
    again.start(ContainerKey("default", "c5"), results.append)
    await eventually_async(lambda: recorder.calls.count(methods.WAIT.path) == 3)
    assert len(results) == 2
    again.close()


async def test_relay_limits_calls_that_wait(relay: Relay, tmp_path: Path) -> None:
    results: list[object] = []
    calls = [ContainerdWaitCalls(f"{tmp_path}/p.sock", proxied=True) for _ in range(MAX_SUBSCRIPTIONS + 1)]
    for each in calls:
        each.start(ContainerKey("default", "web"), results.append)
    await eventually_async(lambda: bool(results))
    assert [isinstance(each, RpcError) and each.code for each in results] == [http2.StatusCode.RESOURCE_EXHAUSTED]
    assert relay.denied_calls.count == 1
    for each in calls:
        each.close()


async def test_client_that_reads_no_ends_cannot_start_more_waits(
    relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []

    def parse_waits(raw: bytes) -> Sequence[TaskWait]:
        parsed.append(raw)
        return policy.parse_waits(raw)

    monkeypatch.setattr(waits, "MAX_WAITS", 0)  # each wait ends at once
    monkeypatch.setattr(waits, "parse_waits", parse_waits)
    request = WaitsRequest(waits=[{"number": 1, "namespace": "a", "container_id": "b"}] * 1_000).SerializeToString()
    options = [("grpc.http2.bdp_probe", 0)]  # the client reads at most 64 KiB ahead, which is the ends of 2,000 waits
    async with grpc.aio.insecure_channel(methods.target(f"{tmp_path}/p.sock"), options=options) as channel:
        call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(methods.WAITS.path)()
        for _ in range(30):
            await call.write(request)
        await asyncio.sleep(2)
        assert 2 <= len(parsed) <= 6
        while len(parsed) < 12:
            await call.read()
        call.cancel()
    assert relay.denied_calls.count == 0


async def test_calls_whose_client_reads_nothing_are_limited(
    relay: Relay, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gRPC keeps the message of such a call even when the relay has ended it."""
    monkeypatch.setattr(waits, "MAX_WAITS", 0)
    monkeypatch.setattr(relay_module, "WRITE_TIMEOUT_SECONDS", 1.0)
    monkeypatch.setattr(relay_module, "MAX_STREAMING_CALLS", 2)
    request = WaitsRequest(waits=[{"number": 1, "namespace": "a", "container_id": "b"}] * 1_000).SerializeToString()
    options = [("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(methods.target(f"{tmp_path}/p.sock"), options=options) as channel:
        stalled: list[grpc.aio.StreamStreamCall[bytes, bytes]] = []
        for _ in range(2):
            stalled.append(channel.stream_stream(methods.WAITS.path)())
            for _ in range(6):
                await stalled[-1].write(request)
        await eventually_async(lambda: relay.denied_calls.count == 2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(channel, methods.TASKS.path)(b"")
        assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED
        await method(channel, methods.VERSION.path)(b"")
        for call in stalled:
            call.cancel()
        await eventually_async(lambda: relay._streaming_calls == 0)
        await method(channel, methods.TASKS.path)(b"")


async def test_relay_returns_unavailable_when_containerd_is_down(tmp_path: Path, golden: Golden) -> None:
    relay = Relay(f"{tmp_path}/nothing.sock", SystemClock())
    server = create_server(relay)
    server.add_insecure_port(methods.target(f"{tmp_path}/p.sock"))
    await server.start()
    async with grpc.aio.insecure_channel(methods.target(f"{tmp_path}/p.sock")) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await method(channel, methods.VERSION.path)(b"")
        assert caught.value.code() is StatusCode.UNAVAILABLE
        details = caught.value.details() or ""
        assert f"{tmp_path}/nothing.sock" in details
        golden.entry("proxy_errors", "containerd unavailable", details, GRPC=re.compile("failed to connect.*"))
    await server.stop(0)
    await relay.close()
