from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from random import Random

import msgspec
import pytest

from bridge.consumer import State
from bridge.consumer.conformance import BEGIN, ENGINE, HOST
from bridge.consumer.conformance import FIRST_EPOCH as E1
from bridge.consumer.conformance import SampleBridge as Bridge
from bridge.consumer.conformance import incarnation_of as run
from bridge.consumer.history import PastState, Period, Run
from bridge.consumer.record_decoder import DecodedRecord, Source, decode
from bridge.core.records import Record
from tests.conformance.vectors import E2, edited, flat

SOURCE = Source(HOST, ENGINE)
RANDOM_SEEDS = range(40)


def at(seconds: float) -> datetime:
    """Return a time after the begin of the first epoch of `Bridge`, in which each record takes a second."""
    return datetime.fromtimestamp(BEGIN // 10**9, UTC) + timedelta(seconds=seconds)


def decoded(*parts: Record | Sequence[Record] | bytes) -> list[DecodedRecord]:
    lines = [line for part in parts for line in ([part] if isinstance(part, bytes) else flat(part))]
    return [decode(line)[0] for line in lines]


def state_at(moment: datetime, records: Sequence[DecodedRecord]) -> PastState:
    state = PastState(moment)
    for record in records:
        state.apply(record)
    return state


def summary(state: PastState | State, moment: datetime) -> tuple[dict[str, tuple[str, bool]], bool]:
    """Return the containers with their incarnations, and whether they are complete, of the only source."""
    if isinstance(state, PastState):
        containers, info = state.containers(), state.sources()[0].info
    else:
        containers, info = state.containers(now=moment), state.sources(now=moment)[0]
    return {each.id: (each.container.incarnation, each.container.paused) for each in containers}, info.complete


def random_history(seed: int) -> list[Record]:
    """Return the records of two epochs: transitions, snapshots and losses."""
    random = Random(seed)  # noqa: S311
    records: list[Record] = []
    running: dict[str, int] = {}
    pids = iter(range(100, 10_000))
    previous = None
    for epoch in (E1, E2):
        node = Bridge(epoch, previous)
        records += node.snapshot(*running.items())
        for _ in range(20):
            id_ = random.choice("abcd")
            match random.randrange(8):
                case 0:
                    records += node.snapshot(*running.items(), reason="interval")
                case 1:
                    records.append(node.heartbeat())
                case 2 if id_ in running:
                    records.append(node.lost(node.exit(id_, running.pop(id_))))
                case _ if id_ in running:
                    records.append(node.exit(id_, running.pop(id_)))
                case _:
                    running[id_] = next(pids)
                    records.append(node.start(id_, running[id_]))
        previous = (epoch, records[-1].sequence)
    return records


@pytest.mark.parametrize("seed", RANDOM_SEEDS)
def test_past_state_is_that_of_the_records_until_then(seed: int) -> None:
    records = decoded(random_history(seed))
    shuffled = Random(seed).sample(records, len(records))  # noqa: S311
    present = State()
    for number, record in enumerate(records):
        present.apply(record)
        moment = datetime.fromisoformat(record.timestamp)
        later = [each for each in records[number + 1 :] if each.type != "heartbeat"]
        if not later or datetime.fromisoformat(later[0].timestamp) > moment:
            expected = summary(present, moment)
            if later and later[0].type == "lost":  # what is lost may have happened before
                expected = (expected[0], False)
            assert summary(state_at(moment, records), moment) == expected, record
            assert summary(state_at(moment, shuffled), moment) == expected, record


def test_past_state_uses_known_times_of_inferred_changes() -> None:
    node = Bridge()
    records = node.snapshot(("a", 101), ("b", 102))
    late = node.snapshot(
        ("c", 103), reason="reconnect", missed=[("exited", "a", 101), ("exited", "b", 102), ("started", "c", 103)]
    )
    known = edited(late[1], exit={"status": 0, "at": "2026-11-25T19:46:43.5Z", "oom": None})
    topic = decoded(records, late[0], known, late[2:])
    assert set(summary(state_at(at(3.4), topic), at(3))[0]) == {"a", "b"}
    assert set(summary(state_at(at(3.6), topic), at(3))[0]) == {"b"}
    assert set(summary(state_at(at(20), topic), at(20))[0]) == {"c"}


def test_past_state_within_gap_is_unknown_for_containers_that_changed() -> None:
    node = Bridge()
    first = node.snapshot(("a", 101), ("b", 102))
    late = node.snapshot(
        ("a", 101), ("c", 103), reason="reconnect", missed=[("exited", "b", 102), ("started", "c", 103)]
    )
    since = "2026-11-25T19:46:43.2Z"
    snapshot = msgspec.json.decode(late[0].data)["snapshot"]
    topic = decoded(first, edited(late[0], snapshot=snapshot | {"since": since}), late[1:])
    state = state_at(at(3.5), topic)
    assert {each.id: each.stale for each in state.containers()} == {"a": False, "b": True}
    (source,) = state.sources()
    assert source.unknown == [
        f"when b has exited: between {since} and 2026-11-25T19:46:44Z (reconnect)",
        f"when c has started: between {since} and 2026-11-25T19:46:44Z (reconnect)",
        f"containers that ran only between {since} and 2026-11-25T19:46:44Z (reconnect)",
    ]
    assert SOURCE not in state.complete_sources()
    before = state_at(at(3), topic)  # before the gap
    assert {each.id: each.stale for each in before.containers()} == {"a": False, "b": False}
    assert SOURCE in before.complete_sources()


def test_past_state_before_first_record_says_when_records_begin() -> None:
    node, other = Bridge(), Bridge(host="node-0")
    topic = decoded(node.snapshot(("a", 101)), other.snapshot())
    state = state_at(at(-1), topic)
    assert state.containers() == []
    assert state.begins_at == at(0)
    assert [each.unknown for each in state.sources()] == [["the records begin at 2026-11-25T19:46:40Z"]] * 2
    assert not any(each.info.complete for each in state.sources())


def test_past_state_between_unrelated_epochs_is_unknown() -> None:
    first, second = Bridge(), Bridge(E2)
    topic = decoded(first.snapshot(("a", 101), ("b", 102)), second.snapshot(("b", 102), ("c", 103)))
    state = state_at(at(50), topic)
    assert {each.id: each.stale for each in state.containers()} == {"a": True, "b": True}
    (source,) = state.sources()
    assert source.unknown == [
        "what happened until 2026-11-25T19:48:20Z, when whalebridge was started without its state"
    ]
    assert {each.id: each.stale for each in state_at(at(101), topic).containers()} == {"b": False, "c": False}


def test_past_state_is_stale_by_the_heartbeats_before_it() -> None:
    node = Bridge()
    topic = decoded(node.snapshot(("a", 101)), node.heartbeat(), Bridge(E1 + 10_000_000, (E1, 3)).snapshot(("a", 101)))
    for moment, stale in ((at(100), False), (at(1000), True)):
        state = state_at(moment, topic)
        assert [each.stale for each in state.containers()] == [stale]
        assert state.sources()[0].info.stale is stale


def test_past_state_before_retirement_has_the_containers() -> None:
    node = Bridge()
    snapshot = node.snapshot(("a", 101))
    retired = edited(node.retire(), timestamp="2026-11-25T20:00:00Z")
    topic = decoded(snapshot, retired)
    assert [each.id for each in state_at(at(600), topic).containers()] == ["a"]
    state = state_at(at(1000), topic)
    assert state.containers() == []
    assert state.sources()[0].info.retired is not None


def test_past_state_is_incomplete_if_earlier_records_are_missing() -> None:
    node = Bridge()
    first = node.snapshot(("a", 101))
    node.exit("a", 101)
    missing_before = node.start("b", 102)
    node.start("c", 103)
    topic = decoded(first, missing_before, node.start("d", 104))
    state = state_at(at(2.5), topic)
    assert state.sources()[0].info.missing == [(E1, 4, 4)]
    assert SOURCE not in state.complete_sources()
    assert state_at(at(5.5), topic).sources()[0].info.missing == [(E1, 4, 4), (E1, 6, 6)]


def names(runs: list[Run]) -> list[tuple[str, str, str | None]]:
    return [(each.id, each.container.incarnation, each.at) for each in runs]


def test_period_has_what_started_and_ended() -> None:
    node = Bridge()
    first = node.snapshot(("stays", 101), ("goes", 102), ("filtered", 103))
    topic = decoded(
        first,
        *(node.exit("goes", 102), node.start("brief", 104), node.exit("brief", 104), node.start("new", 105)),
        node.snapshot(("stays", 101), ("new", 105), ("shown", 106), reason="filters_changed"),
        node.exit("new", 105),
    )
    period = Period(at(4.5), at(13.5))
    for record in (*topic, *topic):
        period.apply(record)
    assert names(period.started()) == [
        ("shown", run(106), None),
        ("brief", run(104), "2026-11-25T19:46:46Z"),
        ("new", run(105), "2026-11-25T19:46:48Z"),
    ]
    assert names(period.ended()) == [
        ("filtered", run(103), None),
        ("goes", run(102), "2026-11-25T19:46:45Z"),
        ("brief", run(104), "2026-11-25T19:46:47Z"),
    ]
    assert [each.exit and each.exit.status for each in period.ended()] == [None, 0, 0]


def test_period_after_unknown_begin_has_only_recorded_starts() -> None:
    """What the first snapshot lists may have run before it."""
    node = Bridge()
    topic = decoded(node.snapshot(("old", 101)), node.start("new", 102))
    period = Period(at(-1), at(10))
    for record in topic:
        period.apply(record)
    assert [each.id for each in period.started()] == ["new"]
    assert period.ended() == []


def test_period_omits_starts_in_namespaces_not_listed_before() -> None:
    """What a namespace had that could not be listed may have run before."""
    node = Bridge()
    topic = decoded(
        node.snapshot(failed=["shop"]), node.snapshot(("a", 101), ("shop/a", 102), reason="filters_changed")
    )
    period = Period(at(1), at(10))
    for record in topic:
        period.apply(record)
    assert names(period.started()) == [("a", run(101), None)]


def test_period_sorts_by_time() -> None:
    node = Bridge()
    first, second = node.start("first", 101), node.start("second", 102)
    times = {"first": "2026-11-25T19:46:45Z", "second": "2026-11-25T19:46:45.250Z"}
    topic = decoded(
        node.snapshot(), edited(second, start={"at": times["second"]}), edited(first, start={"at": times["first"]})
    )
    period = Period(at(0), at(60))
    for record in topic:
        period.apply(record)
    assert [each.id for each in period.started()] == ["first", "second"]


def test_period_ends_run_that_started_in_it_and_is_gone() -> None:
    """The record of its exit was lost."""
    node = Bridge()
    topic = decoded(
        node.snapshot(), node.start("brief", 101), node.lost(node.exit("brief", 101)), node.snapshot(reason="overflow")
    )
    period = Period(at(0), at(60))
    for record in topic:
        period.apply(record)
    assert names(period.started()) == [("brief", run(101), "2026-11-25T19:46:42Z")]
    assert names(period.ended()) == [("brief", run(101), None)]
    assert period.ended()[0].noticed_at is None
