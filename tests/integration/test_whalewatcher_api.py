"""``ContainerdWatcher`` on real containerds, and the example in its documentation."""

from __future__ import annotations

import asyncio
import itertools
import os
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.containerd.whalewatcher_api import Container, ContainerdWatcher, ContainerEventType
from bridge.core.errors import NotFoundError
from tests.integration.engines import one_engine
from tests.naming import raises_naming
from tests.simulator.state import IMAGE
from tests.testbed.containerd import Containerd

LIBRARY = Path(__file__).parents[2] / "docs" / "library.md"
STARTED, EXITED, PAUSED, UNPAUSED = ContainerEventType

_numbers = itertools.count(1)


class NamespaceDriver:
    """A namespace of the test, driven by ctr."""

    def __init__(self, engine: Containerd) -> None:
        self.engine = engine
        self.name = f"watched.{os.getpid()}-{next(_numbers)}"

    async def ctr(self, *args: str) -> None:
        await asyncio.to_thread(self.engine.ctr, *args, namespace=self.name)

    async def run(self, id_: str, *labels: str) -> None:
        await self.ctr("run", "--detach", *(f"--label={label}" for label in labels), IMAGE, id_, "sleep", "86400")


def command_line(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").strip()


@pytest.fixture
async def namespace(engine: Containerd) -> NamespaceDriver:
    namespace = NamespaceDriver(engine)
    await asyncio.to_thread(engine.import_image, namespace.name)
    return namespace


@pytest.fixture
async def watcher(engine: Containerd, namespace: NamespaceDriver) -> AsyncIterator[ContainerdWatcher]:
    async with ContainerdWatcher.at(f"unix://{engine.address}", include=[namespace.name]) as watcher:
        yield watcher


async def test_watcher_describes_engine(engine: Containerd, watcher: ContainerdWatcher) -> None:
    assert watcher.type == "containerd.io"
    assert watcher.api == engine.address
    assert watcher.pid == engine.pid
    assert (await watcher.version()).startswith(f"{engine.version}.")
    uuid = engine.directory / "root" / "io.containerd.grpc.v1.introspection" / "uuid"
    assert await watcher.id() == uuid.read_text()


async def test_watcher_reports_lifecycle_and_lists_container(
    namespace: NamespaceDriver, watcher: ContainerdWatcher
) -> None:
    id_ = f"lifecycle-{os.getpid()}-{next(_numbers)}"
    async with watcher.lifecycle_events() as events:
        await namespace.run(id_, "com.docker.compose.project=shop", "nerdctl/name=web")
        await namespace.ctr("tasks", "exec", "--exec-id", "e1", id_, "true")
        (container,) = await watcher.list()
        assert container == Container(
            id=f"{namespace.name}/{id_}",
            name=f"{namespace.name}/web",
            labels=container.labels,
            pid=container.pid,
            project="shop",
            paused=False,
        )
        assert container.labels["nerdctl/name"] == "web"
        assert command_line(container.pid) == "sleep 86400"
        for name in (container.id, id_[:-1], "web", f"{namespace.name}/web"):
            assert await watcher.inspect(name) == container

        await namespace.ctr("tasks", "pause", id_)
        assert (await watcher.inspect("web")).paused
        await namespace.ctr("tasks", "resume", id_)
        received = [await anext(events) for _ in range(3)]
        await namespace.ctr("containers", "label", id_, "com.docker.compose.project=other")
        await namespace.ctr("tasks", "kill", "--signal", "SIGKILL", id_)
        received.append(await anext(events))
    assert {event.id for event in received} == {container.id}
    assert [event.type for event in received] == [STARTED, PAUSED, UNPAUSED, EXITED]
    assert [event.project for event in received] == ["shop", "shop", "shop", "other"]
    assert await watcher.list() == []
    with raises_naming(NotFoundError, container.id, "STOPPED"):
        await watcher.inspect("web")


@one_engine
async def test_documented_watcher_example_runs(
    engine: Containerd, namespace: NamespaceDriver, capsys: pytest.CaptureFixture[str]
) -> None:
    source = re.search(r"```python\n(.*?)```", LIBRARY.read_text(), re.DOTALL)
    assert source is not None
    example: dict[str, object] = {"__name__": "example"}
    exec(compile(source[1], str(LIBRARY), "exec"), example)  # noqa: S102 - the documentation recommends this code
    main = example["main"]
    assert callable(main)

    id_ = f"example-{os.getpid()}-{next(_numbers)}"
    await namespace.run(f"{id_}-old", "com.docker.compose.project=shop")
    running = asyncio.create_task(main(engine.address))
    output = ""
    async with asyncio.timeout(60):
        while f"running: {namespace.name}/{id_}-old" not in output:
            await asyncio.sleep(0.01)
            output += capsys.readouterr().out
        await namespace.run(f"{id_}-new")
        while f"started: {namespace.name}/{id_}-new -" not in output:
            await asyncio.sleep(0.01)
            output += capsys.readouterr().out
    running.cancel()
    assert output.startswith(f"containerd.io {engine.version}.")
