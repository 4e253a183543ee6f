"""The pump with a sink that does as the test says."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from bridge.core.errors import FatalError, RefusedRecordError, TransientError
from bridge.core.events import Proof, Record
from bridge.outbox.memory import MemoryOutbox
from bridge.pump import BATCH_BYTES, Heart, Pump
from tests.clocks import ManualClock
from tests.contract.test_outbox import lost
from tests.records import Recorder, sequences

Behaviour = Callable[[Sequence[Record]], Awaitable[None]]


class FakeSink:
    """Takes what it is handed, unless the next behaviour in line says otherwise."""

    def __init__(self, *behaviours: Behaviour) -> None:
        self.behaviours = list(behaviours)
        self.attempts: list[list[Record]] = []
        self.taken: list[Record] = []
        self.starts: list[Callable[[], Awaitable[None]]] = []
        self.closed = False

    async def start(self) -> None:
        if self.starts:
            await self.starts.pop(0)()

    async def publish(self, batch: Sequence[Record]) -> None:
        self.attempts.append(list(batch))
        if self.behaviours:
            await self.behaviours.pop(0)(batch)
        self.taken += batch

    async def close(self) -> None:
        self.closed = True


async def fail(_: object = None) -> None:
    raise TransientError("the broker is away")


async def give_up(_: object = None) -> None:
    raise FatalError("the topic is compacted")


async def hang(_: object = None) -> None:
    await asyncio.Event().wait()


async def hang_on(_: object = None) -> None:
    """Hang, and do not let go when cancelled, not at once."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await asyncio.Event().wait()


def refuse(*numbers: int) -> Behaviour:
    async def behave(batch: Sequence[Record]) -> None:
        positions = frozenset((each.epoch, each.sequence) for each in batch if each.sequence in numbers)
        raise RefusedRecordError("the message is too large", positions)

    return behave


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def outbox(clock: ManualClock) -> MemoryOutbox:
    return MemoryOutbox(["s", "other"], clock)


