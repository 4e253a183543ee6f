"""Marks what is in this folder: `pytest -m "not integration"` leaves it out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from bridge.containerd import methods
from tests.integration.commands import ContainerFactory
from tests.integration.proxy_calls import unique_id
from tests.proxy_process import ProxyProcess
from tests.testbed.containerd import Containerd


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder; pytest hands over those of all folders."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture
def container_factory(engine: Containerd) -> Iterator[ContainerFactory]:
    """Containers of the test's own on the shared containerd, removed at its end."""
    container_factory = ContainerFactory(engine)
    yield container_factory
    container_factory.remove_all()


@pytest.fixture
def proxy(engine: Containerd, tmp_path: Path) -> Iterator[ProxyProcess]:
    """`whalebridge proxy` before the shared containerd."""
    with ProxyProcess(engine.address, tmp_path) as proxy:
        yield proxy


@pytest.fixture
async def proxied(proxy: ProxyProcess) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to it, without any of our client's help; it holds 64 KiB at the most of what a call does not read."""
    # Else gRPC takes a busy machine for a long line, and more and more ahead, tens of MiB in the end.
    options = [*methods.channel_options(), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(methods.target(proxy.address), options=options) as channel:
        yield channel


@pytest.fixture
def container(engine: Containerd) -> Iterator[str]:
    """A container that runs."""
    id_ = unique_id("proxied")
    engine.run(id_, "sleep", "86400", labels={"colour": "blue"})
    yield id_
    engine.ctr("tasks", "delete", "--force", id_)
    engine.ctr("containers", "delete", id_)
