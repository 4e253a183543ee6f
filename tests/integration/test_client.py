"""The client on real containerds: invalid input, and listings of any size."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from bridge.containerd.client import ContainerdClient, Timeouts
from bridge.core.errors import FatalError, TransientError
from bridge.core.label_rules import LabelRules
from tests.integration.engines import one_engine
from tests.naming import raises_naming
from tests.simulator.records import create_containers
from tests.testbed.containerd import Containerd

RULES = LabelRules.keep_all()
QUICK = Timeouts(connect=1, call=1, listing=1)
MIB = 1024 * 1024

_numbers = itertools.count(1)


def unique_id(name: str) -> str:
    return f"{name}-{os.getpid()}-{next(_numbers)}"


@pytest.fixture
async def client(engine: Containerd) -> AsyncIterator[ContainerdClient]:
    async with ContainerdClient(engine.address, RULES) as client:
        yield client


class TestBadInput:
    @one_engine
    async def test_client_raises_error_when_socket_is_for_shims(self, engine: Containerd) -> None:
        client = ContainerdClient(f"{engine.directory}/c.ttrpc", RULES, timeouts=QUICK)
        with raises_naming((FatalError, TransientError), f"{engine.directory}/c.ttrpc"):
            await client.engine()

    async def test_client_replaces_invalid_utf8_in_labels(self, engine: Containerd, client: ContainerdClient) -> None:
        namespace = unique_id("labels")
        creation = create_containers(engine.address, namespace, ["odd"], labels={b"k\xff": b"\xfe"}, spec_bytes=0)
        if engine.version != "1.6":
            with pytest.raises(grpc.aio.AioRpcError, match="UTF-8"):
                await creation
            return
        await creation
        (record,) = [record async for record in client.containers(namespace)]
        assert record.labels == {"k\ufffd": "\ufffd"}
        assert await client.container(record.key) == record


_LIST = """
import asyncio, re, sys
from pathlib import Path
from bridge.containerd.client import ContainerdClient
from bridge.core.label_rules import LabelRules

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
        """Run a containerd with its database in memory if there is room, for 10,000 writes."""
        has_room = Path(_MEMORY).is_dir() and shutil.disk_usage(_MEMORY).free > 1024 * MIB
        directory = Path(tempfile.mkdtemp(prefix="whalebridge-", dir=_MEMORY if has_room else "/tmp"))
        with Containerd(engine.version, directory) as containerd:
            yield containerd

    @pytest.mark.parametrize(
        ("containers", "spec_bytes", "max_growth"),
        [(10_000, 7_000, 48 * MIB), (2_000, 7_000, 64 * MIB)],
        ids=["68-MiB-one-by-one", "14-MiB-in-one-message"],
    )
    async def test_fault_09_ten_thousand_containers_are_listed(
        self, in_memory: Containerd, containers: int, spec_bytes: int, max_growth: int
    ) -> None:
        ids = (f"c{number}" for number in range(containers))
        labels = {b"com.docker.compose.project": b"p" * 20, b"nerdctl/name": b"n" * 20}
        await create_containers(in_memory.address, "large", ids, labels=labels, spec_bytes=spec_bytes)
        command = [sys.executable, "-c", _LIST, in_memory.address, "large"]
        listed = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=True, timeout=60
        )
        records, growth_bytes = map(int, listed.stdout.split())
        assert records == containers
        assert growth_bytes < max_growth
