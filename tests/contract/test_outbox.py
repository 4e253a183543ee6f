"""Contract of the port ``Outbox``, on disk and in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge.core.ports import Outbox
from bridge.core.records import Record
from bridge.outbox.sink_queue import Limits
from tests.clocks import ManualClock
from tests.outboxes import TIGHT_LIMITS, WIDE_LIMITS, open_outbox
from tests.records import RecordFactory, ids, sequences

OutboxFactory = Callable[..., Awaitable[Outbox]]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture(params=["memory", "disk"])
async def make_outbox(
    request: pytest.FixtureRequest, tmp_path: Path, clock: ManualClock
) -> AsyncIterator[OutboxFactory]:
    async with AsyncExitStack() as stack:

        async def make_outbox(*sinks: str, limits: Limits = WIDE_LIMITS) -> Outbox:
            path = tmp_path / "state" if request.param == "disk" else None
            return await stack.enter_async_context(open_outbox(path, *sinks, clock=clock, limits=limits))

        yield make_outbox


async def read_all(outbox: Outbox, sink: str = "s", limit: int = 1000) -> list[Record]:
    """Read and acknowledge a sink's entire backlog."""
    records: list[Record] = []
    while outbox.depth(sink):
        batch = await outbox.read(sink, limit)
        await outbox.acknowledge(sink, batch)
        records += batch
    return records


def loss_range(record: Record) -> tuple[int, int, int, str]:
    """Return epoch, first and last sequence, and reason of a loss record."""
    lost: dict[str, Any] = msgspec.json.decode(record.data)["lost"]
    return (lost["epoch"], lost["first"], lost["last"], lost["reason"])


# --- append, read, acknowledge ---


