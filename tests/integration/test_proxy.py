"""`whalebridge proxy` on real containerds: it allows only the calls of the bridge."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from pathlib import Path
from typing import cast

import grpc
import pytest
from grpc import StatusCode

from bridge.containerd import http2, methods
from bridge.containerd.client import ContainerdClient
from bridge.containerd.event_stream import ContainerdEventStream
from bridge.containerd.protos import containers_pb2
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.containerd.proxy import policy
from bridge.containerd.rpc_errors import RpcError
from bridge.core.containerd_model import Event, Marker
from tests.integration import api_methods
from tests.integration.engines import one_engine
from tests.integration.proxy_calls import (
    DEFAULT,
    KEEP_ALL,
    MIB,
    call_outcome,
    collect_garbage,
    containerd_state,
    events_before_marker,
    first_messages,
    send_garbage,
    stream_call,
    unary_call,
    wait_ready,
    without_container_events,
)
from tests.proxy_process import ProxyProcess
from tests.simulator import wire
from tests.testbed.containerd import Containerd
from tests.testbed.process import run

ALLOWED_METHODS = {rule.method.path for rule in policy.POLICIES} | {
    methods.SUBSCRIBE.path,
    methods.PUBLISH.path,
}


@one_engine
class TestDeniedCalls:
    async def test_proxy_denies_every_method_not_allowed(
        self, engine: Containerd, proxy: ProxyProcess, proxied: grpc.aio.Channel, container: str
    ) -> None:
        await asyncio.to_thread(collect_garbage, engine)  # of earlier tests
        before = await asyncio.to_thread(containerd_state, engine)
        began = time.monotonic()
        direct = ContainerdEventStream(engine.address)
        await events_before_marker(engine.address, direct)
        denied = [method for method in api_methods.listed_methods() if method not in ALLOWED_METHODS]
        assert len(denied) > 200
        for method in denied:
            # Field 1 of most requests is the id of their object; a deletion needs no other field.
            for requests in ((wire.field(1, container),), (b"",), ()):
                assert await call_outcome(proxied, method, *requests) is StatusCode.PERMISSION_DENIED, method
        assert await asyncio.to_thread(containerd_state, engine) == before
        assert (await asyncio.to_thread(engine.tasks))[container] == "RUNNING"
        await asyncio.sleep(0.2)
        assert without_container_events(direct.drain(), kept_id=container) == []
        direct.close()
        lines = proxy.log_lines("call_denied")
        assert len(lines) <= 110 * (1 + (time.monotonic() - began) // 60)  # a method is logged once a minute
        assert lines[0]["method"] in denied

    async def test_proxy_denies_published_events_other_than_markers(
        self, engine: Containerd, proxied: grpc.aio.Channel
    ) -> None:
        direct = ContainerdEventStream(engine.address)
        await events_before_marker(engine.address, direct)
        empty = wire.field(2, wire.field(1, "google.protobuf.Empty"))
        for namespace, topic in (("whalebridge", "/tasks/exit"), ("default", "/whalebridge/marker/n/1")):
            request = wire.field(1, topic) + empty
            code = await call_outcome(proxied, methods.PUBLISH.path, request, namespace=namespace)
            assert code is StatusCode.PERMISSION_DENIED, (namespace, topic)
        await asyncio.sleep(0.2)
        async with ContainerdClient(engine.address, KEEP_ALL) as client:
            await client.publish_marker("last", 1)
            events: list[Event] = []
            while Marker("last", 1) not in events:
                events += without_container_events(await direct.batch())
            assert events == [Marker("last", 1)]
        direct.close()

    async def test_proxy_limits_marker_rate(self, proxy: ProxyProcess) -> None:
        async with ContainerdClient(proxy.address, KEEP_ALL) as client:
            await client.publish_marker("n", 0)
            began = time.monotonic()
            markers = (client.publish_marker("n", number) for number in range(300))
            results = await asyncio.gather(*markers, return_exceptions=True)
            seconds = time.monotonic() - began
        denied = [each for each in results if each is not None]
        assert denied
        assert 100 - 1 <= len(results) - len(denied) <= 100 + 20 * seconds
        assert all(isinstance(each, RpcError) for each in denied)
        assert {getattr(each, "code", None) for each in denied} == {http2.StatusCode.RESOURCE_EXHAUSTED}
        assert all("20" in str(each) for each in denied)

    async def test_proxy_denies_call_without_exactly_one_request(self, proxied: grpc.aio.Channel) -> None:
        assert await call_outcome(proxied, methods.VERSION.path, seconds=3) is not StatusCode.OK
        assert await call_outcome(proxied, methods.CONTAINER.path, b"", b"", seconds=3) is not StatusCode.OK

    async def test_proxy_denies_oversized_requests(self, proxy: ProxyProcess, proxied: grpc.aio.Channel) -> None:
        before = proxy.peak_bytes()
        large = wire.field(1, b"x" * 3 * MIB)
        for method in (methods.CONTAINER.path, methods.SUBSCRIBE.path, methods.PUBLISH.path):
            assert await call_outcome(proxied, method, large) is StatusCode.RESOURCE_EXHAUSTED
        many = await call_outcome(proxied, "/containerd.services.content.v1.Content/Write", *[large] * 8)
        assert many is not StatusCode.OK  # the code depends on how much the client has sent
        assert proxy.peak_bytes() - before < 16 * MIB

    async def test_proxy_denies_compressed_requests(self, proxy: ProxyProcess, proxied: grpc.aio.Channel) -> None:
        before = proxy.peak_bytes()
        call = unary_call(proxied, methods.CONTAINER.path)
        bomb = wire.field(1, b"\0" * 64 * MIB)
        with pytest.raises(grpc.aio.AioRpcError):
            await call(bomb, compression=grpc.Compression.Gzip)
        assert proxy.peak_bytes() - before < 16 * MIB

    async def test_proxy_survives_traffic_other_than_grpc(self, proxy: ProxyProcess) -> None:
        await asyncio.to_thread(send_garbage, proxy.address)
        await wait_ready(proxy)


class TestAllowedCalls:
    async def test_proxy_reports_identity_of_containerd(self, engine: Containerd, proxy: ProxyProcess) -> None:
        async with ContainerdClient(engine.address, KEEP_ALL) as direct:
            expected = await direct.engine()
        async with ContainerdClient(proxy.address, KEEP_ALL) as client:
            reported = await client.engine()
            assert await client.health()
        assert (reported.id, reported.version, reported.pid) == (expected.id, expected.version, engine.pid)
        assert reported.api == proxy.address

    async def test_proxy_strips_unneeded_container_metadata(
        self, engine: Containerd, proxied: grpc.aio.Channel, container: str
    ) -> None:
        request = containers_pb2.GetContainerRequest(id=container).SerializeToString()
        raw = await unary_call(proxied, methods.CONTAINER.path)(request, metadata=DEFAULT)
        lists = [await unary_call(proxied, methods.CONTAINERS.path)(b"", metadata=DEFAULT)]
        lists += [each async for each in stream_call(proxied, methods.CONTAINERS_STREAM.path)(b"", metadata=DEFAULT)]
        lists += [await unary_call(proxied, methods.TASKS.path)(b"", metadata=DEFAULT)]
        for response in (raw, *lists):
            assert b"oci" not in response and b"Spec" not in response and b"overlayfs" not in response  # noqa: PT018
        metadata = containers_pb2.GetContainerResponse.FromString(raw).container
        assert {label.key: label.value for label in metadata.labels}[b"colour"] == b"blue"
        async with grpc.aio.insecure_channel(methods.target(engine.address)) as direct:
            assert b"oci" in await unary_call(direct, methods.CONTAINER.path)(request, metadata=DEFAULT)

    async def test_proxy_forwards_containerd_events_to_plain_grpc_client(
        self, proxied: grpc.aio.Channel, proxy: ProxyProcess
    ) -> None:
        call = stream_call(proxied, methods.SUBSCRIBE.path)(b"")
        await call.initial_metadata()
        (raw,) = await first_messages(proxy.address, call)
        async with asyncio.timeout(30):
            while (envelope := Envelope.FromString(raw)).namespace != "whalebridge":  # skip events of earlier tests
                raw = cast(bytes, await call.read())
        assert envelope.topic.startswith("/whalebridge/marker/first/")
        call.cancel()


@pytest.mark.skipif(shutil.which("go") is None and not os.environ.get("CI"), reason="not installed: go")
def test_api_method_list_is_complete() -> None:
    """Compare the list with the descriptors of the testbed's containerd and of CRI."""
    modules = run(["go", "env", "GOMODCACHE"]).stdout.strip()
    run(["go", "mod", "download", *api_methods.MODULES], timeout=200)
    described = set(api_methods.described_methods(Path(modules)))
    assert described - set(api_methods.listed_methods()) == set()
    assert ALLOWED_METHODS - described == {"/grpc.health.v1.Health/Check"}
