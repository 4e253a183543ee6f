"""Test the pump with a sink whose behavior each test defines."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import msgspec
import pytest
import structlog
from structlog.testing import capture_logs

from bridge.core.errors import DisconnectedError, FatalError, RejectedRecordError, TransientError
from bridge.core.records import Record, SnapshotReason, Watermark
from bridge.core.time import SECOND
from bridge.delivery.heartbeats import HeartbeatFactory
from bridge.delivery.pump import BATCH_BYTES, FATAL_RETRY_SECONDS, QUIESCE_SECONDS, TARGET_CHECK_SECONDS, Pump
from bridge.outbox.outbox import StoredOutbox
from bridge.task_groups import CANCEL_GRACE_SECONDS
from tests.contract.test_outbox import loss_range
from tests.eventually import eventually_async
from tests.outboxes import TIGHT_LIMITS, open_outbox
from tests.records import RecordFactory, sequences
from tests.virtual_time import VirtualClock

Behavior = Callable[[Sequence[Record]], Awaitable[None]]


class FakeSink:
    """Accept every batch unless the next queued behavior raises or blocks."""

    def __init__(self, *behaviors: Behavior) -> None:
        self.behaviors = list(behaviors)
        self.attempts: list[list[Record]] = []
        self.published: list[Record] = []
        self.starts: list[Callable[[], Awaitable[None]]] = []
        self.closed = False

    async def start(self) -> None:
        if self.starts:
            await self.starts.pop(0)()

    async def publish(self, batch: Sequence[Record]) -> None:
        self.attempts.append(list(batch))
        if self.behaviors:
            await self.behaviors.pop(0)(batch)
        self.published += batch

    async def close(self) -> None:
        self.closed = True


async def fail(_: object = None) -> None:
    raise TransientError("the broker is unavailable")


async def hang(_: object = None) -> None:
    await asyncio.Event().wait()


async def hang_uncancellable(_: object = None) -> None:
    """Hang, and ignore the first cancellation."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.Event().wait()
    await asyncio.Event().wait()


def reject(*numbers: int) -> Behavior:
    async def behave(batch: Sequence[Record]) -> None:
        positions = frozenset((record.epoch, record.sequence) for record in batch if record.sequence in numbers)
        raise RejectedRecordError("the message is too large", positions)

    return behave


@pytest.fixture
async def outbox(clock: VirtualClock) -> AsyncIterator[StoredOutbox]:
    async with open_outbox(None, "s", "other", clock=clock) as outbox:
        yield outbox


@contextlib.asynccontextmanager
async def running_pump(
    sink: FakeSink, outbox: StoredOutbox, clock: VirtualClock, name: str = "s", **options: Any
) -> AsyncIterator[Pump]:
    pump = Pump(name, sink, outbox, clock, **options)
    task = asyncio.create_task(pump.run())
    try:
        yield pump
    finally:
        task.cancel()
        await asyncio.wait([task])
        await pump.close()


async def test_pump_removes_records_when_sink_acknowledges(outbox: StoredOutbox, clock: VirtualClock) -> None:
    acknowledge = asyncio.Event()
    sink, recorder = FakeSink(lambda _: _wait(acknowledge)), RecordFactory()
    async with running_pump(sink, outbox, clock):
        await outbox.append(recorder.started_records(3))
        await eventually_async(lambda: sink.attempts)
        assert outbox.depth("s") == 3
        acknowledge.set()
        await eventually_async(lambda: outbox.depth("s") == 0)
        await outbox.append(recorder.started_records(2))
        await eventually_async(lambda: outbox.depth("s") == 0)
    assert sequences(sink.published) == [1, 2, 3, 4, 5]
    assert sink.closed


async def _wait(event: asyncio.Event) -> None:
    await event.wait()


async def test_pump_retries_failed_publish_with_growing_delays(outbox: StoredOutbox, clock: VirtualClock) -> None:
    sink = FakeSink(*[fail] * 30)
    with capture_logs() as logs:
        async with running_pump(sink, outbox, clock):
            await outbox.append(RecordFactory().started_records(3))
            await eventually_async(lambda: outbox.depth("s") == 0, within=3600)
    assert len(sink.attempts) == 31
    assert all(attempt == sink.attempts[0] for attempt in sink.attempts), "every attempt has the same records"
    assert clock.slept[:4] == pytest.approx([0.075, 0.15, 0.3, 0.6])
    assert clock.slept[-1] == pytest.approx(22.5), "at most 30 s, with jitter"
    events = [line["event"] for line in logs]
    assert events[0] == "sink_publish_failed"
    assert events[-1] == "sink_recovered"
    assert len(events) < 40


