from __future__ import annotations

import asyncio

import msgspec

from bridge.core.encode import Coverage, Gap, Ledger
from bridge.core.events import Record
from bridge.core.model import Engine
from bridge.outbox.memory import MemoryOutbox
from tests.unit.watch.fakes import FakeClock


def records(count: int, epoch: int = 1) -> list[Record]:
    ledger = Ledger("node-1", Engine("engine-1", "2.4.2", "/run/c.sock", 812), epoch)
    frames: list[Record] = []
    while len(frames) < count:
        frames += ledger.snapshot(Gap("audit", None, None), Coverage([], [], False), [], [], 0)
    return frames[:count]


async def test_what_was_read_stays_until_it_is_acknowledged() -> None:
    outbox = MemoryOutbox(["a", "b"], FakeClock())
    some = records(5)
    await outbox.append(some)
    assert await outbox.read("a", 3) == some[:3]
    assert await outbox.read("a", 3) == some[:3]
    await outbox.acknowledge("a", some[:3])
    assert await outbox.read("a", 3) == some[3:]
    assert (outbox.depth("a"), outbox.depth("b")) == (2, 5)


async def test_reading_waits_for_records() -> None:
    outbox = MemoryOutbox(["a"], FakeClock())
    reading = asyncio.create_task(outbox.read("a", 10))
    await asyncio.sleep(0)
    assert not reading.done()
    await outbox.append(records(1))
    assert await reading == records(1)


async def test_only_the_sink_that_lags_loses_and_is_told_what() -> None:
    losses = []
    outbox = MemoryOutbox(["slow", "quick"], FakeClock(), max_records=4, on_loss=lambda: losses.append(1))
    some = records(10)
    for record in some:
        await outbox.append([record])
        await outbox.acknowledge("quick", await outbox.read("quick", 10))
    batch = await outbox.read("slow", 10)
    assert [each.sequence for each in batch] == [6, 7, 8, 9, 10]
    lost = msgspec.json.decode(batch[0].data)
    assert (lost["type"], lost["epoch"], lost["sequence"]) == ("lost", 1, 6)
    assert lost["lost"] == {"epoch": 1, "first": 1, "last": 6, "reason": "overflow"}
    assert batch[0].id == "1-6-lost"
    assert list(batch[1:]) == some[6:]
    assert losses == []
    await outbox.acknowledge("slow", batch)
    assert losses == [1]
    assert outbox.depth("slow") == 0


async def test_what_a_batch_delivered_after_all_is_not_lost() -> None:
    outbox = MemoryOutbox(["slow"], FakeClock(), max_records=4)
    some = records(8)
    await outbox.append(some[:4])
    batch = await outbox.read("slow", 3)
    await outbox.append(some[4:])  # drops 1 to 4 while 1 to 3 are on their way
    await outbox.acknowledge("slow", batch)
    rest = await outbox.read("slow", 10)
    assert msgspec.json.decode(rest[0].data)["lost"]["first"] == 4
    assert [each.sequence for each in rest] == [4, 5, 6, 7, 8]


async def test_bytes_are_bounded_too_and_losses_are_kept_apart_by_epoch() -> None:
    outbox = MemoryOutbox(["slow"], FakeClock(), max_bytes=len(records(1)[0].data) + 10)
    await outbox.append(records(2, epoch=1))
    await outbox.append(records(2, epoch=2))
    lost = [msgspec.json.decode(each.data)["lost"] for each in await outbox.read("slow", 10)]
    assert lost[:2] == [
        {"epoch": 1, "first": 1, "last": 2, "reason": "overflow"},
        {"epoch": 2, "first": 1, "last": 1, "reason": "overflow"},
    ]
