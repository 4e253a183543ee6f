"""`whalebridge proxy` on real containerds: nothing but the bridge's own calls passes, whatever a client sends."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import secrets
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest
from grpc import StatusCode

from bridge.containerd import rpc
from bridge.containerd.client import ContainerdClient
from bridge.containerd.protos import containers_pb2
from bridge.containerd.proxy import relay, rules, server
from bridge.containerd.stream import FILTERS, EventStream
from bridge.core.errors import StreamOverflowError, TransientError
from bridge.core.labels import LabelRules
from bridge.core.model import Mark
from tests.integration import api_methods
from tests.integration.commands import whalebridge
from tests.proxy_process import ProxyProcess
from tests.simulator import wire
from tests.simulator.records import create_records
from tests.testbed.containerd import Containerd

MIB = 1024 * 1024
PASSING = {rule.method.path for rule in rules.RULES} | {rpc.SUBSCRIBE.path, rpc.PUBLISH.path}
KEEP_ALL = LabelRules.keep_all()
_numbers = itertools.count(1)


def unique(stem: str) -> str:
    return f"{stem}-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def proxy(engine: Containerd, tmp_path: Path) -> Iterator[ProxyProcess]:
    with ProxyProcess(engine.address, tmp_path) as proxy:
        yield proxy


@pytest.fixture
async def channel(proxy: ProxyProcess) -> AsyncIterator[grpc.aio.Channel]:
    async with grpc.aio.insecure_channel(rpc.target(proxy.address), options=rpc.channel_options()) as channel:
        yield channel


@pytest.fixture
def container(engine: Containerd) -> Iterator[str]:
    """A container that runs."""
    id_ = unique("proxied")
    engine.run(id_, "sleep", "600", labels={"colour": "blue"})
    yield id_
    engine.ctr("tasks", "delete", "--force", id_)
    engine.ctr("containers", "delete", id_)


async def refusal(channel: grpc.aio.Channel, method: str, *requests: bytes, namespace: str = "default") -> StatusCode:
    """What a call ends with; one with other than one request is made as a stream of them."""
    options = {"timeout": 20, "metadata": ((rpc.NAMESPACE_HEADER, namespace),)}
    if len(requests) == 1:
        call = channel.unary_stream(method)(*requests, **options)
    else:
        call = channel.stream_stream(method)(iter(requests), **options)
    with contextlib.suppress(grpc.aio.AioRpcError):
        async for _ in call:
            pass
    return StatusCode(await call.code())


def state(engine: Containerd) -> list[str]:
    """What a client could have changed, as containerd's own client tells it."""
    asked = (
        ["namespaces", "ls"],
        ["containers", "ls"],
        ["tasks", "ls"],
        ["images", "ls", "--quiet"],
        ["content", "ls", "--quiet"],
    )
    return [engine.ctr(*words).stdout for words in (*asked, ["snapshots", "ls"], ["leases", "ls"])]


