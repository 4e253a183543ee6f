"""whalewatcher's engine client on the stand-in: what is alive, who is meant, what is told."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from grpc import StatusCode

from bridge.containerd import lifecycle
from bridge.containerd import watcher as module
from bridge.containerd.client import ContainerdClient
from bridge.containerd.watcher import Container, ContainerdWatcher, ContainerEvent, ContainerEventType, Living
from bridge.core.errors import AmbiguousError, NotFoundError, TransientError
from bridge.core.model import ContainerKey
from tests.eventually import eventually_async
from tests.golden import Golden
from tests.simulator.containerd import SimulatedContainerd
from tests.simulator.faults import ALL
from tests.simulator.state import IMAGE, RefusedError

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
    def test_constants_mean_what_they_mean_in_go(self) -> None:
        assert module.TYPE == ContainerdWatcher.type == "containerd.io"
        assert module.DOCKER_NAMESPACE == "moby"
        assert module.COMPOSER_PROJECT_LABEL == "com.docker.compose.project"
        assert module.NERDCTL_LABEL_PREFIX == "nerdctl/"
        assert module.NERDCTL_NAME_LABEL == "nerdctl/name"
        assert [*map(int, ContainerEventType)] == [0, 1, 2, 3]

    async def test_it_is_told(self, standin: SimulatedContainerd, watcher: ContainerdWatcher) -> None:
        assert await watcher.id() == standin.id
        assert await watcher.version() == "2.4.2+unknown"
        assert watcher.api == standin.address
        assert watcher.pid == os.getpid()
        assert watcher.client.path == standin.address

    async def test_its_pid_may_be_given(self, standin: SimulatedContainerd) -> None:
        async with ContainerdWatcher.at(standin.address, pid=42) as watcher:
            assert watcher.pid == 42

    async def test_its_pid_is_unknown_before_it_is_connected(self, standin: SimulatedContainerd) -> None:
        watcher = ContainerdWatcher.at(standin.address)
        assert watcher.pid == 0
        await watcher.list()
        assert watcher.pid == os.getpid()
        for _ in range(2):
            await watcher.close()


class TestList:
    async def test_what_lives_is_told_in_display_form(
        self, standin: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        plain = standin.state.run(key("default/a"))
        named = standin.state.run(key("shop/b"), {"nerdctl/name": "web", **PROJECT})
        assert await watcher.list() == [
            Container("a", "a", {}, plain, "", paused=False),
            Container("shop/b", "shop/web", {"nerdctl/name": "web", **PROJECT}, named, "p", paused=False),
        ]

    async def test_only_a_living_initial_process_counts(
        self, standin: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        standin.state.create(key("default/record-only"))
        standin.state.create(key("default/created"))
        standin.state.create_task(key("default/created"))
        for id_ in ("running", "paused", "stopped", "hung"):
            standin.state.run(key(f"default/{id_}"))
        standin.state.pause(key("default/paused"))
        standin.state.exit(key("default/stopped"))
        standin.version = "1.6"  # which lists it as UNKNOWN
        standin.faults.hung_shims.add(key("default/hung"))
        assert [(found.id, found.paused) for found in await watcher.list()] == [("running", False), ("paused", True)]

    @pytest.mark.parametrize(
        ("include", "exclude", "told"),
        [
            (("*",), (), ["a", "shop/b"]),
            (("moby",), (), ["moby/c"]),
            (("*", "moby"), (), ["a", "shop/b", "moby/c"]),
            (("*",), ("sh*",), ["a"]),
        ],
    )
    async def test_docker_is_left_out_unless_asked_for(
        self, standin: SimulatedContainerd, include: tuple[str, ...], exclude: tuple[str, ...], told: list[str]
    ) -> None:
        for text in ("default/a", "shop/b", "moby/c"):
            standin.state.run(key(text))
        async with ContainerdWatcher.at(standin.address, include=include, exclude=exclude) as watcher:
            assert [found.id for found in await watcher.list()] == told

    async def test_a_namespace_that_fails_is_not_passed_over(
        self, standin: SimulatedContainerd, watcher: ContainerdWatcher, golden: Golden
    ) -> None:
        standin.state.run(key("default/a"))
        standin.state.run(key("shop/b"))
        standin.faults.refused["Tasks.List", "shop"] = RefusedError(StatusCode.INTERNAL, "no")
        with golden.error(
            "containerd_errors", "watcher, Tasks.List fails", TransientError, standin.address, SOCKET=standin.address
        ):
            await watcher.list()

    async def test_what_has_lost_its_record_lives_all_the_same(
        self, standin: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        pid = standin.state.run(key("shop/a"), PROJECT)
        standin.faults.hooks["Tasks.List"] = lambda: standin.state.delete(key("shop/a"))
        assert await watcher.list() == [Container("shop/a", "shop/a", {}, pid, "", paused=False)]

    async def test_the_bridge_knows_more(self, standin: SimulatedContainerd, watcher: ContainerdWatcher) -> None:
        standin.state.run(key("shop/a"), PROJECT)
        (row,) = await watcher.living()
        assert isinstance(row, Living)
        assert (row.metadata.image, row.metadata.key, row.task.status.name) == (IMAGE, key("shop/a"), "RUNNING")


class TestInspect:
    async def test_it_is_found(self, standin: SimulatedContainerd, watcher: ContainerdWatcher) -> None:
        standin.state.run(key("shop/919f59"), {"nerdctl/name": "web"})
        standin.state.run(key("shop/other"))
        for meant in ("shop/919f59", "shop/91", "91", "web", "shop/web"):
            assert (await watcher.inspect(meant)).id == "shop/919f59"

    async def test_a_display_id_in_full_needs_no_listing(
        self, standin: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        standin.state.run(key("shop/a"))
        await watcher.inspect("shop/a")
        assert "Containers.List" not in standin.calls

    async def test_it_is_ambiguous(
        self, standin: SimulatedContainerd, watcher: ContainerdWatcher, golden: Golden
    ) -> None:
        standin.state.run(key("shop/a1"))
        standin.state.run(key("test/a2"))
        with golden.error("containers_found", "watcher, several", AmbiguousError, "shop/a1, test/a2"):
            await watcher.inspect("a")

    async def test_there_is_none(self, standin: SimulatedContainerd, watcher: ContainerdWatcher) -> None:
        standin.state.run(key("moby/docker"))
        for meant in ("nobody", "nowhere/nobody", "", "moby/docker", "docker"):
            with pytest.raises(NotFoundError):
                await watcher.inspect(meant)

    async def test_it_has_no_process(
        self, standin: SimulatedContainerd, watcher: ContainerdWatcher, golden: Golden
    ) -> None:
        standin.state.create(key("shop/record"))
        with golden.error("containers_found", "no task", NotFoundError, "shop/record"):
            await watcher.inspect("shop/record")
        standin.state.create_task(key("shop/record"))
        with golden.error("containers_found", "a task that was only created", NotFoundError, "shop/record", "CREATED"):
            await watcher.inspect("shop/record")

    async def test_its_shim_does_not_answer(self, standin: SimulatedContainerd, watcher: ContainerdWatcher) -> None:
        standin.state.run(key("shop/a"))
        standin.faults.hung_shims.add(key("shop/a"))
        for version in ("1.6", "2.4"):
            standin.version = version
            with pytest.raises(TransientError):
                await watcher.inspect("shop/a")


class TestEvents:
    async def test_transitions_are_told_and_execs_are_not(
        self, standin: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        state, shop = standin.state, key("shop/a")
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
            told = [await anext(events) for _ in range(5)]
        assert [(event.type, event.id, event.project) for event in told] == [
            (STARTED, "shop/a", "p"),
            (PAUSED, "shop/a", "p"),
            (UNPAUSED, "shop/a", "p"),
            (EXITED, "shop/a", "p"),
            (STARTED, "b", ""),
        ]
        assert all(one.timestamp <= other.timestamp for one, other in pairwise(told))
        assert isinstance(told[0], ContainerEvent)

    async def test_projects_are_asked_for_once_and_followed(
        self, standin: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        state, shop = standin.state, key("shop/a")
        async with watcher.lifecycle_events() as events:
            state.run(shop, PROJECT)
            state.pause(shop)
            assert [(await anext(events)).project for _ in range(2)] == ["p", "p"]
            assert standin.calls.count("Containers.Get") == 1
            state.relabel(shop, {"com.docker.compose.project": "q"})
            state.exit(shop)
            assert (await anext(events)).project == "q"
            state.delete_task(shop)
            state.delete(shop)
            state.publish_exit(shop, 1, 137)  # once more, late
            assert (await anext(events)).project == "q"
            state.run(shop)  # another one of the same name
            assert (await anext(events)).project == ""
            assert standin.calls.count("Containers.Get") == 2

    async def test_a_record_that_is_gone_has_no_project(
        self, standin: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        async with watcher.lifecycle_events() as events:
            standin.state.publish_exit(key("shop/gone"), 1, 137)
            assert (await anext(events)).project == ""

    async def test_it_begins_by_itself(self, standin: SimulatedContainerd, watcher: ContainerdWatcher) -> None:
        events = watcher.lifecycle_events()
        waiting = asyncio.create_task(anext(events))
        await eventually_async(lambda: bool(standin.state.listeners))
        standin.state.run(key("shop/a"))
        assert (await waiting).type is STARTED
        standin.state.exit(key("shop/a"))
        async for event in events:
            assert event.type is EXITED
            break
        events.close()
        events.close()

    async def test_whoever_is_cancelled_misses_nothing(
        self, standin: SimulatedContainerd, watcher: ContainerdWatcher
    ) -> None:
        async with watcher.lifecycle_events() as events:
            standin.faults.hang("Containers.Get")
            waiting = asyncio.create_task(anext(events))
            standin.state.run(key("shop/a"))
            await eventually_async(lambda: "Containers.Get" in standin.calls)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            standin.faults.release()
            assert (await anext(events)).type is STARTED

    async def test_a_lost_stream_is_an_error(self, standin: SimulatedContainerd, watcher: ContainerdWatcher) -> None:
        async with watcher.lifecycle_events() as events:
            await standin.stop()
            with pytest.raises(TransientError, match=re.escape(standin.address)):
                await anext(events)

    async def test_a_subscription_that_cannot_be_proven_is_none(
        self, standin: SimulatedContainerd, watcher: ContainerdWatcher, golden: Golden
    ) -> None:
        standin.faults.refused["Events.Publish", ALL] = RefusedError(StatusCode.PERMISSION_DENIED, "read only")
        with golden.error(
            "containerd_errors",
            "watcher, Events.Publish denied",
            TransientError,
            "Events.Publish",
            SOCKET=standin.address,
        ):
            await anext(watcher.lifecycle_events())
        await eventually_async(lambda: not standin.state.listeners)

    async def test_nor_is_one_whose_marks_do_not_come_back(
        self, standin: SimulatedContainerd, watcher: ContainerdWatcher, monkeypatch: pytest.MonkeyPatch, golden: Golden
    ) -> None:
        monkeypatch.setattr(lifecycle, "_MARKS", 3)
        standin.faults.deaf = True
        with golden.error(
            "containerd_errors", "watcher, no event arrives", TransientError, standin.address, SOCKET=standin.address
        ):
            await anext(watcher.lifecycle_events())

    async def test_projects_take_bounded_memory(
        self, standin: SimulatedContainerd, client: ContainerdClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "_PROJECTS_KEPT", 2)
        projects = lifecycle.Projects(client)
        for number in range(5):
            standin.state.run(key(f"shop/{number}"), PROJECT)
            assert await projects.of(key(f"shop/{number}")) == "p"
        assert await projects.of(key("shop/0")) == "p"
        assert standin.calls.count("Containers.Get") == 6

    def test_what_never_began_may_be_closed(self, client: ContainerdClient) -> None:
        ContainerdWatcher(client).lifecycle_events().close()
