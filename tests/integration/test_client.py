"""The client and its stream on real containerds: bad input, hung and replaced ones, listings of any size."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import grpc
import pytest

from bridge.containerd.client import ContainerdClient, Timeouts
from bridge.core.errors import FatalError, TransientError
from bridge.core.labels import LabelRules
from bridge.core.model import ContainerKey, Mark
from tests.simulator.records import create_records
from tests.testbed.containerd import Containerd
from tests.testbed.process import wait_until

RULES = LabelRules.keep_all()
QUICK = Timeouts(connect=1, call=1, listing=1)
NOBODY = 65534
MIB = 1024 * 1024

_numbers = itertools.count(1)


def unique(name: str) -> str:
    return f"{name}-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
async def client(engine: Containerd) -> AsyncIterator[ContainerdClient]:
    async with ContainerdClient(engine.address, RULES) as client:
        yield client


class TestBadInput:
    """A line for each mistake that a person can make with a real containerd at hand."""

    async def test_a_socket_beside_it(self, engine: Containerd) -> None:
        with pytest.raises(TransientError, match=f"^socket {engine.address}x does not exist; start containerd"):
            await ContainerdClient(f"{engine.address}x", RULES).engine()

    async def test_its_folder(self, engine: Containerd) -> None:
        with pytest.raises(FatalError, match=f"^{engine.directory} is not a socket; use the path of"):
            await ContainerdClient(str(engine.directory), RULES).engine()

    async def test_its_socket_for_shims(self, engine: Containerd) -> None:
        client = ContainerdClient(f"{engine.directory}/c.ttrpc", RULES, timeouts=QUICK)
        with pytest.raises((FatalError, TransientError), match=r"c\.ttrpc .*it is not containerd|no gRPC is spoken"):
            await client.engine()

    async def test_its_socket_without_permission(self, engine: Containerd) -> None:
        client = ContainerdClient(engine.address, RULES)
        with anyone_may_enter(engine.directory), as_nobody(), pytest.raises(FatalError) as caught:
            await client.engine()
        told = f"{engine.address}: permission denied; run as root or with the socket's group"
        assert str(caught.value) == told

    async def test_a_namespace_that_does_not_exist(self, client: ContainerdClient) -> None:
        assert [record async for record in client.containers("nowhere")] == []
        assert await client.tasks("nowhere") == []
        assert "nowhere" not in await client.namespaces()

    async def test_labels_that_are_no_text(self, engine: Containerd, client: ContainerdClient) -> None:
        namespace = unique("labels")
        creating = create_records(engine.address, namespace, ["odd"], labels={b"k\xff": b"\xfe"}, spec_bytes=0)
        if engine.version != "1.6":
            with pytest.raises(grpc.aio.AioRpcError, match="invalid UTF-8"):
                await creating
            return
        await creating
        (record,) = [record async for record in client.containers(namespace)]
        assert record.labels == {"k\ufffd": "\ufffd"}
        assert await client.container(record.key) == record


class TestFaults:
    async def test_a_restart_is_followed(self, fresh_engine: Callable[[], Containerd]) -> None:
        engine = fresh_engine()
        async with ContainerdClient(engine.address, RULES) as client:
            before = await client.engine()
            stream = await client.subscribe()
            await asyncio.to_thread(engine.kill)
            with pytest.raises(TransientError):
                await stream.batch()
            with pytest.raises(
                TransientError, match=f"{engine.address}: connection refused; containerd is not running"
            ):
                await client.engine()
            await asyncio.to_thread(engine.start)
            after = await client.engine()
            assert (after.id, after.version) == (before.id, before.version)
            assert after.pid == engine.pid != before.pid
            await assert_alive(client)

    async def test_one_that_hangs_keeps_nobody_waiting(self, fresh_engine: Callable[[], Containerd]) -> None:
        engine = fresh_engine()
        async with ContainerdClient(engine.address, RULES, timeouts=QUICK) as client:
            await assert_answers(client)
            stream = await client.subscribe()
            engine.suspend()
            began = time.monotonic()
            with pytest.raises(TransientError, match="within 1 s: containerd is hung, or this is not its socket"):
                await client.engine()
            for call in (client.namespaces(), client.tasks("default"), client.mark("n", 1)):
                with pytest.raises(TransientError, match=r"did not .* in time: it, or a shim, hangs"):
                    await call
            assert time.monotonic() - began < 20
            stream.close()
            wait_until(
                lambda: not [thread for thread in threading.enumerate() if thread.name == "containerd-events"],
                "the stream's thread to end, although containerd hangs",
            )
            engine.resume()
            await assert_answers(client)
            await assert_alive(client)

    async def test_a_container_deleted_between_event_and_question(
        self, engine: Containerd, client: ContainerdClient
    ) -> None:
        key = ContainerKey(unique("deleted"), "gone")
        await create_records(engine.address, key.namespace, [key.id], spec_bytes=0)
        assert await client.container(key) is not None
        await asyncio.to_thread(engine.ctr, "containers", "delete", key.id, namespace=key.namespace)
        assert await client.container(key) is None
        assert await client.task(key) is None
        await asyncio.to_thread(engine.ctr, "namespaces", "remove", key.namespace)
        assert [record async for record in client.containers(key.namespace)] == []
        assert await client.container(key) is None


_LIST = """
import asyncio, re, sys
from pathlib import Path
from bridge.containerd.client import ContainerdClient
from bridge.core.labels import LabelRules