class TestWhatIsRefused:
    async def test_every_other_method_there_is(
        self, engine: Containerd, proxy: ProxyProcess, channel: grpc.aio.Channel, container: str
    ) -> None:
        before = await asyncio.to_thread(state, engine)
        direct = EventStream(engine.address)
        await proven(ContainerdClient(engine.address, KEEP_ALL), direct)
        refused = [method for method in api_methods.listed() if method not in PASSING]
        assert len(refused) > 200
        for method in refused:
            # Field 1 is where requests name what they are about, and a deletion wants no more than that.
            for requests in ((wire.field(1, container),), (b"",), ()):
                assert await refusal(channel, method, *requests) is StatusCode.PERMISSION_DENIED, method
        assert await asyncio.to_thread(state, engine) == before
        assert await asyncio.to_thread(engine.tasks) == {container: "RUNNING"} | await others(engine, container)
        await asyncio.sleep(0.2)
        assert direct.rest() == []
        direct.close()
        told = proxy.said("call_refused")
        assert len(told) <= 110
        assert told[0]["method"] in refused

    async def test_methods_of_any_name(self, channel: grpc.aio.Channel) -> None:
        passing = rpc.VERSION.path
        names = ["/", "/x", passing.lower(), f"{passing}/", f"/{passing}", f"{passing}x", "/a/../" + passing, "/" * 999]
        for name in names:
            assert await refusal(channel, name) is StatusCode.PERMISSION_DENIED, name

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

    async def test_events_other_than_marks(
        self, engine: Containerd, proxy: ProxyProcess, channel: grpc.aio.Channel
    ) -> None:
        direct = EventStream(engine.address)
        await proven(ContainerdClient(engine.address, KEEP_ALL), direct)
        empty = wire.field(2, wire.field(1, "google.protobuf.Empty"))
        topic = "/whalebridge/mark/n/1"
        foreign = [
            ("whalebridge", wire.field(1, "/tasks/exit") + empty),
            ("whalebridge", wire.field(1, "/whalebridge/other") + empty),
            ("whalebridge", wire.field(1, "/whalebridge/mark/n/1/2") + empty),
            ("whalebridge", wire.field(1, f"/whalebridge/mark/{'n' * 77}/1") + empty),
            ("default", wire.field(1, topic) + empty),
            ("", wire.field(1, topic) + empty),
            ("whalebridge", wire.field(1, topic)),
            ("whalebridge", wire.field(1, topic) + wire.field(2, wire.any_message("google.protobuf.Empty", b"x"))),
            ("whalebridge", wire.field(1, topic) + wire.field(2, wire.any_message("containerd.events.TaskExit", b""))),
            ("whalebridge", wire.field(1, topic) + empty + wire.field(9, b"more")),
        ]
        for namespace, request in foreign:
            code = await refusal(channel, rpc.PUBLISH.path, request, namespace=namespace)
            assert code in (StatusCode.PERMISSION_DENIED, StatusCode.INVALID_ARGUMENT), (namespace, request)
        await asyncio.sleep(0.2)
        async with ContainerdClient(engine.address, KEEP_ALL) as client:
            await client.mark("last", 1)
            assert await direct.batch() == [Mark("last", 1)]
        direct.close()

    async def test_too_many_marks(self, proxy: ProxyProcess) -> None:
        async with ContainerdClient(proxy.address, KEEP_ALL) as client:
            results = await asyncio.gather(*(client.mark("n", number) for number in range(300)), return_exceptions=True)
        refused = [str(each) for each in results if each is not None]
        assert 100 < len(refused) <= 200
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
    async def test_other_and_malformed_requests(self, channel: grpc.aio.Channel, method: str, request_: bytes) -> None:
        assert await refusal(channel, method, request_) is StatusCode.INVALID_ARGUMENT

    @pytest.mark.parametrize("namespace", ["-", "a b", "a/b", "n" * 77, "x..y"])
    async def test_namespaces_that_are_none(self, channel: grpc.aio.Channel, namespace: str) -> None:
        assert await refusal(channel, rpc.TASKS.path, b"", namespace=namespace) is StatusCode.INVALID_ARGUMENT

    async def test_two_namespaces(self, channel: grpc.aio.Channel) -> None:
        both = ((rpc.NAMESPACE_HEADER, "default"), (rpc.NAMESPACE_HEADER, "moby"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(rpc.TASKS.path)(b"", metadata=both)
        assert caught.value.code() is StatusCode.INVALID_ARGUMENT

    async def test_no_request_and_two(self, channel: grpc.aio.Channel) -> None:
        assert await refusal(channel, rpc.VERSION.path) is not StatusCode.OK
        assert await refusal(channel, rpc.CONTAINER.path, b"", b"") is not StatusCode.OK

    async def test_oversized_requests(self, proxy: ProxyProcess, channel: grpc.aio.Channel) -> None:
        before = proxy.peak_bytes()
        large = wire.field(1, b"x" * 3 * MIB)
        for method in (rpc.CONTAINER.path, rpc.SUBSCRIBE.path, rpc.PUBLISH.path):
            assert await refusal(channel, method, large) is StatusCode.RESOURCE_EXHAUSTED
        assert await refusal(channel, "/containerd.services.content.v1.Content/Write", *[large] * 8) in (
            StatusCode.PERMISSION_DENIED,
            StatusCode.CANCELLED,
        )
        assert proxy.peak_bytes() - before < 16 * MIB

    async def test_compressed_requests(self, proxy: ProxyProcess, channel: grpc.aio.Channel) -> None:
        before = proxy.peak_bytes()
        call = channel.unary_unary(rpc.CONTAINER.path)
        bomb = wire.field(1, b"\0" * 64 * MIB)
        with pytest.raises(grpc.aio.AioRpcError):
            await call(bomb, compression=grpc.Compression.Gzip)
        assert proxy.peak_bytes() - before < 16 * MIB

    async def test_what_is_no_grpc(self, proxy: ProxyProcess) -> None:
        await asyncio.to_thread(talk_nonsense, proxy.address)
        await answers(proxy)


async def answers(proxy: ProxyProcess) -> None:
    """Connect, once connections that were closed a moment ago do not count any more."""
    async with asyncio.timeout(20):
        while True:
            async with ContainerdClient(proxy.address, KEEP_ALL) as client:
                try:
                    await client.engine()
                except TransientError:
                    await asyncio.sleep(0.2)
                else:
                    return


def talk_nonsense(address: str) -> None:
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for start in (b"", b"GET / HTTP/1.1\r\n\r\n", preface, preface + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])):
        for _ in range(20):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(address)
                try:
                    client.sendall(start + secrets.token_bytes(4096))
                except ConnectionError:
                    continue


