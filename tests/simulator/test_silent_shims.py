"""Shims that do not send all events, with the real client, clock and outbox."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.core.containerd_model import ContainerKey
from tests.bridge_process import transitions
from tests.eventually import eventually_async
from tests.simulator.test_restart_recovery import Node

WEB = ContainerKey("shop", "web")
TASK_TOPICS = frozenset({"/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"})
START, EXIT = "/tasks/start", "/tasks/exit"


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    async with node.containerd:
        yield node


async def wait_for_transitions(node: Node, count: int) -> None:
    await eventually_async(lambda: len(transitions(node.records)) >= count, f"transition {count}")


@pytest.mark.parametrize(
    ("sent", "start", "end"),
    [
        pytest.param(set(), "inferred", "inferred", id="nothing"),
        pytest.param({START}, "live", "inferred", id="only starts"),
        pytest.param({EXIT}, "inferred", "live", id="only exits"),
        pytest.param({"/tasks/create"}, "inferred", "inferred", id="only creations"),
    ],
)
async def test_both_runs_are_published_when_shim_events_are_missing(
    node: Node, sent: set[str], start: str, end: str
) -> None:
    state = node.containerd.state
    async with node.bridge():
        state.dropped_topics |= TASK_TOPICS - sent
        state.create(WEB)
        for run in range(2):
            state.create_task(WEB)
            state.start(WEB)
            await wait_for_transitions(node, 2 * run + 1)
            state.exit(WEB, 3)
            await wait_for_transitions(node, 2 * run + 2)
            state.delete_task(WEB)
    assert [(each["type"], each["origin"]) for each in transitions(node.records)] == 2 * [
        ("started", start),
        ("exited", end),
    ]
    assert {each["exit"]["status"] for each in transitions(node.records) if each["exit"]} == {3}
