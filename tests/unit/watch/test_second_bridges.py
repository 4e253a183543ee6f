"""Second bridges of the same source: noticed by their markers, and followed by a newer epoch when all have ended."""

from __future__ import annotations

import pytest

from bridge.core.containerd_model import Marker
from bridge.core.time import MILLISECOND
from bridge.watch.second_bridges import MAX_BRIDGES, MAX_EPOCH_LEAD, SILENT_MARKERS, SecondBridges
from tests.unit.watch.fakes import WEB, HookedClient, exit_event, synced_watch
from tests.virtual_time import START, VirtualClock

EPOCH = START // MILLISECOND + 3_600_000  # an hour ahead
MARKER_SECONDS = 10


def marker_of(number: int = 1, *, host: str = "node-1", epoch: int = EPOCH) -> Marker:
    """Return a marker of another bridge process, as ``SecondBridges`` of that process announces it."""
    nonce = f"{number:016x}{SecondBridges(VirtualClock(1 / (number + 2)), host).announcement(epoch)}"
    return Marker(nonce, 1)


def bridges() -> SecondBridges:
    return SecondBridges(VirtualClock(), "node-1")


def return_markers(others: SecondBridges, times: int) -> list[bool]:
    return [others.marker_returned() for _ in range(times)]


async def test_newer_epoch_begins_when_second_bridge_is_silent() -> None:
    client = HookedClient({WEB: 10})
    attributes = {"cluster": "prod-1"}
    async with synced_watch(client, marker_interval=MARKER_SECONDS, attributes=attributes) as running:
        client.stream.put(marker_of())
        await running.wait_synced(2)
        client.stream.put(exit_event(WEB, 10))
        await running.eventually(lambda: running.documents[-1]["type"] == "exited")
    first, (begin, *rest) = (
        [each for each in running.documents if (each["epoch"] > EPOCH) is newer] for newer in (False, True)
    )
    assert {each["epoch"] for each in (begin, *rest)} == {EPOCH + 1}
    assert [each["sequence"] for each in (begin, *rest)] == list(range(1, len(rest) + 2))
    assert (begin["type"], begin["snapshot"]["reason"]) == ("snapshot_started", "second_bridge")
    assert begin["snapshot"]["previous"] is None
    assert first[-1]["timestamp"] <= begin["snapshot"]["until"]
    assert begin["snapshot"]["since"] < begin["snapshot"]["until"]
    assert [each["id"] for each in rest if each["type"] == "present"] == ["web"]
    assert running.watch.counters.gaps["second_bridge"] == 1
    assert all(each["attributes"] == attributes for each in running.documents)


async def test_newest_epoch_stays_and_snapshot_follows_second_bridge() -> None:
    client = HookedClient()
    async with synced_watch(client, marker_interval=MARKER_SECONDS) as running:
        client.stream.put(marker_of(epoch=1))
        await running.wait_synced(2)
    assert running.snapshots()[1]["reason"] == "second_bridge"
    assert len({each["epoch"] for each in running.documents}) == 1


async def test_epoch_stays_when_others_are_not_of_this_source() -> None:
    client = HookedClient()
    async with synced_watch(client, marker_interval=MARKER_SECONDS) as running:
        client.stream.put(marker_of(host="node-2"), Marker("f" * 16, 1))
        await running.eventually(lambda: running.watch.event_counts["foreign_marker"] == 2)
        sent = client.calls["publish_marker"]
        await running.eventually(lambda: client.calls["publish_marker"] > sent + SILENT_MARKERS + 1)
        assert running.watch.second_bridges.count == 0
    assert len({each["epoch"] for each in running.documents}) == 1


def test_bridge_counts_until_all_others_are_silent() -> None:
    others = bridges()
    others.receive(marker_of(1, epoch=EPOCH + 5))
    others.receive(marker_of(2))
    assert others.count == 2
    assert return_markers(others, SILENT_MARKERS - 1) == [False] * (SILENT_MARKERS - 1)
    others.receive(marker_of(1))
    assert return_markers(others, 1) == [False]
    assert others.count == 1
    assert return_markers(others, SILENT_MARKERS) == [False, True, False]
    assert others.count == 0
    overlap = others.take_overlap()
    assert overlap is not None
    assert overlap.newest_epoch == EPOCH + 5
    assert others.take_overlap() is None


def test_silence_counts_from_zero_on_next_connection() -> None:
    others = bridges()
    others.receive(marker_of())
    return_markers(others, SILENT_MARKERS - 1)
    others.restart_silence()
    assert not any(return_markers(others, SILENT_MARKERS - 1))
    assert return_markers(others, 1) == [True]


@pytest.mark.parametrize("nonce", ["", "f" * 16, "f" * 59, "f" * 61, "F" * 60, "g" * 60])
def test_marker_without_valid_announcement_is_no_bridge(nonce: str) -> None:
    others = bridges()
    others.receive(Marker(nonce, 1))
    assert others.count == 0


@pytest.mark.parametrize(("lead", "expected"), [(MAX_EPOCH_LEAD, 1), (MAX_EPOCH_LEAD + 1, 0)])
def test_marker_with_epoch_far_in_future_is_no_bridge(lead: int, expected: int) -> None:
    others = bridges()
    others.receive(marker_of(epoch=START // MILLISECOND + lead))
    assert others.count == expected
    assert (others.take_overlap() is not None) is bool(expected)


def test_own_markers_are_no_second_bridge() -> None:
    others = bridges()
    others.receive(Marker("0" * 16 + others.announcement(EPOCH), 1))
    assert others.count == 0


def test_bridge_that_does_not_publish_is_not_announced() -> None:
    silent = SecondBridges(VirtualClock(), "node-1", publishes=False)
    silent.receive(marker_of())
    assert (silent.count, silent.announcement(EPOCH)) == (0, "")


def test_number_of_tracked_bridges_is_limited() -> None:
    others = bridges()
    for number in range(10 * MAX_BRIDGES):
        others.receive(marker_of(number))
    assert others.count == MAX_BRIDGES
