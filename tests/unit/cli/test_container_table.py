from __future__ import annotations

import re

import pytest

from bridge.cli import container_table
from bridge.cli.container_queries import ContainerInfo
from bridge.consumer.record_decoder import Container
from bridge.core.container_metadata import display_id
from bridge.core.containerd_model import ContainerKey

HASH = "919f59b7702144050b2c" + "0" * 44
CREATED = "2026-11-23T15:21:07.525245796Z"


def container_info(
    id_: str = HASH,
    namespace: str = "default",
    name: str = "",
    project: str = "",
    status: str = "running",
    pid: int = 7,
    created_at: str | None = CREATED,
) -> ContainerInfo:
    container = Container(
        id_, namespace, name or id_, project, "web", pid=pid, image="busybox:latest", created_at=created_at
    )
    return ContainerInfo(display_id(ContainerKey(namespace, id_)), status, container)


def cells(line: str) -> list[str]:
    return re.split(r" {2,}", line)


def test_table_has_one_complete_line_per_container() -> None:
    containers = [
        container_info(namespace="shop", name="web-" + "x" * 300, project="p"),
        container_info("b"),
        container_info("a"),
    ]
    head, *lines = container_table.render(containers, terminal=False).split("\n")
    assert cells(head) == list(container_table.COLUMNS)
    assert [cells(line) for line in lines] == [
        ["a", "a", "-", "web", "running", "7", "busybox:latest", "2026-11-23T15:21:07Z"],
        ["b", "b", "-", "web", "running", "7", "busybox:latest", "2026-11-23T15:21:07Z"],
        [f"shop/{HASH}", "web-" + "x" * 300, "p", "web", "running", "7", "busybox:latest", "2026-11-23T15:21:07Z"],
    ]
    assert not any(line.endswith(" ") for line in (head, *lines))


def test_table_has_only_header_when_empty() -> None:
    assert cells(container_table.render([], terminal=False)) == list(container_table.COLUMNS)


@pytest.mark.parametrize(
    ("status", "pid", "shown"), [("running", 7, "7"), ("paused", 7, "7"), ("unknown", 7, "7"), ("unknown", 0, "-")]
)
def test_table_shows_task_status(status: str, pid: int, shown: str) -> None:
    container = container_info(status=status, pid=pid, created_at=None)
    columns = cells(container_table.render([container], terminal=False).split("\n")[1])
    assert (columns[4], columns[5], columns[7]) == (status, shown, "-")


def test_table_on_terminal_is_short_wrapped_and_colored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    page = container_table.render([container_info(namespace="shop", name="web-" + "x" * 100)], terminal=True, width=100)
    assert "\x1b[32mrunning\x1b[0m" in page
    plain = re.sub(r"\x1b\[\d*m", "", page)
    assert "shop/919f59b77021 " in plain
    assert HASH not in plain
    assert max(map(len, plain.split("\n"))) <= 100
    assert "".join(cell for line in plain.split("\n")[1:] for cell in re.findall(r"x+", line)) == "x" * 101  # boxx:
    assert "2026-11-23T15:21:07Z" in plain


def test_table_has_no_color_when_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[3" not in container_table.render([container_info()], terminal=True, width=100)


@pytest.mark.parametrize("terminal", [True, False])
def test_table_escapes_control_characters(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    hostile = container_info("x", name="\x1b]0;t\x07[red]\r\n\x9b2J\u202e")
    page = container_table.render([hostile], terminal=terminal, width=200)
    page = re.sub(r"\x1b\[\d*m", "", page)  # the table's own colors
    assert all(line.isprintable() for line in page.split("\n"))
    assert r"\x1b]0;t\x07[red]\r\n\x9b2J\u202e" in page


def test_table_does_not_color_name_equal_to_status(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    page = container_table.render([container_info("x", name="running")], terminal=True, width=200)
    assert page.count("\x1b[32m") == 1


def test_table_aligns_wide_characters() -> None:
    """They take two columns of a terminal."""
    containers = [container_info("a", name="船"), container_info("b", name="boat")]
    _, first, second = container_table.render(containers, terminal=False).split("\n")
    assert first.startswith("b   boat  -        web")
    assert second.startswith("a   船    -        web")


def test_table_does_not_wrap_longest_name() -> None:
    lines = container_table.render([container_info("a", name="x" * 200_000)], terminal=False).split("\n")
    assert [cells(line)[1] for line in lines] == ["NAME", "x" * 200_000]