async def test_outbox_delivers_all_records_in_order_to_every_sink(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox("a", "b"), RecordFactory()
    appended = factory.snapshot_records() + factory.started_records(10)
    await outbox.append(appended[:5])
    await outbox.append(appended[5:])
    assert await read_all(outbox, "a") == appended
    assert await read_all(outbox, "b", limit=3) == appended


async def test_read_waits_when_outbox_is_empty(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox(), RecordFactory()
    reading = asyncio.create_task(outbox.read("s", 10))
    await asyncio.sleep(0)
    assert not reading.done()
    await outbox.append(factory.started_records(2))
    assert sequences(list(await reading)) == [1, 2]


async def test_read_returns_unacknowledged_records_again(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox(), RecordFactory()
    await outbox.append(factory.started_records(3))
    first = await outbox.read("s", 2)
    assert await outbox.read("s", 2) == first
    await outbox.acknowledge("s", first)
    assert sequences(list(await outbox.read("s", 2))) == [3]


async def test_acknowledge_accepts_beginning_of_batch(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox(), RecordFactory()
    await outbox.append(factory.started_records(5))
    batch = await outbox.read("s", 5)
    await outbox.acknowledge("s", batch[:2])
    assert sequences(list(await outbox.read("s", 5))) == [3, 4, 5]


async def test_acknowledge_raises_when_records_are_not_last_batch(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox(), RecordFactory()
    await outbox.append(factory.started_records(5))
    batch = await outbox.read("s", 5)
    with pytest.raises(ValueError):  # noqa: PT011 (an error of the caller; the text does not matter)
        await outbox.acknowledge("s", batch[1:2])


async def test_read_limits_batches_by_count_and_bytes(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox(), RecordFactory()
    await outbox.append(factory.started_records(4, size=1000))
    assert len(await outbox.read("s", 3)) == 3
    assert len(await outbox.read("s", 1000, 3500)) == 2
    assert len(await outbox.read("s", 1000, 1)) == 1, "a record that exceeds the limit alone is read nevertheless"


async def test_depth_counts_unacknowledged_records_per_sink(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox("a", "b"), RecordFactory()
    assert outbox.depth("a") == 0
    await outbox.append(factory.started_records(5))
    await outbox.acknowledge("a", await outbox.read("a", 2))
    assert (outbox.depth("a"), outbox.depth("b")) == (3, 5)


async def test_canceled_append_is_stored_once(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox(), RecordFactory()
    appending = asyncio.create_task(outbox.append(factory.started_records(3)))
    await asyncio.sleep(0)
    appending.cancel()
    await asyncio.wait([appending])
    await outbox.append(factory.started_records(1))
    assert sequences(await read_all(outbox)) == [1, 2, 3, 4]


async def test_append_without_records_keeps_depth_zero(make_outbox: OutboxFactory) -> None:
    outbox = await make_outbox()
    await outbox.append([], {"key": b"value"})
    assert outbox.depth("s") == 0


async def test_new_outbox_has_empty_checkpoint_and_no_error(make_outbox: OutboxFactory) -> None:
    outbox = await make_outbox()
    assert outbox.last_error is None
    checkpoint = outbox.load_checkpoint()
    assert (dict(checkpoint.values), checkpoint.reset) == ({}, False)


# --- overflow ---


async def append_in_batches(outbox: Outbox, records: Sequence[Record], at_once: int = 10) -> None:
    for start in range(0, len(records), at_once):
        await outbox.append(records[start : start + at_once])


async def test_overflow_drops_oldest_records_and_adds_loss_record(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox(limits=TIGHT_LIMITS), RecordFactory()
    appended = factory.started_records(150)
    await append_in_batches(outbox, appended)
    records = await read_all(outbox)
    epoch, first, last, reason = loss_range(records[0])
    assert records[0].type == "lost"
    assert (epoch, first, reason) == (factory.encoder.epoch, 1, "overflow")
    assert records[0].id == f"{epoch}-{last}-lost"
    assert records[1:] == appended[last:]
    assert 90 <= len(records) <= 101


async def test_overflow_limits_size_in_bytes(make_outbox: OutboxFactory) -> None:
    limits = Limits(max_records=1_000_000, max_bytes=100_000, max_age=3600)
    outbox, factory = await make_outbox(limits=limits), RecordFactory()
    await append_in_batches(outbox, factory.started_records(200, size=1000))
    records = await read_all(outbox)
    assert sum(len(record.data) for record in records[1:]) <= 100_000
    assert loss_range(records[0])[1:3] == (1, 200 - len(records) + 1)


async def test_record_age_follows_uptime_when_wall_clock_steps(make_outbox: OutboxFactory, clock: ManualClock) -> None:
    outbox, factory = await make_outbox(limits=TIGHT_LIMITS), RecordFactory()
    await outbox.append(factory.started_records(5))
    clock.set_wall(clock.now().wall + 10**18)
    clock.advance(1800)
    await outbox.append(factory.started_records(5))
    assert outbox.depth("s") == 10
    clock.advance(1801)
    await outbox.append([])
    records = await read_all(outbox)
    assert loss_range(records[0])[1:3] == (1, 5)
    assert sequences(records[1:]) == [6, 7, 8, 9, 10]


async def test_fault_24_outbox_overflows_for_one_sink(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox("lagging", "healthy", limits=TIGHT_LIMITS), RecordFactory()
    delivered: list[Record] = []
    for _ in range(50):
        await outbox.append(factory.started_records(10))
        delivered += await read_all(outbox, "healthy")
    assert sequences(delivered) == list(range(1, 501))
    records = await read_all(outbox, "lagging")
    assert (loss_range(records[0])[1], records[-1].sequence) == (1, 500)


async def test_acknowledge_reports_dropped_records_once(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox(limits=TIGHT_LIMITS), RecordFactory()
    await append_in_batches(outbox, factory.started_records(150))
    batches = [await outbox.read("s", 1)]
    reported = [await outbox.acknowledge("s", batches[0])]
    batches.append(await outbox.read("s", 10))
    reported.append(await outbox.acknowledge("s", batches[1]))
    assert [batch[0].type for batch in batches] == ["lost", "started"]
    assert reported == [True, False]


async def test_batch_in_flight_is_not_dropped_on_overflow(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox(limits=TIGHT_LIMITS), RecordFactory()
    await append_in_batches(outbox, factory.started_records(50))
    batch = await outbox.read("s", 15)
    await append_in_batches(outbox, factory.started_records(500))
    await outbox.acknowledge("s", batch)
    records = await read_all(outbox)
    assert sequences(list(batch)) == list(range(1, 16))
    assert loss_range(records[0])[1] == 16
    assert records[1].sequence == loss_range(records[0])[2] + 1


async def test_loss_record_in_flight_is_unchanged_on_overflow(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox(limits=TIGHT_LIMITS), RecordFactory()
    await append_in_batches(outbox, factory.started_records(200))
    batch = await outbox.read("s", 1)
    await append_in_batches(outbox, factory.started_records(200))
    assert await outbox.read("s", 1) == batch
    await outbox.acknowledge("s", batch)
    records = await read_all(outbox)
    assert loss_range(records[0])[1] == loss_range(batch[0])[2] + 1
    assert sequences(records[1:]) == list(range(loss_range(records[0])[2] + 1, 401))


async def test_loss_across_epochs_has_loss_record_per_epoch(make_outbox: OutboxFactory) -> None:
    outbox = await make_outbox(limits=TIGHT_LIMITS)
    old, new = RecordFactory(epoch=1000), RecordFactory(epoch=2000)
    await append_in_batches(outbox, old.started_records(60))
    await append_in_batches(outbox, new.started_records(140))
    records = await read_all(outbox)
    assert [loss_range(record)[:2] for record in records if record.type == "lost"] == [(1000, 1), (2000, 1)]
    assert loss_range(records[0])[2] == 60
    assert sequences(records[2:]) == list(range(loss_range(records[1])[2] + 1, 141))


async def test_append_larger_than_limits_is_kept_whole(make_outbox: OutboxFactory) -> None:
    """Otherwise a snapshot larger than the limits could never be delivered, and would be requested again and again."""
    outbox, factory = await make_outbox(limits=TIGHT_LIMITS), RecordFactory()
    await outbox.append(factory.started_records(1))
    await outbox.append(factory.started_records(300))
    records = await read_all(outbox)
    assert sequences(records[-300:]) == list(range(2, 302))


# --- rejected records ---


async def test_rejected_record_is_replaced_by_loss_record(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox("s", "other"), RecordFactory()
    appended = factory.started_records(5)
    await outbox.append(appended)
    await outbox.read("s", 10)
    rejected = {(record.epoch, record.sequence) for record in (appended[1], appended[3])}
    assert await outbox.reject("s", rejected, "too large") == 2
    batch = await outbox.read("s", 10)
    assert [batch[0], batch[2], batch[4]] == [appended[0], appended[2], appended[4]]
    assert loss_range(batch[1]) == (factory.encoder.epoch, 2, 2, "rejected")
    assert batch[1].id == f"{factory.encoder.epoch}-2-lost"
    assert (await outbox.read("s", 10)) == batch, "the bytes of a loss record never change"
    reports_dropped = await outbox.acknowledge("s", batch)
    assert not reports_dropped, "a snapshot would contain the rejected record again"
    assert outbox.depth("s") == 0
    assert await read_all(outbox, "other") == appended


async def test_reject_ignores_records_not_yet_read(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox(), RecordFactory()
    await outbox.append(factory.started_records(5))
    await outbox.read("s", 2)
    assert await outbox.reject("s", {(factory.encoder.epoch, 3)}, "too large") == 0
    assert ids(await read_all(outbox)) == [f"{factory.encoder.epoch}-{number}" for number in range(1, 6)]


async def test_rejected_and_dropped_records_have_separate_loss_records(make_outbox: OutboxFactory) -> None:
    outbox, factory = await make_outbox(limits=TIGHT_LIMITS), RecordFactory()
    await append_in_batches(outbox, factory.started_records(20))
    await outbox.read("s", 20)
    await outbox.reject("s", {(factory.encoder.epoch, 5), (factory.encoder.epoch, 20)}, "too large")
    await append_in_batches(outbox, factory.started_records(200))
    records = await read_all(outbox)
    assert [loss_range(record)[1] for record in records if record.type == "lost"] == [5, 20, 21]
    assert covered_sequences(records) == list(range(1, 221))


def covered_sequences(records: Sequence[Record]) -> list[int]:
    """Return the sequences of records, and those that loss records replace, in order."""
    covered: list[int] = []
    for record in records:
        covered += (
            range(loss_range(record)[1], loss_range(record)[2] + 1) if record.type == "lost" else [record.sequence]
        )
    return covered


# --- age of the backlog ---


async def test_oldest_age_is_age_of_oldest_queued_record(make_outbox: OutboxFactory, clock: ManualClock) -> None:
    outbox, factory = await make_outbox("s", "slow"), RecordFactory()
    ages: list[tuple[float, float]] = []

    async def advance(seconds: float, records: int) -> None:
        clock.advance(seconds)
        await outbox.append(factory.started_records(records))
        ages.append((outbox.lag("s").oldest_age, outbox.lag("slow").oldest_age))

    clock.advance(100)
    await advance(0, 2)
    await advance(10, 2)
    await outbox.acknowledge("s", await outbox.read("s", 2))
    await advance(10, 1)
    await read_all(outbox)
    assert outbox.lag("s").oldest_age == 0
    await advance(5, 1)
    assert ages == [(0, 0), (10, 10), (10, 20), (0, 25)]


async def test_oldest_age_includes_unacknowledged_batch(make_outbox: OutboxFactory, clock: ManualClock) -> None:
    limits = Limits(max_records=1000, max_bytes=1 << 30, max_age=100)
    outbox, factory = await make_outbox(limits=limits), RecordFactory()
    await outbox.append(factory.started_records(1))
    await outbox.read("s", 1)
    for _ in range(10):
        clock.advance(61)
        await outbox.append(factory.started_records(1))
    assert outbox.lag("s").oldest_age == 610