async def test_pump_logs_failure_and_recovery_in_pairs_when_sink_flaps(
    outbox: StoredOutbox, clock: VirtualClock
) -> None:
    async def work(_: object) -> None:
        pass

    sink = FakeSink(*[fail, work] * 20)
    with capture_logs() as logs:
        async with running_pump(sink, outbox, clock):
            recorder = RecordFactory()
            for _ in range(20):
                await outbox.append(recorder.started_records(1))
                await eventually_async(lambda: outbox.depth("s") == 0)
    events = [line["event"] for line in logs]
    assert events == ["sink_publish_failed", "sink_recovered"] * (len(events) // 2)
    assert len(events) < 10


async def test_pump_binds_sink_id_to_log_context(outbox: StoredOutbox, clock: VirtualClock) -> None:
    sink_ids: list[object] = []

    async def record_sink_id() -> None:
        sink_ids.append(structlog.contextvars.get_contextvars().get("sink"))

    sink = FakeSink()
    sink.starts = [record_sink_id]
    async with running_pump(sink, outbox, clock):
        await eventually_async(lambda: sink_ids, within=3600)
    assert sink_ids == ["s"]


async def test_pump_retries_when_sink_fails_to_start(outbox: StoredOutbox, clock: VirtualClock) -> None:
    sink = FakeSink()
    sink.starts = [fail, fail]
    async with running_pump(sink, outbox, clock):
        await outbox.append(RecordFactory().started_records(3))
        await eventually_async(lambda: sink.published, within=3600)


@pytest.mark.parametrize("hanging", [hang, hang_uncancellable])
async def test_pump_cancels_and_retries_attempt_when_sink_hangs(
    outbox: StoredOutbox, clock: VirtualClock, hanging: Behavior
) -> None:
    sink = FakeSink(hanging)
    with capture_logs() as logs:
        async with running_pump(sink, outbox, clock, attempt_timeout=60):
            await outbox.append(RecordFactory().started_records(3))
            await eventually_async(lambda: sink.published, within=65)
    assert sink.attempts[0] == sink.attempts[1]
    assert "60 s" in logs[0]["error"]


async def test_pump_dead_letters_rejected_records_and_publishes_rest(outbox: StoredOutbox, clock: VirtualClock) -> None:
    sink = FakeSink(reject(2), reject(4))
    async with running_pump(sink, outbox, clock):
        await outbox.append(RecordFactory().started_records(5))
        await eventually_async(lambda: outbox.depth("s") == 0)
        assert clock.slept == [], "a rejection causes no delay"
    assert [record.type for record in sink.published] == ["started", "lost", "started", "lost", "started"]
    assert [loss_range(record)[1:] for record in sink.published if record.type == "lost"] == [
        (2, 2, "rejected"),
        (4, 4, "rejected"),
    ]
    assert outbox.depth("other") == 5


async def test_pump_retries_when_loss_record_is_rejected(outbox: StoredOutbox, clock: VirtualClock) -> None:
    sink = FakeSink(reject(2), reject(2), reject(2))
    async with running_pump(sink, outbox, clock):
        await outbox.append(RecordFactory().started_records(3))
        await eventually_async(lambda: outbox.depth("s") == 0, within=3600)
    assert len(clock.slept) == 2
    assert [record.type for record in sink.published] == ["started", "lost", "started"]


@pytest.mark.parametrize("error", [FatalError("the topic is compacted"), KeyError("a bug")])
async def test_pump_retries_rarely_when_sink_fails_fatally(
    outbox: StoredOutbox, clock: VirtualClock, error: Exception
) -> None:
    async def fail_fatally(_: object = None) -> None:
        raise error

    sink = FakeSink(fail_fatally)
    sink.starts = [fail_fatally]
    with capture_logs() as logs:
        async with running_pump(sink, outbox, clock) as pump:
            await outbox.append(RecordFactory().started_records(2))
            for _ in range(2):
                await clock.sleep(FATAL_RETRY_SECONDS / 2)
                assert pump.state == "failed"
                assert str(error) in str(pump.last_error)
                before = clock.now()
                await pump.wait_drained()
                assert clock.now() == before, "a shutdown does not wait for it"
                await clock.sleep(FATAL_RETRY_SECONDS / 2)
            await eventually_async(lambda: outbox.depth("s") == 0)
            assert pump.state == "ok"
    assert clock.slept.count(FATAL_RETRY_SECONDS) == 2
    assert [line["event"] for line in logs] == ["sink_failed", "sink_recovered", "sink_failed", "sink_recovered"]


async def test_pump_publishes_while_another_sink_hangs(outbox: StoredOutbox, clock: VirtualClock) -> None:
    hanging_sink, healthy_sink = FakeSink(hang), FakeSink()
    async with running_pump(hanging_sink, outbox, clock), running_pump(healthy_sink, outbox, clock, name="other"):
        recorder = RecordFactory()
        for _ in range(20):
            await outbox.append(recorder.started_records(100))
            await eventually_async(lambda: outbox.depth("other") == 0)
    assert sequences(healthy_sink.published) == list(range(1, 2001))
    assert outbox.depth("s") == 2000


async def test_pump_limits_batches_by_count_and_bytes(outbox: StoredOutbox, clock: VirtualClock) -> None:
    sink, recorder = FakeSink(), RecordFactory()
    await outbox.append(recorder.started_records(1500))
    await outbox.append(recorder.started_records(10, size=300_000))
    async with running_pump(sink, outbox, clock):
        await eventually_async(lambda: outbox.depth("s") == 0)
    assert max(map(len, sink.attempts)) == 1000
    assert max(sum(len(record.data) for record in attempt) for attempt in sink.attempts) <= BATCH_BYTES
    assert sequences(sink.published) == list(range(1, 1511))


async def test_pump_wait_drained_returns_when_outbox_is_empty(outbox: StoredOutbox, clock: VirtualClock) -> None:
    acknowledge = asyncio.Event()
    sink = FakeSink(lambda _: _wait(acknowledge))
    await outbox.append(RecordFactory().started_records(3))
    async with running_pump(sink, outbox, clock) as pump:
        draining = asyncio.create_task(pump.wait_drained())
        await clock.sleep(59)
        assert (pump.backlog, draining.done()) == (3, False)
        acknowledge.set()
        await draining


async def test_pump_stop_waits_for_records_in_flight(outbox: StoredOutbox, clock: VirtualClock) -> None:
    acknowledge = asyncio.Event()
    sink, recorder = FakeSink(lambda _: _wait(acknowledge)), RecordFactory()
    pump = Pump("s", sink, outbox, clock)
    running = asyncio.create_task(pump.run())
    await outbox.append(recorder.started_records(3))
    await eventually_async(lambda: sink.attempts)
    stopping = asyncio.create_task(pump.stop(running))
    await outbox.append(recorder.started_records(2))
    await clock.sleep(QUIESCE_SECONDS / 2)
    assert not stopping.done()
    acknowledge.set()
    await stopping
    await clock.sleep(60)
    assert (len(sink.attempts), pump.backlog, running.cancelled()) == (1, 2, True)


@pytest.mark.parametrize(("behavior", "seconds"), [(hang, QUIESCE_SECONDS), (fail, 0)])
async def test_pump_stop_is_bounded_when_sink_does_not_acknowledge(
    behavior: Behavior, seconds: float, outbox: StoredOutbox, clock: VirtualClock
) -> None:
    sink = FakeSink(behavior, hang)
    pump = Pump("s", sink, outbox, clock)
    running = asyncio.create_task(pump.run())
    await outbox.append(RecordFactory().started_records(3))
    await eventually_async(lambda: sink.attempts and (behavior is hang or pump.state == "failing"))
    before = clock.now().monotonic
    await pump.stop(running)
    assert clock.now().monotonic - before == seconds * SECOND
    assert (pump.backlog, running.cancelled()) == (3, True)


async def test_pump_stop_waits_for_the_end_of_a_canceled_start(outbox: StoredOutbox, clock: VirtualClock) -> None:
    """The next sink may use the same file."""
    ended = asyncio.Event()

    async def hang_and_clean_up() -> None:
        try:
            await hang()
        finally:
            await clock.sleep(CANCEL_GRACE_SECONDS / 2)
            ended.set()

    sink = FakeSink()
    sink.starts = [fail, hang_and_clean_up]
    pump = Pump("s", sink, outbox, clock)
    running = asyncio.create_task(pump.run())
    await eventually_async(lambda: not sink.starts)
    assert pump.state == "failing"
    await pump.stop(running)
    assert ended.is_set()


async def test_pump_abandons_close_when_sink_hangs(
    outbox: StoredOutbox, clock: VirtualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = FakeSink()
    monkeypatch.setattr(sink, "close", hang)
    with capture_logs() as logs:
        await Pump("s", sink, outbox, clock).close()
    assert [line["event"] for line in logs] == ["sink_close_failed"]


async def test_pump_stops_when_reader_disconnects_while_idle(outbox: StoredOutbox, clock: VirtualClock) -> None:
    class Pipe(FakeSink):
        async def wait_disconnected(self) -> None:
            raise DisconnectedError("the reader has disconnected")

    with pytest.raises(DisconnectedError, match="reader has disconnected"):
        await Pump("s", Pipe(), outbox, clock).run()


# --- heartbeats ---

WATERMARK = Watermark(RecordFactory().encoder.epoch, 1_795_447_300_000_000_000)


async def test_heartbeat_carries_last_position_and_watermark(outbox: StoredOutbox, clock: VirtualClock) -> None:
    sink = FakeSink()
    async with running_pump(sink, outbox, clock, heartbeat_factory=HeartbeatFactory(lambda: WATERMARK, 60)):
        await outbox.append(RecordFactory().started_records(3))
        await eventually_async(lambda: outbox.depth("s") == 0)
        await clock.sleep(59)
        assert len(sink.published) == 3
        await clock.sleep(1)
        await clock.sleep(60)
    last, first, second = sink.published[2:]
    assert (first.type, first.epoch, first.sequence, first.host) == ("heartbeat", last.epoch, 3, last.host)
    assert first.time == "2026-11-23T15:21:40Z"
    assert (first.subject, first.namespace, first.project) == ("", "", "")
    assert [first.id, second.id] == [f"{last.epoch}-3-heartbeat-1", f"{last.epoch}-3-heartbeat-2"]
    document = msgspec.json.decode(first.data)
    assert document.keys() ^ msgspec.json.decode(last.data).keys() == {"start", "heartbeat"}
    assert document["heartbeat"] == {"interval": 60}
    assert [name for name, value in document.items() if value is None] == [
        "id",
        "project",
        "container",
        "exit",
        "snapshot",
        "lost",
    ]


async def test_heartbeat_not_sent_before_first_snapshot_of_epoch(outbox: StoredOutbox, clock: VirtualClock) -> None:
    sink, watermarks = FakeSink(), [None, WATERMARK._replace(epoch=WATERMARK.epoch + 1)]
    async with running_pump(sink, outbox, clock, heartbeat_factory=HeartbeatFactory(lambda: watermarks.pop(0), 60)):
        await clock.sleep(60)
        assert len(watermarks) == 2, "no watermark is requested before the first record"
        await outbox.append(RecordFactory().started_records(1))
        await eventually_async(lambda: outbox.depth("s") == 0)
        await clock.sleep(60)
        await clock.sleep(60)
    assert watermarks == []
    assert [record.type for record in sink.published] == ["started"], (
        "no heartbeat without a watermark, and none for another epoch's watermark"
    )


async def test_heartbeat_not_sent_while_records_are_queued(outbox: StoredOutbox, clock: VirtualClock) -> None:
    acknowledge = asyncio.Event()
    sink, recorder = FakeSink(lambda _: _wait(acknowledge)), RecordFactory()
    async with running_pump(sink, outbox, clock, heartbeat_factory=HeartbeatFactory(lambda: WATERMARK, 60)):
        await outbox.append(recorder.started_records(1))
        await eventually_async(lambda: sink.attempts)
        await clock.sleep(60)
        await outbox.append(recorder.started_records(1))
        acknowledge.set()
        await eventually_async(lambda: outbox.depth("s") == 0)
        await clock.sleep(0)
    assert [(record.type, record.sequence) for record in sink.published[:2]] == [("started", 1), ("started", 2)]


@pytest.mark.parametrize("failing", [fail, reject(1)])
async def test_failed_heartbeat_dropped_and_records_published(
    outbox: StoredOutbox, clock: VirtualClock, failing: Behavior
) -> None:
    sink, recorder = FakeSink(), RecordFactory()
    with capture_logs() as logs:
        async with running_pump(sink, outbox, clock, heartbeat_factory=HeartbeatFactory(lambda: WATERMARK, 60)):
            await outbox.append(recorder.started_records(1))
            await eventually_async(lambda: outbox.depth("s") == 0)
            sink.behaviors.append(failing)
            await clock.sleep(60)
            await outbox.append(recorder.started_records(2))
            await eventually_async(lambda: outbox.depth("s") == 0)
            await clock.sleep(60)
    assert [line["event"] for line in logs] == ["heartbeat_failed"]
    assert [(record.type, record.sequence) for record in sink.published] == [
        ("started", 1),
        ("started", 2),
        ("started", 3),
        ("heartbeat", 3),
    ]


async def test_pump_state_is_failing_when_heartbeat_fails(outbox: StoredOutbox, clock: VirtualClock) -> None:
    sink = FakeSink()
    async with running_pump(sink, outbox, clock, heartbeat_factory=HeartbeatFactory(lambda: WATERMARK, 60)) as pump:
        await outbox.append(RecordFactory().started_records(1))
        await eventually_async(lambda: outbox.depth("s") == 0)
        sink.behaviors.append(fail)
        await clock.sleep(60)
        assert (pump.state, pump.last_error) == ("failing", "the broker is unavailable")
        await clock.sleep(60)
        assert (pump.state, pump.last_error) == ("ok", None)


async def test_hanging_heartbeat_abandoned_and_records_published(outbox: StoredOutbox, clock: VirtualClock) -> None:
    sink, recorder = FakeSink(), RecordFactory()
    async with running_pump(
        sink, outbox, clock, attempt_timeout=10, heartbeat_factory=HeartbeatFactory(lambda: WATERMARK, 60)
    ):
        await outbox.append(recorder.started_records(1))
        await eventually_async(lambda: outbox.depth("s") == 0)
        sink.behaviors.append(hang)
        await clock.sleep(60)
        await outbox.append(recorder.started_records(2))
        await eventually_async(lambda: outbox.depth("s") == 0, within=11)
    assert sequences(sink.published) == [1, 2, 3]


@pytest.mark.parametrize("error", [FatalError("the file is not writable"), KeyError("a bug")])
async def test_heartbeat_failure_does_not_stop_pump(
    outbox: StoredOutbox, clock: VirtualClock, error: Exception
) -> None:
    async def fail_fatally(_: object) -> None:
        raise error

    sink, recorder = FakeSink(), RecordFactory()
    async with running_pump(sink, outbox, clock, heartbeat_factory=HeartbeatFactory(lambda: WATERMARK, 60)) as pump:
        await outbox.append(recorder.started_records(1))
        await eventually_async(lambda: outbox.depth("s") == 0)
        sink.behaviors.append(fail_fatally)
        await clock.sleep(60)
        states = [pump.state]
        assert str(error) in str(pump.last_error)
        await outbox.append(recorder.started_records(1))
        await eventually_async(lambda: outbox.depth("s") == 0)
        assert [*states, pump.state] == ["failed", "ok"]


# --- targets that lose records ---


class ResettableSink(FakeSink):
    """A sink whose target can lose its records; ``found`` are resets that the next check finds."""

    def __init__(self) -> None:
        super().__init__()
        self.resets = 0
        self.found: list[int] = []
        self.errors: list[Exception] = []

    async def check_target(self) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.resets += self.found.pop(0) if self.found else 0


async def test_pump_reports_reset_found_while_publishing(outbox: StoredOutbox, clock: VirtualClock) -> None:
    sink = ResettableSink()
    reports: list[SnapshotReason] = []

    async def recreate(_: object) -> None:
        sink.resets += 1

    sink.behaviors = [recreate]
    async with running_pump(sink, outbox, clock, request_snapshot=reports.append):
        await outbox.append(RecordFactory().started_records(1))
        await eventually_async(lambda: outbox.depth("s") == 0)
    assert reports == ["on_demand"]


async def test_pump_reports_reset_found_while_idle(outbox: StoredOutbox, clock: VirtualClock) -> None:
    sink = ResettableSink()
    reports: list[SnapshotReason] = []
    sink.found, sink.errors = [0, 1], [TransientError("the stream does not exist")]
    counts, states = [], []
    async with running_pump(sink, outbox, clock, request_snapshot=reports.append) as pump:
        for _ in range(4):
            await clock.sleep(TARGET_CHECK_SECONDS + 0.1)
            counts.append(len(reports))
            states.append(pump.state)
    assert counts == [0, 0, 1, 1]
    assert states == ["failing", "ok", "ok", "ok"]


async def test_pump_requests_snapshot_when_loss_is_acknowledged(clock: VirtualClock) -> None:
    recorder = RecordFactory()
    requests: list[SnapshotReason] = []
    async with open_outbox(None, clock=clock, limits=TIGHT_LIMITS) as outbox:
        for _ in range(20):
            await outbox.append(recorder.started_records(10))
        async with running_pump(FakeSink(), outbox, clock, request_snapshot=requests.append):
            await eventually_async(lambda: outbox.depth("s") == 0)
            await outbox.append(recorder.started_records(10))
            await eventually_async(lambda: outbox.depth("s") == 0)
    assert requests == ["overflow"]
