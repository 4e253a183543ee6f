"""`whalebridge proxy` on real containerds: nothing but the bridge's own calls passes, whatever a client sends."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import cast

import grpc
import pytest
from grpc import StatusCode

from bridge.containerd import rpc
from bridge.containerd.client import ContainerdClient
from bridge.containerd.protos import containers_pb2
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.containerd.proxy import rules
from bridge.containerd.stream import FILTERS, EventStream
from bridge.core.model import Event, Mark
from tests.integration import api_methods
from tests.integration.proxying import (
    DEFAULT,
    KEEP_ALL,
    MIB,
    answers,
    first_of,
    not_of_containers,
    outcome,
    proven,
    state,
    stream,
    talk_nonsense,
    unary,
    unique,
)
from tests.proxy_process import ProxyProcess
from tests.simulator import wire
from tests.testbed.containerd import Containerd
from tests.testbed.process import run

PASSING = {rule.method.path for rule in rules.RULES} | {rpc.SUBSCRIBE.path, rpc.PUBLISH.path}


class TestWhatIsRefused:
    async def test_every_other_method_there_is(
        self, engine: Containerd, proxy: ProxyProcess, proxied: grpc.aio.Channel, container: str
    ) -> None:
        before = await asyncio.to_thread(state, engine)
        direct = EventStream(engine.address)
        await proven(engine.address, direct)
        refused = [method for method in api_methods.listed() if method not in PASSING]
        assert len(refused) > 200
        for method in refused:
            # Field 1 is where requests name what they are about, and a deletion wants no more than that.
            for requests in ((wire.field(1, container),), (b"",), ()):
                assert await outcome(proxied, method, *requests) is StatusCode.PERMISSION_DENIED, method
        assert await asyncio.to_thread(state, engine) == before
        assert (await asyncio.to_thread(engine.tasks))[container] == "RUNNING"
        await asyncio.sleep(0.2)
        assert not_of_containers(direct.rest(), but=container) == []
        direct.close()
        told = proxy.said("call_denied")
        assert len(told) <= 110
        assert told[0]["method"] in refused

    async def test_methods_of_any_name(self, proxied: grpc.aio.Channel) -> None:
        passing = rpc.VERSION.path
        names = ["/", "/x", passing.lower(), f"{passing}/", f"/{passing}", f"{passing}x", "/a/../" + passing, "/" * 999]
        for name in names:
            assert await outcome(proxied, name) is StatusCode.PERMISSION_DENIED, name

    def test_containerds_own_client(self, engine: Containerd, proxy: ProxyProcess, container: str) -> None:
        def ctr(*words: str) -> str:
            command = engine.inside("ctr", "--address", proxy.address, *words)
            done = subprocess.run(command, env=engine.env, capture_output=True, text=True, timeout=30, check=False)
            assert done.returncode != 0
            return done.stderr

        refused = "whalebridge's read-only proxy does not pass this call"
        assert refused in ctr("tasks", "kill", "--signal", "SIGKILL", container)
        assert ctr("tasks", "exec", "--exec-id", "x", container, "true")  # it misses the spec before it may ask
        assert refused in ctr("containers", "label", container, "colour=red")
        assert refused in ctr("run", "--rm", "docker.io/library/busybox:latest", unique("new"), "true")
        assert refused in ctr("namespaces", "create", "new")
        assert engine.tasks()[container] == "RUNNING"
        assert '"colour": "blue"' in engine.ctr("containers", "info", container).stdout

    async def test_events_other_than_marks(self, engine: Containerd, proxied: grpc.aio.Channel) -> None:
        direct = EventStream(engine.address)
        await proven(engine.address, direct)
        empty = wire.field(2, wire.field(1, "google.protobuf.Empty"))
        topic = "/whalebridge/marker/n/1"
        foreign = [
            ("whalebridge", wire.field(1, "/tasks/exit") + empty),
            ("whalebridge", wire.field(1, "/whalebridge/other") + empty),
            ("whalebridge", wire.field(1, "/whalebridge/marker/n/1/2") + empty),
            ("whalebridge", wire.field(1, f"/whalebridge/marker/{'n' * 77}/1") + empty),
            ("default", wire.field(1, topic) + empty),
            ("", wire.field(1, topic) + empty),
            ("whalebridge", wire.field(1, topic)),
            ("whalebridge", wire.field(1, topic) + wire.field(2, wire.any_message("google.protobuf.Empty", b"x"))),
            ("whalebridge", wire.field(1, topic) + wire.field(2, wire.any_message("containerd.events.TaskExit", b""))),
            ("whalebridge", wire.field(1, topic) + empty + wire.field(9, b"more")),
        ]
        for namespace, request in foreign:
            code = await outcome(proxied, rpc.PUBLISH.path, request, namespace=namespace)
            assert code in (StatusCode.PERMISSION_DENIED, StatusCode.INVALID_ARGUMENT), (namespace, request)
        await asyncio.sleep(0.2)
        async with ContainerdClient(engine.address, KEEP_ALL) as client:
            await client.mark("last", 1)
            told: list[Event] = []
            while Mark("last", 1) not in told:
                told += not_of_containers(await direct.batch())
            assert told == [Mark("last", 1)]
        direct.close()

    async def test_too_many_marks(self, proxy: ProxyProcess) -> None:
        async with ContainerdClient(proxy.address, KEEP_ALL) as client:
            await client.mark("n", 0)
            began = time.monotonic()
            marks = (client.mark("n", number) for number in range(300))
            results = await asyncio.gather(*marks, return_exceptions=True)
            took = time.monotonic() - began
        refused = [str(each) for each in results if each is not None]
        assert refused
        assert 100 - 1 <= len(results) - len(refused) <= 100 + 20 * took
        assert all("RESOURCE_EXHAUSTED: more than 20 marks a second" in each for each in refused)

    @pytest.mark.parametrize(
        ("method", "request_"),
        [
            (rpc.CONTAINERS.path, wire.field(1, 'labels."x"==y')),
            (rpc.CONTAINERS_STREAM.path, wire.field(1, "id==x")),
            (rpc.TASKS.path, wire.field(1, "x")),
            (rpc.NAMESPACES.path, wire.field(1, "x")),
            (rpc.TASK.path, wire.field(1, "x") + wire.field(2, "an-exec")),
            (rpc.WAIT.path, wire.field(1, "x") + wire.field(2, "an-exec")),
            (rpc.CONTAINER.path, wire.field(1, "x") + wire.field(99, "new")),
            (rpc.SUBSCRIBE.path, wire.field(1, 'topic~="^/images/"')),
            (rpc.SUBSCRIBE.path, wire.field(1, FILTERS[0]) + wire.field(1, "")),
            (rpc.VERSION.path, b"\xff\xff\xff\xff"),
            (rpc.CONTAINER.path, b"\x0a\x05abc"),
            (rpc.CONTAINER.path, wire.field(1, b"\xff")),
            (rpc.PUBLISH.path, b"\x0a\x7f"),
            (rpc.SUBSCRIBE.path, b"\x0b"),
        ],
    )
    async def test_other_and_malformed_requests(self, proxied: grpc.aio.Channel, method: str, request_: bytes) -> None:
        assert await outcome(proxied, method, request_) is StatusCode.INVALID_ARGUMENT

    @pytest.mark.parametrize("namespace", ["-", "a b", "a/b", "n" * 77, "x..y"])
    async def test_namespaces_that_are_none(self, proxied: grpc.aio.Channel, namespace: str) -> None:
        assert await outcome(proxied, rpc.TASKS.path, b"", namespace=namespace) is StatusCode.INVALID_ARGUMENT

    async def test_two_namespaces(self, proxied: grpc.aio.Channel) -> None:
        both = ((rpc.NAMESPACE_HEADER, "default"), (rpc.NAMESPACE_HEADER, "moby"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await unary(proxied, rpc.TASKS.path)(b"", metadata=both)
        assert caught.value.code() is StatusCode.INVALID_ARGUMENT

    @pytest.mark.parametrize("engine", ["2.4"], indirect=True)  # containerd has no part in it
    async def test_no_request_and_two(self, proxied: grpc.aio.Channel) -> None:
        assert await outcome(proxied, rpc.VERSION.path) is not StatusCode.OK
        assert await outcome(proxied, rpc.CONTAINER.path, b"", b"") is not StatusCode.OK

    async def test_oversized_requests(self, proxy: ProxyProcess, proxied: grpc.aio.Channel) -> None:
        before = proxy.peak_bytes()
        large = wire.field(1, b"x" * 3 * MIB)
        for method in (rpc.CONTAINER.path, rpc.SUBSCRIBE.path, rpc.PUBLISH.path):
            assert await outcome(proxied, method, large) is StatusCode.RESOURCE_EXHAUSTED
        many = await outcome(proxied, "/containerd.services.content.v1.Content/Write", *[large] * 8)
        assert many is not StatusCode.OK  # the client's library makes several codes of a call that ends as it sends
        assert proxy.peak_bytes() - before < 16 * MIB

    async def test_compressed_requests(self, proxy: ProxyProcess, proxied: grpc.aio.Channel) -> None:
        before = proxy.peak_bytes()
        call = unary(proxied, rpc.CONTAINER.path)
        bomb = wire.field(1, b"\0" * 64 * MIB)
        with pytest.raises(grpc.aio.AioRpcError):
            await call(bomb, compression=grpc.Compression.Gzip)
        assert proxy.peak_bytes() - before < 16 * MIB

    async def test_what_is_no_grpc(self, proxy: ProxyProcess) -> None:
        await asyncio.to_thread(talk_nonsense, proxy.address)
        await answers(proxy)


class TestWhatPasses:
    async def test_the_engine_is_containerd(self, engine: Containerd, proxy: ProxyProcess) -> None:
        async with ContainerdClient(engine.address, KEEP_ALL) as direct:
            expected = await direct.engine()
        async with ContainerdClient(proxy.address, KEEP_ALL) as client:
            told = await client.engine()
            assert await client.health()
        assert (told.id, told.version, told.pid) == (expected.id, expected.version, engine.pid)
        assert told.api == proxy.address

    async def test_records_without_what_the_bridge_does_not_need(
        self, engine: Containerd, proxied: grpc.aio.Channel, container: str
    ) -> None:
        asked = containers_pb2.GetContainerRequest(id=container).SerializeToString()
        raw = await unary(proxied, rpc.CONTAINER.path)(asked, metadata=DEFAULT)
        lists = [await unary(proxied, rpc.CONTAINERS.path)(b"", metadata=DEFAULT)]
        lists += [each async for each in stream(proxied, rpc.CONTAINERS_STREAM.path)(b"", metadata=DEFAULT)]
        lists += [await unary(proxied, rpc.TASKS.path)(b"", metadata=DEFAULT)]
        for answer in (raw, *lists):
            assert b"oci" not in answer and b"Spec" not in answer and b"overlayfs" not in answer  # noqa: PT018
        record = containers_pb2.GetContainerResponse.FromString(raw).container
        assert {label.key: label.value for label in record.labels}[b"colour"] == b"blue"
        async with grpc.aio.insecure_channel(rpc.target(engine.address)) as direct:
            assert b"oci" in await unary(direct, rpc.CONTAINER.path)(asked, metadata=DEFAULT)

    async def test_a_plain_client_gets_events_as_containerd_sends_them(
        self, proxied: grpc.aio.Channel, proxy: ProxyProcess
    ) -> None:
        call = stream(proxied, rpc.SUBSCRIBE.path)(b"")
        await call.initial_metadata()
        (raw,) = await first_of(proxy.address, call)
        async with asyncio.timeout(30):
            while (envelope := Envelope.FromString(raw)).namespace != "whalebridge":  # a container of an earlier test
                raw = cast(bytes, await call.read())
        assert envelope.topic.startswith("/whalebridge/marker/first/")
        call.cancel()


@pytest.mark.skipif(shutil.which("go") is None and not os.environ.get("CI"), reason="not installed: go")
def test_the_list_of_methods_is_complete() -> None:
    """Against the descriptors of the containerd that the testbed has built, and of CRI."""
    modules = run(["go", "env", "GOMODCACHE"]).stdout.strip()
    run(["go", "mod", "download", *api_methods.MODULES], timeout=200)
    described = set(api_methods.described(Path(modules)))
    assert described - set(api_methods.listed()) == set()
    assert PASSING - described == {"/grpc.health.v1.Health/Check"}