async def others(engine: Containerd, container: str) -> dict[str, str]:
    return {id_: status for id_, status in (await asyncio.to_thread(engine.tasks)).items() if id_ != container}


async def proven(client: ContainerdClient, stream: EventStream) -> None:
    """Mark until a mark is back, and take what came with it."""
    async with client, asyncio.timeout(20):
        for number in itertools.count():
            await client.mark("proven", number)
            try:
                async with asyncio.timeout(0.3):
                    while Mark("proven", number) not in await stream.batch():
                        pass
                return
            except TimeoutError:
                continue


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
        self, engine: Containerd, channel: grpc.aio.Channel, container: str
    ) -> None:
        headers = ((rpc.NAMESPACE_HEADER, "default"),)
        asked = containers_pb2.GetContainerRequest(id=container).SerializeToString()
        raw = await channel.unary_unary(rpc.CONTAINER.path)(asked, metadata=headers)
        lists = [await channel.unary_unary(rpc.CONTAINERS.path)(b"", metadata=headers)]
        lists += [each async for each in channel.unary_stream(rpc.CONTAINERS_STREAM.path)(b"", metadata=headers)]
        lists += [await channel.unary_unary(rpc.TASKS.path)(b"", metadata=headers)]
        for answer in (raw, *lists):
            assert b"oci" not in answer and b"Spec" not in answer and b"overlayfs" not in answer  # noqa: PT018
        record = containers_pb2.GetContainerResponse.FromString(raw).container
        assert {label.key: label.value for label in record.labels}[b"colour"] == b"blue"
        async with grpc.aio.insecure_channel(rpc.target(engine.address)) as direct:
            assert b"oci" in await direct.unary_unary(rpc.CONTAINER.path)(asked, metadata=headers)

    async def test_a_plain_client_gets_events_as_containerd_sends_them(
        self, engine: Containerd, channel: grpc.aio.Channel, proxy: ProxyProcess
    ) -> None:
        call = channel.unary_stream(rpc.SUBSCRIBE.path)(b"")
        await call.initial_metadata()
        async with ContainerdClient(proxy.address, KEEP_ALL) as client:
            for number in range(20):
                await client.mark("plain", number)
                await asyncio.sleep(0.1)
        async with asyncio.timeout(10):
            envelope = rpc.SUBSCRIBE.answer.FromString(await call.read())
        assert (envelope.namespace, envelope.topic[:24]) == ("whalebridge", "/whalebridge/mark/plain/")
        call.cancel()

    async def test_deadlines_and_cancellation_reach_containerd(
        self, engine: Containerd, channel: grpc.aio.Channel, container: str
    ) -> None:
        headers = ((rpc.NAMESPACE_HEADER, "default"),)
        wait = channel.unary_unary(rpc.WAIT.path)
        began = time.monotonic()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await wait(wire.field(1, container), timeout=0.5, metadata=headers)
        assert caught.value.code() is StatusCode.DEADLINE_EXCEEDED
        assert time.monotonic() - began < 5