def peak():
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

async def main(address, namespace):
    async with ContainerdClient(address, LabelRules.keep_all()) as client:
        await client.engine()
        before = peak()
        records = 0
        async for record in client.containers(namespace):
            records += 1
        print(records, peak() - before)

asyncio.run(main(*sys.argv[1:]))
"""


_MEMORY = "/dev/shm"


class TestSize:
    @pytest.fixture
    def in_memory(self, engine: Containerd) -> Iterator[Containerd]:
        """Another containerd, with its database in memory where there is room: it is written to 10,000 times."""
        room = Path(_MEMORY).is_dir() and shutil.disk_usage(_MEMORY).free > 1024 * MIB
        folder = Path(tempfile.mkdtemp(prefix="whalebridge-", dir=_MEMORY if room else "/tmp"))
        with Containerd(engine.version, folder) as containerd:
            yield containerd

    @pytest.mark.parametrize(
        ("containers", "spec_bytes", "growth"),
        [(10_000, 7_000, 48 * MIB), (2_000, 7_000, 64 * MIB)],
        ids=["68-MiB-one-by-one", "14-MiB-in-one-message"],
    )
    async def test_ten_thousand_containers(
        self, in_memory: Containerd, containers: int, spec_bytes: int, growth: int
    ) -> None:
        ids = (f"c{number}" for number in range(containers))
        labels = {b"com.docker.compose.project": b"p" * 20, b"nerdctl/name": b"n" * 20}
        await create_records(in_memory.address, "large", ids, labels=labels, spec_bytes=spec_bytes)
        command = [sys.executable, "-c", _LIST, in_memory.address, "large"]
        listed = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=True, timeout=60
        )
        records, grown = map(int, listed.stdout.split())
        assert records == containers
        assert grown < growth


async def assert_answers(client: ContainerdClient) -> None:
    """Assert that containerd answers, be it not within the second that QUICK gives it."""
    async with asyncio.timeout(20):
        while True:
            with suppress(TransientError):
                await client.engine()
                return


async def assert_alive(client: ContainerdClient) -> None:
    """Assert that marks come back."""
    stream = await client.subscribe()
    async with asyncio.timeout(20):
        while True:
            with suppress(TransientError, TimeoutError):
                await client.mark("alive", 1)
                async with asyncio.timeout(0.2):
                    if Mark("alive", 1) in await stream.batch():
                        break
    stream.close()


@contextmanager
def anyone_may_enter(folder: Path) -> Iterator[None]:
    mode = folder.stat().st_mode
    folder.chmod(0o755)
    try:
        yield
    finally:
        folder.chmod(mode)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be another user, in none of root's groups, for a moment."""
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)
