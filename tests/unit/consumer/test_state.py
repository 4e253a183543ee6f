from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.consumer import Change, Source, SourceInfo, State, follow
from bridge.consumer.dedup import SequenceRange
from bridge.consumer.record_decoder import Retired, decode
from bridge.core.record_encoder import heartbeat_record
from bridge.core.records import Record
from examples import running_containers, shared_topic
from tests.documentation import ROOT, code_blocks
from tests.eventually import eventually_async
from tests.sample_records import ENGINE, EPOCH, HOST, TIME, control_record, loss_record, record, records, retirement
from tests.scale import scaled
from tests.unit.consumer.test_projection import random_history

AT = datetime.fromisoformat(TIME)


def snapshot(first: int, *ids: str, epoch: int = EPOCH, previous: tuple[int, int] | None = None) -> list[Record]:
    """Return the records of a snapshot, whose first one has the sequence `first`."""
    last = first + 1 + len(ids)
    presents = [record(first + 1 + number, "present", id_=id_, epoch=epoch) for number, id_ in enumerate(ids)]
    started = _with_snapshot(
        control_record(first, "snapshot_started", first, epoch=epoch),
        containers=len(ids),
        previous=previous and {"epoch": previous[0], "sequence": previous[1]},
    )
    completed = control_record(last, "snapshot_completed", first, epoch=epoch)
    return [started, *presents, _with_snapshot(completed, containers=len(ids))]


def _with_snapshot(control: Record, **values: Any) -> Record:
    document = msgspec.json.decode(control.data)
    document["snapshot"] |= values
    return msgspec.structs.replace(control, data=msgspec.json.encode(document))


def apply(state: State, *applied: Record) -> list[Change]:
    return [change for each in applied if (change := state.apply(*decode(each.data)))]


def ids(state: State) -> set[str]:
    return {each.id for each in state.containers()}


def info(state: State, now: datetime = AT) -> SourceInfo:
    (source,) = state.sources(now=now)
    return source


# --- changes ---


def test_change_names_containers_that_run_and_those_that_ended() -> None:
    state = State()
    changes = apply(state, *snapshot(1, "a", "b"), record(5, "paused", id_="a"), record(6, "exited", id_="a"))
    assert [(each.record.type, set(each.updated), set(each.removed)) for each in changes] == [
        ("snapshot_started", set(), set()),
        ("present", {"shop/a"}, set()),
        ("present", {"shop/b"}, set()),
        ("snapshot_completed", set(), set()),
        ("paused", {"shop/a"}, set()),
        ("exited", set(), {"shop/a"}),
    ]
    (*_, completed) = apply(state, *snapshot(7))
    assert (completed.record.type, set(completed.removed), completed.source.host) == (
        "snapshot_completed",
        {"shop/b"},
        HOST,
    )
    assert apply(state, *snapshot(7), record(5, "paused", id_="a")) == []


def test_late_record_that_is_obsolete_changes_nothing() -> None:
    state = State()
    apply(state, *snapshot(1), record(6, "exited", id_="a"))
    (late,) = apply(state, record(5, "paused", id_="a"))
    assert (late.updated, late.removed, ids(state)) == ({}, {}, set())


# --- queries ---


def test_containers_are_selected_by_host_project_and_pod() -> None:
    state = State()
    document = msgspec.json.decode(record(2, id_="b", project="", namespace="k8s.io").data)
    document["container"]["pod"] = {"name": "web-0", "namespace": "shop", "uid": "1", "container": "b", "labels": None}
    state.apply(*decode(msgspec.json.encode(document)))
    apply(state, record(1, id_="a"), record(1, id_="c", host="node-2"))
    assert [each.id for each in state.containers(project="web-shop")] == ["shop/a", "shop/c"]
    assert [each.id for each in state.containers(pod="shop/web-0")] == ["k8s.io/b"]
    assert [each.id for each in state.containers(host="node-2")] == ["shop/c"]
    assert len(state.containers()) == 3


# --- sources ---


def test_source_is_stale_after_three_heartbeat_intervals() -> None:
    state = State()
    apply(state, *snapshot(1, "a"))
    assert info(state, AT + timedelta(days=9)).stale is None, "no heartbeat has said when to expect the next one"
    last = record(3)
    at = int(AT.timestamp()) * 10**9
    state.apply(*decode(heartbeat_record(last, at + 60 * 10**9, 1, 60.0).data))
    fresh_until = datetime.fromtimestamp(at / 10**9 + 240, UTC)
    assert info(state).watermark == datetime.fromtimestamp(at / 10**9 + 60, UTC)
    assert [info(state, fresh_until + timedelta(seconds=each)).stale for each in (0, 1)] == [False, True]
    assert [each.stale for each in state.containers(now=fresh_until + timedelta(seconds=1))] == [True]
    state.apply(*decode(heartbeat_record(last, at + 60 * 10**9, 2, 1.0).data))
    minimum = datetime.fromtimestamp(at / 10**9 + 120, UTC)
    assert [info(state, minimum + timedelta(seconds=each)).stale for each in (0, 1)] == [False, True]