class TestBounds:
    async def test_a_client_that_does_not_read_loses_its_stream(
        self, engine: Containerd, channel: grpc.aio.Channel, proxy: ProxyProcess
    ) -> None:
        sleeping = channel.unary_stream(rpc.SUBSCRIBE.path)(b"")
        await sleeping.initial_metadata()
        before = proxy.peak_bytes()
        async with grpc.aio.insecure_channel(rpc.target(engine.address)) as direct:
            publish = direct.unary_unary(rpc.PUBLISH.path)
            event = wire.field(1, "/tasks/large") + wire.field(2, wire.any_message("x", b"x" * MIB))
            for _ in range(3 * relay.SUBSCRIBER_BYTES // MIB):
                await publish(event, metadata=((rpc.NAMESPACE_HEADER, "default"),))
        async with ContainerdClient(proxy.address, KEEP_ALL) as client:
            assert await client.health()
            stream = await client.subscribe()
            await proven(ContainerdClient(proxy.address, KEEP_ALL), stream)
            stream.close()
        assert proxy.peak_bytes() - before < relay.SUBSCRIBER_BYTES + 48 * MIB
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(10):
                async for _ in sleeping:
                    pass
        assert caught.value.code() is StatusCode.RESOURCE_EXHAUSTED

    async def test_the_bridge_takes_that_for_an_overflow(self, engine: Containerd, proxy: ProxyProcess) -> None:
        async with ContainerdClient(proxy.address, KEEP_ALL) as client:
            streams = [await client.subscribe() for _ in range(relay.SUBSCRIPTIONS + 1)]
            ended = await asyncio.gather(
                *(asyncio.wait_for(each.batch(), 3) for each in streams), return_exceptions=True
            )
        overflown = [each for each in ended if isinstance(each, StreamOverflowError)]
        assert len(overflown) == 1
        assert "8 subscriptions are open already" in str(overflown[0])

    async def test_connections(self, proxy: ProxyProcess) -> None:
        held = [socket.socket(socket.AF_UNIX) for _ in range(server.CONNECTIONS + 40)]
        try:
            for each in held:
                each.settimeout(5)
                each.connect(proxy.address)
            await asyncio.sleep(0.5)
            descriptors = len(os.listdir(f"/proc/{proxy.process.pid}/fd"))
            assert descriptors < server.CONNECTIONS + 40
        finally:
            for each in held:
                each.close()
        await answers(proxy)

    async def test_waiting_calls(self, proxy: ProxyProcess, channel: grpc.aio.Channel, container: str) -> None:
        """As many as the bridge makes cost little; beyond the bound they are refused, and others still pass."""
        headers = ((rpc.NAMESPACE_HEADER, "default"),)
        before = proxy.peak_bytes()
        wait = channel.unary_unary(rpc.WAIT.path)
        calls = [wait(wire.field(1, container), metadata=headers) for _ in range(2_000)]
        await asyncio.sleep(8)
        assert not [call for call in calls if call.done()]
        print((proxy.peak_bytes() - before) / 2_000)
        assert proxy.peak_bytes() - before < 2_000 * 100 * 1024
        async with ContainerdClient(proxy.address, KEEP_ALL) as client:
            await client.engine()
        for call in calls:
            call.cancel()

    async def test_ten_thousand_records(self, fresh_engine: object, tmp_path: Path) -> None:
        with fresh_engine() as engine, ProxyProcess(engine.address, tmp_path) as proxy:  # type: ignore[operator]
            before = proxy.peak_bytes()
            ids = (f"c{number}" for number in range(10_000))
            labels = {b"com.docker.compose.project": b"p" * 20, b"nerdctl/name": b"n" * 20}
            await create_records(engine.address, "large", ids, labels=labels, spec_bytes=7_000)
            async with ContainerdClient(proxy.address, KEEP_ALL) as client:
                records = [record async for record in client.containers("large")]
            assert len(records) == 10_000
            print((proxy.peak_bytes() - before) / MIB)
            assert proxy.peak_bytes() - before < 64 * MIB


class TestSocket:
    def test_mode_and_group(self, engine: Containerd, tmp_path: Path) -> None:
        with ProxyProcess(engine.address, tmp_path, "--socket-mode=0640", "--socket-group=65534") as proxy:
            found = os.stat(proxy.address)
            assert (found.st_mode & 0o777, found.st_gid) == (0o640, 65534)

    def test_a_stale_one_is_replaced(self, engine: Containerd, tmp_path: Path) -> None:
        proxy = ProxyProcess(engine.address, tmp_path)
        proxy.start()
        proxy.process.kill()
        proxy.process.wait()
        assert os.path.exists(proxy.address)
        with proxy:
            assert os.stat(proxy.address).st_mode & 0o777 == 0o660

    def test_one_in_use_is_refused(self, engine: Containerd, proxy: ProxyProcess) -> None:
        done = whalebridge("proxy", "--containerd", engine.address, "--listen", proxy.address)
        assert done.returncode == 1
        assert done.stderr == f"whalebridge: cannot listen at {proxy.address}: another process does already\n"

    @pytest.mark.parametrize(
        ("arguments", "status", "said"),
        [
            (["--listen", "/nowhere/p.sock"], 1, "its directory does not exist, or cannot be written"),
            (["--listen", "/etc/passwd"], 1, "something that is no socket is there"),
            (["--listen", "/tmp/" + "x" * 120], 1, "cannot listen at /tmp/xxx"),
            (["--containerd", "tcp://x"], 1, "is no address of containerd"),
            (["--containerd", "/tmp/a.sock", "--listen", "/tmp/a.sock"], 1, "cannot be both"),
            (["--socket-mode", "rw"], 2, "octal"),
            (["--socket-group", "no-such-group"], 2, "there is no group no-such-group"),
        ],
    )
    def test_mistakes(self, arguments: list[str], status: int, said: str) -> None:
        done = whalebridge("proxy", *arguments)
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1), done.stderr
        assert said in done.stderr


def test_the_list_of_methods_is_complete() -> None:
    """Against containerd's own descriptors, which are there where the testbed's containerd 2.4 was built."""
    go = subprocess.run(["go", "env", "GOMODCACHE"], capture_output=True, text=True, check=False)
    described = set(api_methods.described(Path(go.stdout.strip() or "/nonexistent")))
    if not described:
        pytest.skip("no Go module cache with containerd's API in it")
    assert described - set(api_methods.listed()) == set()
    assert PASSING - described == {"/grpc.health.v1.Health/Check"}
