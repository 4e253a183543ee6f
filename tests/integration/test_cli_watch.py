"""`whalebridge watch` on real terminals and real containerds."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.eventually import eventually
from tests.integration.commands import ENVIRONMENT, HOSTILE, WHALEBRIDGE, ContainerFactory
from tests.integration.engines import one_engine_factory
from tests.integration.terminal import ALTERNATE_SCREEN, MAIN_SCREEN, SHOW_CURSOR, Terminal
from tests.naming import assert_names
from tests.testbed.containerd import Containerd


@pytest.fixture
def container_factory(engine_factory: Callable[[], Containerd]) -> ContainerFactory:
    """Create containers on a private containerd: the screen has little room, and other tests stop containers."""
    return ContainerFactory(engine_factory())


def start_watch(address: str, *flags: str, **options: int) -> Terminal:
    return Terminal([*WHALEBRIDGE, "watch", "--containerd", address, *flags], ENVIRONMENT, **options)


def lines(page: str, start: str) -> list[list[str]]:
    return [line.split() for line in page.splitlines() if line.startswith(start)]


@one_engine_factory
def test_watch_updates_table_when_containers_change(container_factory: ContainerFactory) -> None:
    first = container_factory.run(labels={"nerdctl/name": "shop-web-1", "com.docker.compose.project": "shop"})
    with start_watch(container_factory.address) as terminal:
        page = terminal.wait(lambda page: first in page, "container")
        assert [cells[1:4] for cells in lines(page, first)] == [["shop-web-1", "shop", "-"]]
        second = container_factory.run("shop")
        terminal.wait(lambda page: lines(page, f"shop/{second}"), "second container")
        container_factory.engine.ctr("tasks", "pause", first)
        terminal.wait(lambda page: "paused" in lines(page, first)[0], "paused container")
        container_factory.engine.ctr("tasks", "kill", "--signal", "SIGKILL", second, namespace="shop")
        page = terminal.wait(lambda page: not lines(page, f"shop/{second}"), "exit of the second container")
        events = [line.split()[1:] for line in page.partition("LAST EVENTS")[2].splitlines()[1:] if line.split()]
        assert events[-3:] == [
            ["started", f"shop/{second}"],
            ["paused", "default/shop-web-1", "project", "shop"],
            ["exited", f"shop/{second}", "status", "137"],
        ]
        terminal.resize(80, 20)
        terminal.wait(lambda page: "IMAGE" not in page and first in page, "smaller page")
        assert terminal.stop(signal.SIGINT) == 0
        assert ALTERNATE_SCREEN in terminal.text
        assert terminal.text.rindex(MAIN_SCREEN) > terminal.text.rindex(first)
        assert SHOW_CURSOR in terminal.text[terminal.text.rindex(first) :]


@one_engine_factory
def test_watch_escapes_hostile_names_on_terminal(container_factory: ContainerFactory) -> None:
    id_ = container_factory.run(labels={"nerdctl/name": HOSTILE, "com.docker.compose.project": HOSTILE})
    with start_watch(container_factory.address, columns=200) as terminal:
        terminal.wait(lambda page: id_ in page, "container")
        container_factory.engine.ctr("tasks", "pause", id_)
        terminal.wait(lambda page: "project" in page, "event")
        assert terminal.stop(signal.SIGTERM) == 0
        for sequence in ("\x1b]", "\x07", "\x9b", "\u202e"):
            assert sequence not in terminal.text
        assert r"web\x1b]0;title\x07[red]\x9b2J\u202e" in terminal.text


@one_engine_factory
def test_watch_recovers_after_containerd_restart(engine_factory: Callable[[], Containerd]) -> None:
    engine = engine_factory()
    stays, exits, new = (f"{stem}-{os.getpid()}" for stem in ("stays", "exits", "new"))
    for id_ in (stays, exits):
        engine.run(id_, "sleep", "86400")
    with start_watch(engine.address) as terminal:
        terminal.wait(lambda page: stays in page and exits in page, "containers")
        engine.ctr("tasks", "pause", stays)
        terminal.wait(lambda page: "paused" in page, "paused container")
        engine.kill()
        page = terminal.wait(lambda page: "not connected (showing the last known state)" in page, "connection error")
        assert lines(page, stays)
        assert lines(page, exits)
        engine.start()
        engine.ctr("tasks", "kill", "--signal", "SIGKILL", exits)
        eventually(lambda: engine.tasks().get(exits) != "RUNNING")
        engine.run(new, "sleep", "86400")
        page = terminal.wait(
            lambda page: lines(page, new) and not lines(page, exits) and "not connected" not in page, "updated page"
        )
        assert "paused" in lines(page, stays)[0]
        assert "started: reconnect, since" in page
        assert terminal.stop(signal.SIGINT) == 0
    engine.ctr("tasks", "resume", stays)


def test_watch_prints_one_line_error_when_socket_is_missing() -> None:
    with start_watch("/nowhere.sock") as terminal:
        assert terminal.process.wait(30) == 3
        terminal.wait(lambda page: page.endswith("\n"), "line")
        assert terminal.text.startswith("whalebridge: ")
        assert_names(terminal.text, "/nowhere.sock")
        assert terminal.text.count("\n") == 1
