"""The port ``Outbox``: what must hold of every implementation."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge.core.events import Record
from bridge.core.ports import Outbox
from bridge.outbox.bounds import Bounds
from bridge.outbox.memory import MemoryOutbox
from bridge.outbox.sqlite import SqliteOutbox
from tests.clocks import ManualClock
from tests.records import Recorder, ids, sequences

WIDE = Bounds(max_records=1_000_000, max_bytes=1 << 30, max_age=7 * 24 * 3600)
Make = Callable[..., Awaitable[Outbox]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "sqlite"])
async def make(request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock) -> AsyncIterator[Make]:
    async with AsyncExitStack() as stack:

        async def make(*sinks: str, bounds: Bounds = WIDE, on_loss: Callable[[], None] = lambda: None) -> Outbox:
            outbox: Outbox
            if request.param == "memory":
                outbox = MemoryOutbox(sinks or ["s"], clock, bounds, on_loss=on_loss)
            else:
                outbox = await SqliteOutbox.open(tmp_path / "state", sinks or ["s"], clock, bounds, on_loss=on_loss)
            stack.push_async_callback(outbox.close)
            return outbox

        yield make


async def read_all(outbox: Outbox, sink: str = "s", limit: int = 1000) -> list[Record]:
    """Read and acknowledge whatever waits for a sink."""
    records: list[Record] = []
    while outbox.depth(sink):
        batch = await outbox.read(sink, limit)
        await outbox.acknowledge(sink, batch)
        records += batch
    return records


def lost(record: Record) -> tuple[int, int, int, str]:
    told: dict[str, Any] = msgspec.json.decode(record.data)["lost"]
    return (told["epoch"], told["first"], told["last"], told["reason"])


# --- what goes in comes out ---


async def test_every_sink_gets_all_records_in_order_byte_for_byte(make: Make) -> None:
    outbox, recorder = await make("a", "b"), Recorder()
    appended = recorder.snapshot() + recorder.starts(10)
    await outbox.append(appended[:5])
    await outbox.append(appended[5:])
    assert await read_all(outbox, "a") == appended
    assert await read_all(outbox, "b", limit=3) == appended


async def test_nothing_to_read_is_waited_for(make: Make) -> None:
    outbox, recorder = await make(), Recorder()
    reading = asyncio.create_task(outbox.read("s", 10))
    await asyncio.sleep(0)
    assert not reading.done()
    await outbox.append(recorder.starts(2))
    assert sequences(list(await reading)) == [1, 2]


async def test_what_is_not_acknowledged_is_read_again(make: Make) -> None:
    outbox, recorder = await make(), Recorder()
    await outbox.append(recorder.starts(3))
    first = await outbox.read("s", 2)
    assert await outbox.read("s", 2) == first
    await outbox.acknowledge("s", first)
    assert sequences(list(await outbox.read("s", 2))) == [3]


async def test_the_beginning_of_a_batch_can_be_acknowledged(make: Make) -> None:
    outbox, recorder = await make(), Recorder()
    await outbox.append(recorder.starts(5))
    batch = await outbox.read("s", 5)
    await outbox.acknowledge("s", batch[:2])
    assert sequences(list(await outbox.read("s", 5))) == [3, 4, 5]


async def test_only_what_was_read_last_can_be_acknowledged(make: Make) -> None:
    outbox, recorder = await make(), Recorder()
    await outbox.append(recorder.starts(5))
    batch = await outbox.read("s", 5)
    with pytest.raises(ValueError, match="read last"):
        await outbox.acknowledge("s", batch[1:2])


async def test_batches_are_bounded_by_count_and_bytes(make: Make) -> None:
    outbox, recorder = await make(), Recorder()
    await outbox.append(recorder.starts(4, size=1000))
    assert len(await outbox.read("s", 3)) == 3
    assert len(await outbox.read("s", 1000, 3500)) == 2
    assert len(await outbox.read("s", 1000, 1)) == 1, "one that is too large alone is read all the same"


async def test_depth_counts_what_a_sink_has_not_acknowledged(make: Make) -> None:
    outbox, recorder = await make("a", "b"), Recorder()
    assert outbox.depth("a") == 0
    await outbox.append(recorder.starts(5))
    await outbox.acknowledge("a", await outbox.read("a", 2))
    assert (outbox.depth("a"), outbox.depth("b")) == (3, 5)


async def test_appends_that_nobody_waits_for_any_more_are_kept_once(make: Make) -> None:
    outbox, recorder = await make(), Recorder()
    appending = asyncio.create_task(outbox.append(recorder.starts(3)))
    await asyncio.sleep(0)
    appending.cancel()
    await asyncio.wait([appending])
    await outbox.append(recorder.starts(1))
    assert sequences(await read_all(outbox)) == [1, 2, 3, 4]


async def test_an_append_of_nothing_is_nothing(make: Make) -> None:
    outbox = await make()
    await outbox.append([], {"key": b"value"})
    assert outbox.depth("s") == 0


async def test_at_first_nothing_is_remembered_and_nothing_is_wrong(make: Make) -> None:
    outbox = await make()
    assert outbox.trouble is None
    recollection = outbox.recall()
    assert (dict(recollection.values), recollection.reset) == ({}, False)


# --- overflow ---

TIGHT = Bounds(max_records=100, max_bytes=1 << 30, max_age=3600)


async def fill(outbox: Outbox, records: Sequence[Record], at_once: int = 10) -> None:
    for start in range(0, len(records), at_once):
        await outbox.append(records[start : start + at_once])


async def test_overflow_takes_the_oldest_and_tells_of_it(make: Make) -> None:
    outbox, recorder = await make(bounds=TIGHT), Recorder()
    appended = recorder.starts(150)
    await fill(outbox, appended)
    records = await read_all(outbox)
    epoch, first, last, reason = lost(records[0])
    assert records[0].type == "lost"
    assert (epoch, first, reason) == (recorder.ledger.epoch, 1, "overflow")
    assert records[0].id == f"{epoch}-{last}-lost"
    assert records[1:] == appended[last:]
    assert 90 <= len(records) <= 101


async def test_size_is_bounded_too(make: Make) -> None:
    bounds = Bounds(max_records=1_000_000, max_bytes=100_000, max_age=3600)
    outbox, recorder = await make(bounds=bounds), Recorder()
    await fill(outbox, recorder.starts(200, size=1000))
    records = await read_all(outbox)
    assert sum(len(record.data) for record in records[1:]) <= 100_000
    assert lost(records[0])[1:3] == (1, 200 - len(records) + 1)


async def test_records_grow_old_while_the_bridge_runs_whatever_the_wall_clock_says(
    make: Make, clock: ManualClock
) -> None:
    outbox, recorder = await make(bounds=TIGHT), Recorder()
    await outbox.append(recorder.starts(5))
    clock.set_wall(clock.now().wall + 10**18)
    clock.pass_time(1800)
    await outbox.append(recorder.starts(5))
    assert outbox.depth("s") == 10
    clock.pass_time(1801)
    await outbox.append([])
    records = await read_all(outbox)
    assert lost(records[0])[1:3] == (1, 5)
    assert sequences(records[1:]) == [6, 7, 8, 9, 10]


async def test_only_the_sink_that_lags_loses(make: Make) -> None:
    told: list[str] = []
    outbox, recorder = await make("dead", "well", bounds=TIGHT, on_loss=lambda: told.append("lost")), Recorder()
    got: list[Record] = []
    for _ in range(50):
        await outbox.append(recorder.starts(10))
        got += await read_all(outbox, "well")
    assert sequences(got) == list(range(1, 501))
    assert told == []
    records = await read_all(outbox, "dead")
    assert (lost(records[0])[1], records[-1].sequence) == (1, 500)
    assert told == ["lost"], "the snapshot that has to follow is asked for when the sink knows of its loss"


async def test_a_loss_that_goes_on_is_told_in_one_record(make: Make) -> None:
    outbox, recorder = await make(bounds=TIGHT), Recorder()
    await fill(outbox, recorder.starts(1000))
    records = await read_all(outbox)
    assert [record.type for record in records].count("lost") == 1
    assert lost(records[0])[1:3] == (1, 1000 - len(records) + 1)


async def test_a_batch_on_its_way_is_neither_dropped_nor_told_as_lost(make: Make) -> None:
    outbox, recorder = await make(bounds=TIGHT), Recorder()
    await fill(outbox, recorder.starts(50))
    batch = await outbox.read("s", 15)
    await fill(outbox, recorder.starts(500))
    await outbox.acknowledge("s", batch)
    records = await read_all(outbox)
    assert sequences(list(batch)) == list(range(1, 16))
    assert lost(records[0])[1] == 16
    assert records[1].sequence == lost(records[0])[2] + 1


async def test_a_loss_on_its_way_never_changes(make: Make) -> None:
    outbox, recorder = await make(bounds=TIGHT), Recorder()
    await fill(outbox, recorder.starts(200))
    batch = await outbox.read("s", 1)
    await fill(outbox, recorder.starts(200))
    assert await outbox.read("s", 1) == batch
    await outbox.acknowledge("s", batch)
    records = await read_all(outbox)
    assert lost(records[0])[1] == lost(batch[0])[2] + 1
    assert sequences(records[1:]) == list(range(lost(records[0])[2] + 1, 401))


async def test_a_loss_across_epochs_is_told_epoch_by_epoch(make: Make) -> None:
    outbox = await make(bounds=TIGHT)
    old, new = Recorder(epoch=1000), Recorder(epoch=2000)
    await fill(outbox, old.starts(60))
    await fill(outbox, new.starts(140))
    records = await read_all(outbox)
    assert [lost(record)[:2] for record in records if record.type == "lost"] == [(1000, 1), (2000, 1)]
    assert lost(records[0])[2] == 60
    assert sequences(records[2:]) == list(range(lost(records[1])[2] + 1, 141))


async def test_one_append_is_never_dropped_by_itself(make: Make) -> None:
    """Else a snapshot larger than the bound would never get through, and be asked for again for ever."""
    outbox, recorder = await make(bounds=TIGHT), Recorder()
    await outbox.append(recorder.starts(1))
    await outbox.append(recorder.starts(300))
    records = await read_all(outbox)
    assert sequences(records[-300:]) == list(range(2, 302))


# --- records that are refused ---


async def test_a_refused_record_has_its_loss_told_in_its_place(make: Make) -> None:
    told: list[str] = []
    outbox, recorder = await make("s", "other", on_loss=lambda: told.append("lost")), Recorder()
    appended = recorder.starts(5)
    await outbox.append(appended)
    await outbox.read("s", 10)
    refused = {(record.epoch, record.sequence) for record in (appended[1], appended[3])}
    assert await outbox.refuse("s", refused, "too large") == 2
    batch = await outbox.read("s", 10)
    assert [batch[0], batch[2], batch[4]] == [appended[0], appended[2], appended[4]]
    assert lost(batch[1]) == (recorder.ledger.epoch, 2, 2, "rejected")
    assert batch[1].id == f"{recorder.ledger.epoch}-2-lost"
    assert (await outbox.read("s", 10)) == batch, "its bytes never change"
    await outbox.acknowledge("s", batch)
    assert outbox.depth("s") == 0
    assert await read_all(outbox, "other") == appended
    assert told == [], "a snapshot would bring the record that is refused again"


async def test_what_was_not_read_cannot_be_refused(make: Make) -> None:
    outbox, recorder = await make(), Recorder()
    await outbox.append(recorder.starts(5))
    await outbox.read("s", 2)
    assert await outbox.refuse("s", {(recorder.ledger.epoch, 3)}, "too large") == 0
    assert ids(await read_all(outbox)) == [f"{recorder.ledger.epoch}-{number}" for number in range(1, 6)]


async def test_refused_and_dropped_records_are_told_beside_each_other(make: Make) -> None:
    outbox, recorder = await make(bounds=TIGHT), Recorder()
    await fill(outbox, recorder.starts(20))
    await outbox.read("s", 20)
    await outbox.refuse("s", {(recorder.ledger.epoch, 5), (recorder.ledger.epoch, 20)}, "too large")
    await fill(outbox, recorder.starts(200))
    records = await read_all(outbox)
    assert [lost(record)[1] for record in records if record.type == "lost"] == [5, 20, 21]
    assert covered(records) == list(range(1, 221))


def covered(records: Sequence[Record]) -> list[int]:
    """The sequences that records are, or stand for, in the order in which they are told."""
    told: list[int] = []
    for record in records:
        told += range(lost(record)[1], lost(record)[2] + 1) if record.type == "lost" else [record.sequence]
    return told