def test_latest_heartbeat_counts_in_any_order(tmp_path: Path) -> None:
    """Inputs may be merged, and read again from an earlier position."""
    at = int(AT.timestamp())
    early, late, after_record = (
        heartbeat_record(record(sequence), (at + seconds) * 10**9, 1, interval).data
        for sequence, seconds, interval in ((3, 60, 60.0), (3, 120, 30.0), (4, 100, 20.0))
    )
    for heartbeats, seconds, interval in (
        ((late, early), 120, 30.0),
        ((early, late), 120, 30.0),
        ((after_record, late, early), 100, 20.0),  # the clock was set back
    ):
        state = State()
        for number, each in enumerate(heartbeats):
            state.apply(*decode(each))
            if number == 0:
                state.save(tmp_path / "state")
                state = State.load(tmp_path / "state")
        watermark = datetime.fromtimestamp(at + seconds, UTC)
        assert info(state).watermark == watermark
        stale_after = watermark + timedelta(seconds=max(60.0, 3 * interval))
        assert [info(state, stale_after + timedelta(seconds=each)).stale for each in (0, 1)] == [False, True]


@pytest.mark.parametrize(("interval", "stale"), [(1e300, False), (-1e300, True)])
def test_heartbeat_with_impossible_interval_is_harmless(interval: float, *, stale: bool) -> None:
    state = State()
    state.apply(*decode(heartbeat_record(record(3), 0, 1, interval).data))
    assert info(state).stale is stale