@contextlib.asynccontextmanager
async def pumping(
    sink: FakeSink,
    outbox: MemoryOutbox,
    clock: ManualClock,
    *,
    name: str = "s",
    patience: float | None = 60,
    heart: Heart | None = None,
) -> AsyncIterator[asyncio.Task[None]]:
    pump = Pump(name, sink, outbox, clock, patience=patience, heart=heart)
    task = asyncio.create_task(pump.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        await pump.close()


async def until(fits: Callable[[], object], clock: ManualClock | None = None) -> None:
    """Let things happen, and time pass where a clock is given."""
    for _ in range(10_000):
        if fits():
            return
        await asyncio.sleep(0)
        if clock is not None and clock.asleep:
            clock.pass_time(60)
    raise AssertionError("it does not happen")


async def test_records_are_forgotten_when_the_sink_has_acknowledged_them(
    outbox: MemoryOutbox, clock: ManualClock
) -> None:
    acknowledge = asyncio.Event()
    sink, recorder = FakeSink(lambda _: _wait(acknowledge)), Recorder()
    async with pumping(sink, outbox, clock):
        await outbox.append(recorder.starts(3))
        await until(lambda: sink.attempts)
        assert outbox.depth("s") == 3
        acknowledge.set()
        await until(lambda: outbox.depth("s") == 0)
        await outbox.append(recorder.starts(2))
        await until(lambda: outbox.depth("s") == 0)
    assert sequences(sink.taken) == [1, 2, 3, 4, 5]
    assert sink.closed


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def test_a_failure_is_tried_again_for_ever_with_growing_pauses(outbox: MemoryOutbox, clock: ManualClock) -> None:
    sink = FakeSink(*[fail] * 30)
    with capture_logs() as logs:
        async with pumping(sink, outbox, clock):
            await outbox.append(Recorder().starts(3))
            await until(lambda: outbox.depth("s") == 0, clock)
    assert len(sink.attempts) == 31
    assert all(attempt == sink.attempts[0] for attempt in sink.attempts), "the same bytes each time"
    assert clock.slept[:4] == pytest.approx([0.075, 0.15, 0.3, 0.6])
    assert clock.slept[-1] == pytest.approx(22.5), "at most 30 s, with jitter"
    events = [each["event"] for each in logs]
    assert events[0] == "sink_publish_failed"
    assert events[-1] == "sink_recovered"
    assert len(events) < 40


async def test_a_sink_that_comes_and_goes_is_told_in_pairs_and_seldom(outbox: MemoryOutbox, clock: ManualClock) -> None:
    async def work(_: object) -> None:
        pass

    sink = FakeSink(*[fail, work] * 20)
    with capture_logs() as logs:
        async with pumping(sink, outbox, clock):
            recorder = Recorder()
            for _ in range(20):
                await outbox.append(recorder.starts(1))
                while outbox.depth("s"):
                    await asyncio.sleep(0)
                    clock.pass_time(0.01)
    events = [each["event"] for each in logs]
    assert events == ["sink_publish_failed", "sink_recovered"] * (len(events) // 2)
    assert len(events) < 10


async def test_what_a_sink_logs_names_it(outbox: MemoryOutbox, clock: ManualClock) -> None:
    told: list[object] = []

    async def look() -> None:
        told.append(structlog.contextvars.get_contextvars().get("sink"))

    sink = FakeSink()
    sink.starts = [look]
    async with pumping(sink, outbox, clock):
        await until(lambda: told, clock)
    assert told == ["s"]


async def test_a_sink_that_cannot_be_started_is_tried_again(outbox: MemoryOutbox, clock: ManualClock) -> None:
    sink = FakeSink()
    sink.starts = [fail, fail]
    async with pumping(sink, outbox, clock):
        await outbox.append(Recorder().starts(3))
        await until(lambda: sink.taken, clock)


@pytest.mark.parametrize("hanging", [hang, hang_on])
async def test_an_attempt_that_hangs_is_given_up_and_made_again(
    outbox: MemoryOutbox, clock: ManualClock, hanging: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.tasks.GRACE_SECONDS", 0.01)
    sink = FakeSink(hanging)
    with capture_logs() as logs:
        async with pumping(sink, outbox, clock, patience=0.01):
            await outbox.append(Recorder().starts(3))
            while not sink.taken:
                await asyncio.sleep(0.005)
                clock.pass_time(60)
    assert sink.attempts[0] == sink.attempts[1]
    assert "no answer within 0.01 s" in logs[0]["error"]


async def test_refused_records_are_set_aside_and_the_others_flow(outbox: MemoryOutbox, clock: ManualClock) -> None:
    sink = FakeSink(refuse(2), refuse(4))
    async with pumping(sink, outbox, clock):
        await outbox.append(Recorder().starts(5))
        await until(lambda: outbox.depth("s") == 0)
        assert clock.slept == [], "no failure: nothing to wait for"
    assert [record.type for record in sink.taken] == ["started", "lost", "started", "lost", "started"]
    assert [lost(record)[1:] for record in sink.taken if record.type == "lost"] == [
        (2, 2, "rejected"),
        (4, 4, "rejected"),
    ]
    assert outbox.depth("other") == 5


async def test_a_refusal_of_what_stands_for_others_is_a_failure_like_any_other(
    outbox: MemoryOutbox, clock: ManualClock
) -> None:
    sink = FakeSink(refuse(2), refuse(2), refuse(2))
    async with pumping(sink, outbox, clock):
        await outbox.append(Recorder().starts(3))
        await until(lambda: outbox.depth("s") == 0, clock)
    assert len(clock.slept) == 2
    assert [record.type for record in sink.taken] == ["started", "lost", "started"]


async def test_a_fatal_error_ends_it(outbox: MemoryOutbox, clock: ManualClock) -> None:
    async with pumping(FakeSink(give_up), outbox, clock) as task:
        await outbox.append(Recorder().starts(1))
        await asyncio.wait([task])
        with pytest.raises(FatalError, match="compacted"):
            task.result()


async def test_a_sink_that_is_dead_is_not_noticed_by_another(outbox: MemoryOutbox, clock: ManualClock) -> None:
    dead, well = FakeSink(hang), FakeSink()
    async with pumping(dead, outbox, clock), pumping(well, outbox, clock, name="other"):
        recorder = Recorder()
        for _ in range(20):
            await outbox.append(recorder.starts(100))
            await until(lambda: outbox.depth("other") == 0)
    assert sequences(well.taken) == list(range(1, 2001))
    assert outbox.depth("s") == 2000


async def test_batches_are_bounded_by_count_and_by_bytes(outbox: MemoryOutbox, clock: ManualClock) -> None:
    sink, recorder = FakeSink(), Recorder()
    await outbox.append(recorder.starts(1500))
    await outbox.append(recorder.starts(10, size=300_000))
    async with pumping(sink, outbox, clock):
        await until(lambda: outbox.depth("s") == 0)
    assert max(map(len, sink.attempts)) == 1000
    assert max(sum(len(each.data) for each in attempt) for attempt in sink.attempts) <= BATCH_BYTES
    assert sequences(sink.taken) == list(range(1, 1511))


async def test_drained_is_when_nothing_waits(outbox: MemoryOutbox, clock: ManualClock) -> None:
    acknowledge = asyncio.Event()
    sink = FakeSink(lambda _: _wait(acknowledge))
    pump = Pump("s", sink, outbox, clock)
    await outbox.append(Recorder().starts(3))
    drained = asyncio.create_task(pump.drained())
    running = asyncio.create_task(pump.run())
    await until(lambda: sink.attempts)
    clock.pass_time(1)
    await asyncio.sleep(0)
    assert (pump.waiting, drained.done()) == (3, False)
    acknowledge.set()
    await until(drained.done, clock)
    running.cancel()
    await asyncio.wait([running])


async def test_it_settles_when_what_is_on_its_way_is_acknowledged_and_sends_nothing_more(
    outbox: MemoryOutbox, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.pump.SETTLE_SECONDS", 60)
    acknowledge = asyncio.Event()
    sink, recorder = FakeSink(lambda _: _wait(acknowledge)), Recorder()
    pump = Pump("s", sink, outbox, clock)
    running = asyncio.create_task(pump.run())
    await outbox.append(recorder.starts(3))
    await until(lambda: sink.attempts)
    settled = asyncio.create_task(pump.settle())
    await outbox.append(recorder.starts(2))
    await asyncio.sleep(0.01)
    assert not settled.done()
    acknowledge.set()
    await settled
    await asyncio.sleep(0.01)
    assert (len(sink.attempts), pump.waiting) == (1, 2)
    running.cancel()
    await asyncio.wait([running])


@pytest.mark.parametrize("behaviour", [hang, fail])
async def test_a_sink_that_does_not_acknowledge_is_waited_for_a_moment_at_the_most(
    behaviour: Behaviour, outbox: MemoryOutbox, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.pump.SETTLE_SECONDS", 0.01 if behaviour is hang else 60)
    sink = FakeSink(behaviour, hang)
    pump = Pump("s", sink, outbox, clock)
    running = asyncio.create_task(pump.run())
    await outbox.append(Recorder().starts(3))
    await until(lambda: sink.attempts and (behaviour is hang or pump.state == "failing"))
    async with asyncio.timeout(10):
        await pump.settle()
    assert pump.waiting == 3
    running.cancel()
    await asyncio.wait([running])


async def test_a_sink_whose_closing_hangs_is_given_up(
    outbox: MemoryOutbox, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.pump.CLOSE_SECONDS", 0.01)
    sink = FakeSink()
    monkeypatch.setattr(sink, "close", hang)
    with capture_logs() as logs:
        await Pump("s", sink, outbox, clock).close()
    assert [each["event"] for each in logs] == ["sink_close_failed"]


async def test_a_reader_that_is_gone_ends_it_though_there_is_nothing_to_publish(
    outbox: MemoryOutbox, clock: ManualClock
) -> None:
    class Pipe(FakeSink):
        async def reader_gone(self) -> None:
            raise FatalError("its reader has gone")

    async with pumping(Pipe(), outbox, clock) as task:
        await asyncio.wait([task])
        with pytest.raises(FatalError, match="reader has gone"):
            task.result()


# --- heartbeats ---

PROOF = Proof(Recorder().ledger.epoch, 1_795_447_300_000_000_000)


async def beats(clock: ManualClock, seconds: float = 60) -> None:
    """Let a heartbeat become due."""
    await until(lambda: clock.asleep)
    clock.pass_time(seconds)
    for _ in range(20):
        await asyncio.sleep(0)


async def test_a_heartbeat_carries_the_last_position_and_what_is_proven(
    outbox: MemoryOutbox, clock: ManualClock
) -> None:
    sink = FakeSink()
    async with pumping(sink, outbox, clock, heart=Heart(lambda: PROOF, 60)):
        await outbox.append(Recorder().starts(3))
        await until(lambda: outbox.depth("s") == 0)
        await beats(clock, 59)
        assert len(sink.taken) == 3
        await beats(clock, 1)
        await beats(clock)
    last, first, second = sink.taken[2:]
    assert (first.type, first.epoch, first.sequence, first.host) == ("heartbeat", last.epoch, 3, last.host)
    assert first.time == "2026-11-23T15:21:40Z"
    assert (first.subject, first.namespace, first.project) == ("", "", "")
    assert [first.id, second.id] == [f"{last.epoch}-3-heartbeat-1", f"{last.epoch}-3-heartbeat-2"]
    document = msgspec.json.decode(first.data)
    assert document.keys() == msgspec.json.decode(last.data).keys()
    assert [name for name, value in document.items() if value is None] == [
        "id",
        "project",
        "container",
        "exit",
        "snapshot",
        "lost",
    ]


async def test_there_is_none_before_the_first_snapshot_has_arrived(outbox: MemoryOutbox, clock: ManualClock) -> None:
    sink, proofs = FakeSink(), [None, PROOF._replace(epoch=PROOF.epoch + 1)]
    async with pumping(sink, outbox, clock, heart=Heart(lambda: proofs.pop(0), 60)):
        await beats(clock)
        assert len(proofs) == 2, "nothing was published"
        await outbox.append(Recorder().starts(1))
        await until(lambda: outbox.depth("s") == 0)
        await beats(clock)
        await beats(clock)
    assert proofs == []
    assert [each.type for each in sink.taken] == ["started"], "neither while nothing is proven, nor in another epoch"


async def test_there_is_none_while_something_waits(outbox: MemoryOutbox, clock: ManualClock) -> None:
    acknowledge = asyncio.Event()
    sink, recorder = FakeSink(lambda _: _wait(acknowledge)), Recorder()
    async with pumping(sink, outbox, clock, heart=Heart(lambda: PROOF, 60)):
        await outbox.append(recorder.starts(1))
        await until(lambda: sink.attempts)
        await beats(clock)
        await outbox.append(recorder.starts(1))
        acknowledge.set()
        await until(lambda: outbox.depth("s") == 0)
        await beats(clock, 0)
    assert [(each.type, each.sequence) for each in sink.taken[:2]] == [("started", 1), ("started", 2)]


@pytest.mark.parametrize("failing", [fail, refuse(1)])
async def test_a_heartbeat_that_fails_is_dropped_and_records_flow(
    outbox: MemoryOutbox, clock: ManualClock, failing: Behaviour
) -> None:
    sink, recorder = FakeSink(), Recorder()
    with capture_logs() as logs:
        async with pumping(sink, outbox, clock, heart=Heart(lambda: PROOF, 60)):
            await outbox.append(recorder.starts(1))
            await until(lambda: outbox.depth("s") == 0)
            sink.behaviours.append(failing)
            await beats(clock)
            await outbox.append(recorder.starts(2))
            await until(lambda: outbox.depth("s") == 0)
            await beats(clock)
    assert [each["event"] for each in logs] == ["heartbeat_failed"]
    assert [(each.type, each.sequence) for each in sink.taken] == [
        ("started", 1),
        ("started", 2),
        ("started", 3),
        ("heartbeat", 3),
    ]


async def test_a_sink_that_takes_no_heartbeat_fails_though_nothing_waits_for_it(
    outbox: MemoryOutbox, clock: ManualClock
) -> None:
    sink = FakeSink()
    pump = Pump("s", sink, outbox, clock, heart=Heart(lambda: PROOF, 60))
    task = asyncio.create_task(pump.run())
    await outbox.append(Recorder().starts(1))
    await until(lambda: outbox.depth("s") == 0)
    sink.behaviours.append(fail)
    await beats(clock)
    assert (pump.state, pump.failure) == ("failing", "the broker is away")
    await beats(clock)
    assert (pump.state, pump.failure) == ("ok", None)
    task.cancel()
    await asyncio.wait([task])


async def test_a_heartbeat_that_hangs_is_given_up_and_records_flow(
    outbox: MemoryOutbox, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bridge.tasks.GRACE_SECONDS", 0.01)
    sink, recorder = FakeSink(), Recorder()
    async with pumping(sink, outbox, clock, patience=0.01, heart=Heart(lambda: PROOF, 60)):
        await outbox.append(recorder.starts(1))
        await until(lambda: outbox.depth("s") == 0)
        sink.behaviours.append(hang)
        await beats(clock)
        await outbox.append(recorder.starts(2))
        async with asyncio.timeout(10):
            while outbox.depth("s"):  # noqa: ASYNC110 (the attempt is bounded by real time)
                await asyncio.sleep(0.005)
    assert sequences(sink.taken) == [1, 2, 3]
