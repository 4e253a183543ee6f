"""Fixtures of the integration tests, and their marker: `pytest -m "not integration"` skips them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import pytest

from bridge.containerd import methods
from tests.integration.commands import ContainerFactory
from tests.integration.notify_socket import NotifySocket
from tests.integration.proxy_calls import unique_id
from tests.proxy_process import ProxyProcess
from tests.testbed.containerd import Containerd


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the marker to the tests in this directory only; pytest passes the tests of all directories."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture
def container_factory(engine: Containerd) -> Iterator[ContainerFactory]:
    """Create containers on the shared containerd, and remove them after the test."""
    container_factory = ContainerFactory(engine)
    yield container_factory
    container_factory.remove_all()


@pytest.fixture
def proxy(engine: Containerd, tmp_path: Path) -> Iterator[ProxyProcess]:
    """Run `whalebridge proxy` in front of the shared containerd."""
    with ProxyProcess(engine.address, tmp_path) as proxy:
        yield proxy


@pytest.fixture
async def proxied(proxy: ProxyProcess) -> AsyncIterator[grpc.aio.Channel]:
    """Open a plain gRPC channel to the proxy, which buffers at most 64 KiB of unread responses per call."""
    # With bandwidth probing, gRPC on a busy machine would grow its window to tens of MiB.
    options = [*methods.channel_options(), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(methods.target(proxy.address), options=options) as channel:
        yield channel


@pytest.fixture
def container(engine: Containerd) -> Iterator[str]:
    """Run a container."""
    id_ = unique_id("proxied")
    engine.run(id_, "sleep", "86400", labels={"colour": "blue"})
    yield id_
    engine.ctr("tasks", "delete", "--force", id_)
    engine.ctr("containers", "delete", id_)


@pytest.fixture
def notify_socket(tmp_path: Path) -> Iterator[NotifySocket]:
    """A socket for messages to systemd."""
    with NotifySocket(tmp_path) as notify_socket:
        yield notify_socket
