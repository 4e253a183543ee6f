"""Test whalewatcher's engine client on a simulated containerd: lists, inspection and lifecycle events."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest

from bridge.containerd import whalewatcher_api as module
from bridge.containerd import whalewatcher_events
from bridge.containerd.client import ContainerdClient
from bridge.containerd.http2 import StatusCode
from bridge.containerd.whalewatcher_api import (
    Container,
    ContainerdWatcher,
    ContainerEvent,
    ContainerEventType,
    RunningContainer,
)
from bridge.core.containerd_model import ContainerKey
from bridge.core.errors import AmbiguousError, NotFoundError, TransientError
from tests.eventually import eventually_async
from tests.golden import Golden
from tests.simulator.containerd import SimulatedContainerd
from tests.simulator.faults import ALL
from tests.simulator.state import IMAGE, SimulatedRpcError

pytestmark = pytest.mark.real_time

PROJECT = {"com.docker.compose.project": "p"}
STARTED, EXITED, PAUSED, UNPAUSED = ContainerEventType


@pytest.fixture
async def watcher(client: ContainerdClient) -> AsyncIterator[ContainerdWatcher]:
    async with ContainerdWatcher(client) as watcher:
        yield watcher


def key(text: str) -> ContainerKey:
    namespace, _, id_ = text.partition("/")
    return ContainerKey(namespace, id_)


class TestEngine:
    def test_whalewatcher_constants_equal_go_constants(self) -> None:
        assert module.TYPE == ContainerdWatcher.type == "containerd.io"
        assert module.DOCKER_NAMESPACE == "moby"
        assert module.COMPOSER_PROJECT_LABEL == "com.docker.compose.project"
        assert module.NERDCTL_LABEL_PREFIX == "nerdctl/"
        assert module.NERDCTL_NAME_LABEL == "nerdctl/name"
        assert [*map(int, ContainerEventType)] == [0, 1, 2, 3]

    async def test_engine_client_returns_id_version_api_and_pid(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        assert await watcher.id() == containerd.id
        assert await watcher.version() == "2.4.2+unknown"
        assert watcher.api == containerd.address
        assert watcher.pid == os.getpid()
        assert watcher.client.path == containerd.address

    async def test_engine_pid_can_be_passed(self, containerd: SimulatedContainerd) -> None:
        async with ContainerdWatcher.at(containerd.address, pid=42) as watcher:
            assert watcher.pid == 42

    async def test_engine_pid_is_zero_before_first_connection(self, containerd: SimulatedContainerd) -> None:
        watcher = ContainerdWatcher.at(containerd.address)
        assert watcher.pid == 0
        await watcher.list()
        assert watcher.pid == os.getpid()
        for _ in range(2):
            await watcher.close()


class TestList:
    async def test_list_returns_containers_with_display_ids(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        plain = containerd.state.run(key("default/a"))
        named = containerd.state.run(key("shop/b"), {"nerdctl/name": "web", **PROJECT})
        assert await watcher.list() == [
            Container("a", "a", {}, plain, "", paused=False),
            Container("shop/b", "shop/web", {"nerdctl/name": "web", **PROJECT}, named, "p", paused=False),
        ]

    async def test_list_returns_only_running_and_paused_containers(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        containerd.state.create(key("default/no-task"))
        containerd.state.create(key("default/created"))
        containerd.state.create_task(key("default/created"))
        for id_ in ("running", "paused", "stopped", "hung"):
            containerd.state.run(key(f"default/{id_}"))
        containerd.state.pause(key("default/paused"))
        containerd.state.exit(key("default/stopped"))
        containerd.version = "1.6"  # lists a hung task as UNKNOWN
        containerd.faults.hung_shims.add(key("default/hung"))
        assert [(container.id, container.paused) for container in await watcher.list()] == [
            ("running", False),
            ("paused", True),
        ]

    @pytest.mark.parametrize(
        ("include", "exclude", "ids"),
        [
            (("*",), (), ["a", "shop/b"]),
            (("moby",), (), ["moby/c"]),
            (("*", "moby"), (), ["a", "shop/b", "moby/c"]),
            (("*",), ("sh*",), ["a"]),
        ],
    )
    async def test_list_excludes_docker_namespace_unless_included(
        self, containerd: SimulatedContainerd, include: tuple[str, ...], exclude: tuple[str, ...], ids: list[str]
    ) -> None:
        for text in ("default/a", "shop/b", "moby/c"):
            containerd.state.run(key(text))
        async with ContainerdWatcher.at(containerd.address, include=include, exclude=exclude) as watcher:
            assert [container.id for container in await watcher.list()] == ids

    async def test_list_raises_when_namespace_fails(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher, golden: Golden
    ) -> None:
        containerd.state.run(key("default/a"))
        containerd.state.run(key("shop/b"))
        containerd.faults.errors["Tasks.List", "shop"] = SimulatedRpcError(StatusCode.INTERNAL, "no")
        with golden.error("containerd_errors", "watcher, Tasks.List fails", TransientError, containerd.address):
            await watcher.list()

    async def test_list_includes_task_without_container_metadata(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        pid = containerd.state.run(key("shop/a"), PROJECT)
        containerd.faults.hooks["Tasks.List"] = lambda: containerd.state.delete(key("shop/a"))
        assert await watcher.list() == [Container("shop/a", "shop/a", {}, pid, "", paused=False)]

    async def test_running_containers_include_metadata_and_task(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        containerd.state.run(key("shop/a"), PROJECT)
        (container,) = await watcher.list_detailed()
        assert isinstance(container, RunningContainer)
        assert (container.metadata.image, container.metadata.key, container.task.status.name) == (
            IMAGE,
            key("shop/a"),
            "RUNNING",
        )


class TestInspect:
    async def test_inspect_finds_container_by_id_prefix_or_name(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        containerd.state.run(key("shop/919f59"), {"nerdctl/name": "web"})
        containerd.state.run(key("shop/other"))
        for name_or_id in ("shop/919f59", "shop/91", "91", "web", "shop/web"):
            assert (await watcher.inspect(name_or_id)).id == "shop/919f59"

    async def test_inspect_needs_no_listing_for_full_display_id(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        containerd.state.run(key("shop/a"))
        await watcher.inspect("shop/a")
        assert "Containers.List" not in containerd.calls

    async def test_inspect_raises_when_id_is_ambiguous(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher, golden: Golden
    ) -> None:
        containerd.state.run(key("shop/a1"))
        containerd.state.run(key("test/a2"))
        with golden.error("containers_found", "watcher, several", AmbiguousError, "shop/a1, test/a2"):
            await watcher.inspect("a")

    async def test_inspect_raises_when_container_is_not_found(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        containerd.state.run(key("moby/docker"))
        for name_or_id in ("missing", "nowhere/missing", "", "moby/docker", "docker"):
            with pytest.raises(NotFoundError):
                await watcher.inspect(name_or_id)

    async def test_inspect_raises_when_container_has_no_process(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher, golden: Golden
    ) -> None:
        containerd.state.create(key("shop/taskless"))
        with golden.error("containers_found", "no task", NotFoundError, "shop/taskless"):
            await watcher.inspect("shop/taskless")
        containerd.state.create_task(key("shop/taskless"))
        with golden.error("containers_found", "created task", NotFoundError, "shop/taskless", "CREATED"):
            await watcher.inspect("shop/taskless")

    async def test_inspect_raises_when_shim_hangs(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        containerd.state.run(key("shop/a"))
        containerd.faults.hung_shims.add(key("shop/a"))
        for version in ("1.6", "2.4"):
            containerd.version = version
            with pytest.raises(TransientError):
                await watcher.inspect("shop/a")


class TestEvents:
    async def test_lifecycle_events_include_transitions_without_execs(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        state, shop = containerd.state, key("shop/a")
        async with watcher.lifecycle_events() as events:
            state.run(shop, PROJECT)
            state.exec(shop, "e1", status=1)
            state.pause(shop)
            state.resume(shop)
            state.oom(shop)
            state.run(key("moby/docker"))
            state.exit(shop)
            state.delete_task(shop)
            state.run(key("default/b"))
            received = [await anext(events) for _ in range(5)]
        assert [(event.type, event.id, event.project) for event in received] == [
            (STARTED, "shop/a", "p"),
            (PAUSED, "shop/a", "p"),
            (UNPAUSED, "shop/a", "p"),
            (EXITED, "shop/a", "p"),
            (STARTED, "b", ""),
        ]
        assert all(earlier.timestamp <= later.timestamp for earlier, later in pairwise(received))
        assert isinstance(received[0], ContainerEvent)

    async def test_project_is_fetched_once_and_updated_by_events(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        state, shop = containerd.state, key("shop/a")
        async with watcher.lifecycle_events() as events:
            state.run(shop, PROJECT)
            state.pause(shop)
            assert [(await anext(events)).project for _ in range(2)] == ["p", "p"]
            assert containerd.calls.count("Containers.Get") == 1
            state.relabel(shop, {"com.docker.compose.project": "q"})
            state.exit(shop)
            assert (await anext(events)).project == "q"
            state.delete_task(shop)
            state.delete(shop)
            state.publish_exit(shop, 1, 137)  # a late duplicate
            assert (await anext(events)).project == "q"
            state.run(shop)  # a new container with the same id
            assert (await anext(events)).project == ""
            assert containerd.calls.count("Containers.Get") == 2

    async def test_project_is_empty_when_container_metadata_is_gone(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        async with watcher.lifecycle_events() as events:
            containerd.state.publish_exit(key("shop/gone"), 1, 137)
            assert (await anext(events)).project == ""

    async def test_lifecycle_events_subscribe_on_first_iteration(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        events = watcher.lifecycle_events()
        waiting = asyncio.create_task(anext(events))
        await eventually_async(lambda: bool(containerd.state.listeners))
        containerd.state.run(key("shop/a"))
        assert (await waiting).type is STARTED
        containerd.state.exit(key("shop/a"))
        async for event in events:
            assert event.type is EXITED
            break
        events.close()
        events.close()

    async def test_lifecycle_events_keep_event_when_canceled(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        async with watcher.lifecycle_events() as events:
            containerd.faults.hang("Containers.Get")
            waiting = asyncio.create_task(anext(events))
            containerd.state.run(key("shop/a"))
            await eventually_async(lambda: "Containers.Get" in containerd.calls)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            containerd.faults.release()
            assert (await anext(events)).type is STARTED

    async def test_lifecycle_events_raise_when_stream_is_lost(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        async with watcher.lifecycle_events() as events:
            await containerd.stop()
            with pytest.raises(TransientError, match=re.escape(containerd.address)):
                await anext(events)

    async def test_lifecycle_events_raise_when_markers_are_denied(
        self, containerd: SimulatedContainerd, watcher: ContainerdWatcher, golden: Golden
    ) -> None:
        containerd.faults.errors["Events.Publish", ALL] = SimulatedRpcError(StatusCode.PERMISSION_DENIED, "read only")
        with golden.error("containerd_errors", "watcher, Events.Publish denied", TransientError, "Events.Publish"):
            await anext(watcher.lifecycle_events())
        await eventually_async(lambda: not containerd.state.listeners)

    async def test_lifecycle_events_raise_when_markers_do_not_return(
        self,
        containerd: SimulatedContainerd,
        watcher: ContainerdWatcher,
        monkeypatch: pytest.MonkeyPatch,
        golden: Golden,
    ) -> None:
        monkeypatch.setattr(whalewatcher_events, "_MARKER_TIMEOUT_SECONDS", 0.3)
        containerd.faults.drop_published = True
        with golden.error("containerd_errors", "watcher, no event arrives", TransientError, containerd.address):
            await anext(watcher.lifecycle_events())

    async def test_project_cache_evicts_oldest_when_full(
        self, containerd: SimulatedContainerd, client: ContainerdClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(whalewatcher_events, "_MAX_PROJECTS", 2)
        projects = whalewatcher_events.ProjectCache(client)
        for number in range(5):
            containerd.state.run(key(f"shop/{number}"), PROJECT)
            assert await projects.get(key(f"shop/{number}")) == "p"
        assert await projects.get(key("shop/0")) == "p"
        assert containerd.calls.count("Containers.Get") == 6

    def test_lifecycle_events_close_before_start(self, client: ContainerdClient) -> None:
        ContainerdWatcher(client).lifecycle_events().close()