@pytest.mark.parametrize("timestamp", ["0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "soon"])
def test_record_with_impossible_timestamp_is_harmless(timestamp: str) -> None:
    state = State()
    state.apply(*decode(msgspec.json.encode(msgspec.json.decode(record(1).data) | {"timestamp": timestamp})))
    assert info(state).watermark == datetime.min.replace(tzinfo=UTC)
    assert state.start_position == "beginning"


def test_source_names_missing_and_altered_records() -> None:
    state = State()
    apply(state, *snapshot(1, "a"), record(5), record(5, name="other"), record(7))
    assert info(state).missing == [SequenceRange(EPOCH, 4, 4), SequenceRange(EPOCH, 6, 6)]
    assert info(state).altered == [(EPOCH, 5)]
    assert not info(state).complete
    apply(state, record(4), record(6))
    assert (info(state).missing, info(state).complete) == ([], True)
    state.apply(*decode(heartbeat_record(record(9), 1, 1, 60.0).data))
    assert info(state).missing == [SequenceRange(EPOCH, 8, 9)], "the heartbeat has the position of a later record"


def test_source_is_complete_after_snapshot_without_losses() -> None:
    state = State()
    apply(state, record(9))
    assert not info(state).complete
    apply(state, *snapshot(10, "a"))
    assert info(state).complete
    apply(state, loss_record(record(15), 13))
    assert (info(state).complete, info(state).missing) == (False, [])
    apply(state, *snapshot(16, "a"))
    assert info(state).complete


@pytest.mark.parametrize(
    ("previous", "missing", "complete"),
    [
        ((EPOCH, 3), [], True),
        ((EPOCH, 5), [SequenceRange(EPOCH, 4, 5)], False),
        ((EPOCH + 5, 2), [SequenceRange(EPOCH + 5, 1, 2)], False),
        (None, [], False),
    ],
)
def test_new_epoch_names_last_position_before_it(
    previous: tuple[int, int] | None, missing: list[SequenceRange], complete: bool
) -> None:
    """Without it, nothing is known until the epoch's first snapshot is complete."""
    state = State()
    restarted = snapshot(1, "a", epoch=EPOCH + 9, previous=previous)
    apply(state, *snapshot(1, "a"), *restarted[:-1])
    assert (info(state).missing, info(state).complete) == (missing, complete)
    apply(state, restarted[-1])
    assert info(state).complete


def test_epoch_that_names_itself_as_previous_is_not_linked() -> None:
    state = State()
    apply(state, *snapshot(1, "a"), snapshot(1, epoch=EPOCH + 1, previous=(EPOCH + 1, 3))[0])
    assert info(state).complete is False


def test_retired_source_has_no_containers_until_it_returns() -> None:
    state = State()
    started = snapshot(1, "a")
    apply(state, *started)
    (change,) = apply(state, retirement(started[-1]))
    assert (set(change.removed), ids(state)) == ({"shop/a"}, set())
    assert info(state).retired == Retired("node deleted", "ops@bastion")
    assert apply(state, *started, retirement(started[-1])) == []
    apply(state, *snapshot(1, "b", epoch=EPOCH + 1))
    assert (info(state).retired, info(state).complete, ids(state)) == (None, True, {"shop/b"})
    assert apply(state, retirement(started[-1])) == [], "later records are known"
    assert ids(state) == {"shop/b"}


def test_state_starts_from_entries_of_state_table() -> None:
    """Entries include later records than the snapshot: those that follow are applied in order."""
    before = State()
    first = [*snapshot(1, "a", "b", "c"), record(6, "exited", id_="a"), record(7, "started", id_="d")]
    rest = [record(8, "paused", id_="b"), record(9, "exited", id_="c"), record(10, "started", id_="a")]
    apply(before, *first, *rest)
    table = State()
    entries = [first[4], record(8, "paused", id_="b"), record(7, "started", id_="d"), record(10, "started", id_="a")]
    table.start_from([decode(each.data)[0] for each in (*entries, record(3, host="node-2"))])
    assert ids(table) == {"shop/a", "shop/b", "shop/d"}
    assert table.start_position == AT - timedelta(minutes=5)
    assert apply(table, *first[:5]) == []
    apply(table, *first[5:], *rest)
    assert sorted(table.containers(now=AT)) == sorted(before.containers(now=AT))
    assert info(table)._replace(source=info(before).source) == info(before)
    assert State().start_position == "beginning"


def test_state_started_from_table_names_missing_records() -> None:
    state = State()
    state.start_from([decode(snapshot(1)[-1].data)[0]])
    apply(state, record(4))
    assert info(state).missing == [SequenceRange(EPOCH, 3, 3)]


# --- storage ---


@settings(max_examples=scaled(reduced=40, full=1000), deadline=None)
@given(st.randoms(use_true_random=False), st.integers(0, 60))
def test_stored_state_continues_like_one_that_never_stopped(chance: Random, length: int) -> None:
    history = random_history(chance, length, retired=True).records
    shuffled = [msgspec.json.encode(each) for each in history + chance.sample(history, len(history) // 2)]
    if chance.random() < 0.5:
        chance.shuffle(shuffled)
    path = Path("/dev/shm") / f"state-{chance.getrandbits(64)}"
    always, stopped = State(), State()
    try:
        for data in shuffled:
            if chance.random() < 0.3:
                stopped.save(path)
                stopped = State.load(path)
            assert stopped.apply(*decode(data)) == always.apply(*decode(data))
            assert stopped.sources(now=AT) == always.sources(now=AT)
    finally:
        path.unlink(missing_ok=True)
    assert stopped.containers(now=AT) == always.containers(now=AT)


def test_state_file_of_other_program_or_version_is_rejected(tmp_path: Path) -> None:
    path = tmp_path / "state"
    assert State.load(path).sources() == []
    State().save(path)
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"format": 9}))
    with pytest.raises(ValueError, match="has format 9; this version reads format 1"):
        State.load(path)
    nested = b'{"new":' + b"[" * 100_000
    for text in (b"", b"[]", b"\xff", nested, path.read_bytes()[:-1]):
        path.write_bytes(text)
        with pytest.raises(ValueError, match="is not a state that this version can read"):
            State.load(path)


# --- following ---


@pytest.fixture
def topic(tmp_path: Path) -> Path:
    """Return a file with 300 records."""
    path = tmp_path / "topic.jsonl"
    path.write_bytes(b"".join(each.data + b"\n" for each in [*snapshot(1), *records(300, 3)]))
    return path


@pytest.mark.real_time
async def test_consumer_killed_at_any_point_resumes_exactly(topic: Path, tmp_path: Path) -> None:
    """What was not saved is repeated: the saved state and its results are those of one run."""
    chance, saved, results = Random(1), tmp_path / "state", list[tuple[int, int]]()  # noqa: S311
    kept = 0
    for _ in range(1000):
        del results[kept:]  # the process was killed: its results since the last save are gone
        async with aclosing(follow(f"file:{topic}", state := State.load(saved), wait=False)) as changes:
            ended = False
            async for change in changes:
                results.append(change.record.position)
                if chance.random() < 0.1:
                    state.save(saved)
                    kept = len(results)
                if chance.random() < 0.05:
                    break
            else:
                ended = True
        if ended:
            break
    assert ended
    assert results == [(EPOCH, sequence) for sequence in range(1, 303)]
    assert len(state.containers()) == 100


@pytest.mark.real_time
async def test_second_target_is_read_from_its_beginning(topic: Path, tmp_path: Path) -> None:
    """The time of what is known of other sources says nothing about the records of this target."""
    other, state = tmp_path / "other.jsonl", State()
    other.write_bytes(b"")
    (rotated := tmp_path / "other.jsonl.1").write_bytes(record(1, "present", id_="old", host="node-2").data + b"\n")
    os.utime(rotated, (1, 1))
    for path in (topic, other):
        async for _ in follow(f"file:{path}", state, wait=False):
            pass
    assert [each.id for each in state.containers(host="node-2")] == ["shop/old"]


@pytest.mark.real_time
async def test_consumer_killed_in_first_batch_reads_from_beginning(topic: Path, tmp_path: Path) -> None:
    saved = tmp_path / "state"
    async with aclosing(follow(f"file:{topic}", state := State(), wait=False)) as changes:
        await anext(changes)
        state.save(saved)
    assert State.load(saved).start_position == "beginning"


@pytest.mark.real_time
async def test_follow_waits_for_new_records(topic: Path) -> None:
    received = list[int]()

    async def read() -> None:
        async for change in follow(f"file:{topic}"):
            received.append(change.record.sequence)

    task = asyncio.create_task(read())
    await eventually_async(lambda: len(received) == 302)
    with topic.open("ab") as file:
        file.write(record(303).data + b"\n")
    await eventually_async(lambda: received[-1] == 303)
    task.cancel()
    await asyncio.wait({task})


@pytest.mark.real_time
async def test_follow_reports_messages_that_are_no_records(topic: Path) -> None:
    with topic.open("ab") as file:
        file.write(b'{"version": 2}\nhello\n')
    notices = list[str]()
    assert len([each async for each in follow(f"file:{topic}", wait=False, notify=notices.append)]) == 302
    assert [each.partition(";")[0] for each in notices] == [
        "1 invalid message was skipped",
        "2 invalid messages were skipped",
    ]


def test_example_continues_after_restart(topic: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments: Any = (f"file:{topic}", str(tmp_path / "state"))
    asyncio.run(running_containers.main(*arguments, wait=False))
    first = capsys.readouterr().out.splitlines()
    assert (first[0], first[-1], len(first)) == ("node-1 started web-0", "100 containers are running", 301)
    with topic.open("ab") as file:
        file.write(record(303, "exited", id_="web-7").data + b"\n")
    asyncio.run(running_containers.main(*arguments, wait=False))
    assert capsys.readouterr().out.splitlines() == ["node-1 ended web-7", "99 containers are running"]


@pytest.mark.parametrize("example", [running_containers, shared_topic])
def test_documented_program_is_example(example: ModuleType) -> None:
    code = Path(str(example.__file__)).read_text().partition('"""\n\n')[2]
    assert code in code_blocks((ROOT / "docs" / "consumers.md").read_text(), "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20


@pytest.mark.parametrize(
    ("target", "group", "state", "reason"),
    [
        ("file:/events.jsonl", "billing", State(), "partitions of a Kafka topic; a sink of type file has none"),
        ("nats://localhost/containers", "billing", State(), "partitions of a Kafka topic; a sink of type nats"),
        ("kafka://localhost/containers", "", State(), "the id of a group cannot be empty"),
    ],
)
async def test_follow_fails_for_target_that_no_group_can_read(
    target: str, group: str, state: State, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        await anext(follow(target, state, group=group))


def test_follow_with_group_starts_empty_and_waits() -> None:
    state = State()
    apply(state, record(1))
    for arguments in ({"state": state}, {"wait": False}):
        with pytest.raises(ValueError, match="starts with an empty state and waits"):
            follow("kafka://localhost/containers", group="billing", **arguments)


def test_state_forgets_source() -> None:
    state = State()
    apply(state, record(1), record(1, host="node-2"))
    state.forget(Source("node-2", ENGINE.id))
    state.forget(Source("node-3", ENGINE.id))
    assert [each.source.host for each in state.sources()] == [HOST]
    assert {each.source.host for each in state.containers()} == {HOST}


def test_projection_loads_no_library_of_brokers_or_of_the_bridge() -> None:
    program = "import sys, bridge.consumer; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {name.partition(".")[0] for name in output.stdout.split()}
    assert {"bridge", "msgspec"} <= loaded
    assert not loaded & {"grpc", "google", "pydantic", "structlog", "typer", "aiokafka", "nats", "tenacity", "sinks"}
