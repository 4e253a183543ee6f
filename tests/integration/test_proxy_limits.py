"""`whalebridge proxy` on real containerds: limits of memory and connections, and its socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from bridge.containerd import methods
from bridge.containerd.client import ContainerdClient
from bridge.containerd.event_stream import ContainerdEventStream
from bridge.containerd.proxy import relay, server
from bridge.containerd.wait_calls import ContainerdWaitCalls
from bridge.core.containerd_model import ContainerKey, Event, ExitStatus
from bridge.core.errors import BridgeError, StreamOverflowError
from tests.eventually import eventually_async
from tests.integration.commands import whalebridge
from tests.integration.engines import one_engine
from tests.integration.proxy_calls import (
    DEFAULT,
    KEEP_ALL,
    MIB,
    events_before_marker,
    first_messages,
    publish_bulk,
    stream_call,
    unary_call,
    wait_ready,
)
from tests.naming import assert_names
from tests.proxy_process import ProxyProcess
from tests.simulator import wire
from tests.simulator.containerd import SimulatedContainerd
from tests.testbed.containerd import Containerd

# Memory of gRPC and Python on top of the limit; a third of it was measured.
SLACK = 48 * MIB
NEAR_LIMIT_MIB = relay.SUBSCRIBER_BUFFER_BYTES // MIB - 1  # events of one MiB
QUEUED_BYTES = 80 * 1024  # measured: 50 KiB
WAIT_BYTES = 3 * 1024  # measured: less than 1 KiB


class TestLimits:
    @one_engine
    async def test_proxy_ends_stream_when_client_stops_reading(
        self, engine: Containerd, proxied: grpc.aio.Channel, proxy: ProxyProcess
    ) -> None:
        stalled = stream_call(proxied, methods.SUBSCRIBE.path)(b"")
        await first_messages(proxy.address, stalled)
        before = proxy.peak_bytes()
        await publish_bulk(engine, 3 * relay.SUBSCRIBER_BUFFER_BYTES // MIB)
        async with ContainerdClient(proxy.address, KEEP_ALL) as client:
            assert await client.health()
            other = await client.subscribe()
            await events_before_marker(proxy.address, other)
            other.close()
        assert proxy.peak_bytes() - before < relay.SUBSCRIBER_BUFFER_BYTES + SLACK
        async with asyncio.timeout(60):
            assert await count_large_events(stalled) < 3 * relay.SUBSCRIBER_BUFFER_BYTES // MIB
            assert await stalled.code() is StatusCode.RESOURCE_EXHAUSTED

    @one_engine
    async def test_client_raises_overflow_at_subscription_limit(self, proxy: ProxyProcess) -> None:
        async with ContainerdClient(proxy.address, KEEP_ALL) as client:
            streams = [await client.subscribe() for _ in range(relay.MAX_SUBSCRIPTIONS + 1)]
            batches = [asyncio.ensure_future(each.batch()) for each in streams]
            async with asyncio.timeout(30):
                while not failures(batches):  # noqa: ASYNC110 (one of them fails, it is unknown which)
                    await asyncio.sleep(0.1)
            await asyncio.sleep(1)  # for further failures, which must not occur
            errors = failures(batches)
        await asyncio.gather(*batches, return_exceptions=True)
        (error,) = errors
        assert isinstance(error, StreamOverflowError)
        assert_names(error, relay.MAX_SUBSCRIPTIONS)

    @one_engine
    async def test_proxy_limits_open_connections(self, proxy: ProxyProcess) -> None:
        sockets = [socket.socket(socket.AF_UNIX) for _ in range(server.MAX_CONNECTIONS + 40)]
        try:
            for each in sockets:
                each.settimeout(5)
                each.connect(proxy.address)
            await asyncio.sleep(0.5)
            descriptors = len(os.listdir(f"/proc/{proxy.process.pid}/fd"))
            assert descriptors < server.MAX_CONNECTIONS + 40
        finally:
            for each in sockets:
                each.close()
        await wait_ready(proxy)

    @one_engine
    async def test_proxy_holds_waiting_calls_in_bounded_memory(
        self, proxy: ProxyProcess, proxied: grpc.aio.Channel, container: str
    ) -> None:
        """As many calls as a client can make need little memory, and other calls still pass."""
        before = proxy.peak_bytes()
        wait = unary_call(proxied, methods.WAIT.path)
        calls = [wait(wire.field(1, container), metadata=DEFAULT) for _ in range(2_000)]
        await asyncio.sleep(8)
        assert not [call for call in calls if call.done()]
        assert proxy.peak_bytes() - before < 2_000 * QUEUED_BYTES
        await wait_ready(proxy)
        for call in calls:
            call.cancel()

    async def test_proxy_waits_for_four_thousand_tasks_in_bounded_memory(self, tmp_path: Path) -> None:
        results: dict[str, ExitStatus | BridgeError | None] = {}

        def wait(calls: ContainerdWaitCalls, id_: str) -> None:
            calls.start(ContainerKey("large", id_), lambda result: results.update({id_: result}))

        async with SimulatedContainerd(tmp_path / "c.sock") as containerd:
            tasks = [ContainerKey("large", f"c{number}") for number in range(4_000)]
            for key in tasks:
                containerd.state.run(key)
            with ProxyProcess(containerd.address, tmp_path) as proxy:
                before = proxy.peak_bytes()
                async with ContainerdClient(proxy.address, KEEP_ALL) as client:
                    await client.engine()
                    calls = client.wait_calls()
                    for key in tasks:
                        wait(calls, key.id)
                    await asyncio.sleep(8)
                    assert results == {}
                    for key in tasks[::400]:
                        containerd.state.exit(key, status=7)
                    await eventually_async(lambda: len(results) == 10)
                assert proxy.peak_bytes() - before < 4_000 * WAIT_BYTES + SLACK / 4
        assert results.keys() == {key.id for key in tasks[::400]}
        assert [each.exit_status for each in results.values() if isinstance(each, ExitStatus)] == [7] * 10

    async def test_proxy_lists_ten_thousand_containers_in_bounded_memory(self, tmp_path: Path) -> None:
        """The simulated containerd sends 68 MiB; test_client.py has listings of real ones."""
        labels = {"com.docker.compose.project": "p" * 20, "nerdctl/name": "n" * 20}
        async with SimulatedContainerd(tmp_path / "c.sock") as containerd:
            for number in range(10_000):
                containerd.state.create(ContainerKey("large", f"c{number}"), labels, spec_bytes=7_000)
            with ProxyProcess(containerd.address, tmp_path) as proxy:
                before = proxy.peak_bytes()
                async with ContainerdClient(proxy.address, KEEP_ALL) as client:
                    containers = [container async for container in client.containers("large")]
                assert len(containers) == 10_000
                assert proxy.peak_bytes() - before < 64 * MIB


# Clients are disconnected after 3 s, not 30 s.
IMPATIENT = """
import runpy
from bridge.containerd.proxy import relay
relay.WRITE_TIMEOUT_SECONDS = 3.0
runpy.run_module("bridge", run_name="__main__", alter_sys=True)
"""


@one_engine
class TestWriteTimeout:
    @pytest.fixture
    def proxy(self, engine: Containerd, tmp_path: Path) -> Iterator[ProxyProcess]:
        proxy = ProxyProcess(engine.address, tmp_path)
        proxy.command = [sys.executable, "-c", IMPATIENT, *proxy.command[3:]]
        with proxy:
            yield proxy

    async def test_proxy_frees_subscriptions_of_stalled_clients(
        self, engine: Containerd, proxied: grpc.aio.Channel, proxy: ProxyProcess
    ) -> None:
        """The queued events fit into the buffer of the proxy, but not into the socket buffer of a stalled client."""
        stalled = [stream_call(proxied, methods.SUBSCRIBE.path)(b"") for _ in range(relay.MAX_SUBSCRIPTIONS)]
        await first_messages(proxy.address, *stalled)
        await publish_bulk(engine, NEAR_LIMIT_MIB)
        async with ContainerdClient(proxy.address, KEEP_ALL) as client, asyncio.timeout(60):
            # The write timeout of each client starts when the proxy writes its events.
            others = [await subscribe_when_admitted(client, proxy) for _ in range(relay.MAX_SUBSCRIPTIONS)]
        for each in others:
            each.close()
        for call in stalled:
            assert await count_large_events(call) < NEAR_LIMIT_MIB
            assert await call.code() is StatusCode.RESOURCE_EXHAUSTED


async def subscribe_when_admitted(client: ContainerdClient, proxy: ProxyProcess) -> ContainerdEventStream:
    """Subscribe when the proxy has a free subscription."""
    while True:
        with contextlib.suppress(StreamOverflowError):
            other = await client.subscribe()
            await events_before_marker(proxy.address, other)
            return other
        await asyncio.sleep(0.5)


def failures(batches: Sequence[asyncio.Future[Sequence[Event]]]) -> list[BaseException]:
    """Return the errors of ended streams; streams with events of earlier tests are still open."""
    return [error for each in batches if each.done() and (error := each.exception()) is not None]


async def count_large_events(call: grpc.aio.UnaryStreamCall[bytes, bytes]) -> int:
    """Return the number of published events that arrive until the end of the call."""
    count = 0
    with contextlib.suppress(grpc.aio.AioRpcError):
        while isinstance(each := await call.read(), bytes):
            count += len(each) > MIB
    return count


@one_engine
class TestSocket:
    def test_proxy_socket_has_configured_mode_and_group(self, engine: Containerd, tmp_path: Path) -> None:
        with ProxyProcess(engine.address, tmp_path, "--socket-mode=0640", "--socket-group=65534") as proxy:
            status = os.stat(proxy.address)
            assert (status.st_mode & 0o777, status.st_gid) == (0o640, 65534)

    def test_proxy_replaces_stale_socket(self, engine: Containerd, tmp_path: Path) -> None:
        proxy = ProxyProcess(engine.address, tmp_path)
        proxy.start()
        proxy.process.kill()
        proxy.process.wait()
        assert os.path.exists(proxy.address)
        with proxy:
            assert os.stat(proxy.address).st_mode & 0o777 == 0o660

    def test_proxy_exits_1_when_socket_path_is_symlink(self, engine: Containerd, tmp_path: Path) -> None:
        (tmp_path / "link.sock").symlink_to(engine.address)
        before = os.stat(engine.address)
        result = whalebridge("proxy", "--containerd", "/tmp/other.sock", "--listen", f"{tmp_path}/link.sock")
        assert result.returncode == 1
        assert_names(result.stderr, tmp_path / "link.sock")
        assert os.stat(engine.address) == before

    def test_proxy_socket_inherits_group_of_setgid_directory(self, engine: Containerd, tmp_path: Path) -> None:
        """An emptyDir with an fsGroup has the set-group-ID bit."""
        os.chown(tmp_path, -1, 65534)
        tmp_path.chmod(0o2770)
        with ProxyProcess(engine.address, tmp_path) as proxy:
            assert os.stat(proxy.address).st_gid == 65534

    def test_proxy_exits_1_when_socket_is_in_use(self, engine: Containerd, proxy: ProxyProcess) -> None:
        result = whalebridge("proxy", "--containerd", engine.address, "--listen", proxy.address)
        assert result.returncode == 1
        assert_names(result.stderr, "whalebridge: ", proxy.address)
        assert result.stderr.count("\n") == 1
