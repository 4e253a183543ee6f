"""Promise P1 (docs/reliability.md) for every outbox: each sink gets every record or a loss record for it, in order.

Hypothesis generates the history. A crash is simulated by a copy of the files as the kernel has them at that moment,
which is what SIGKILL leaves behind; a power failure also truncates the WAL at any byte.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from threading import Event

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from bridge.core.records import Record
from bridge.outbox.database_worker import DatabaseWorker
from bridge.outbox.outbox import StoredOutbox
from bridge.outbox.sink_queue import Limits
from tests.clocks import ManualClock
from tests.contract.test_outbox import loss_range
from tests.outboxes import open_outbox
from tests.records import RecordFactory
from tests.scale import scaled

LIMITS = Limits(max_records=40, max_bytes=40_000, max_age=1000)
SINKS = ("a", "b")
sinks = st.sampled_from(SINKS)
hypothesis_settings = settings(
    max_examples=scaled(reduced=40, full=1000),
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)


class Consumer:
    """A consumer that follows the consumer rules, and accepts neither gaps nor changed records."""

    def __init__(self) -> None:
        self.expected = (0, 1)
        self.records: dict[str, bytes] = {}
        self.epochs: dict[int, int] = {}

    def accept(self, record: Record) -> None:
        assert self.records.setdefault(record.id, record.data) == record.data, f"{record.id} has changed"
        first, last = (record.sequence, record.sequence) if record.type != "lost" else loss_range(record)[1:3]
        known = self.epochs.get(record.epoch, 0)
        assert first <= known + 1, f"gap before {record.id}"
        assert known or record.epoch > max(self.epochs, default=0), "epoch decreased"
        self.epochs[record.epoch] = max(known, last)

    def skip_to(self, epochs: dict[int, int]) -> None:
        """Continue after a loss of appended records, at the given last sequence of each epoch.

        Loss records are lost as well. Records that are dropped again get a new one, with another time.
        """
        self.epochs = dict(epochs)
        self.records = {id_: data for id_, data in self.records.items() if not id_.endswith("-lost")}


class OutboxMachine(RuleBasedStateMachine):
    """Operations of an outbox, and checks of the records that its sinks get."""

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = ManualClock()
        self.factory = RecordFactory(epoch=1)
        self.consumers = {sink: Consumer() for sink in SINKS}
        self.appended: dict[int, int] = {}
        self.checkpoint: dict[str, bytes] = {}
        self.outbox: StoredOutbox
        self.opened = AsyncExitStack()

    def open(self, path: Path | None) -> None:
        self.outbox = self.runner.run(
            self.opened.enter_async_context(open_outbox(path, *SINKS, clock=self.clock, limits=LIMITS))
        )

    def close(self) -> None:
        self.runner.run(self.opened.aclose())

    def teardown(self) -> None:
        for sink in SINKS:
            while self.outbox.depth(sink):
                self.read(sink, 1000, 1 << 20, acknowledge=True)
            assert self.consumers[sink].epochs == self.appended, f"{sink} did not get all records"
        self.close()
        self.runner.close()

    @rule(count=st.integers(1, 60), size=st.sampled_from([0, 300, 3000]), key=st.sampled_from("xyz"))
    def append(self, count: int, size: int, key: str) -> None:
        records = self.factory.started_records(count, size)
        remove = count % 3 == 0
        value = None if remove else str(records[-1].sequence).encode()
        self.runner.run(self.outbox.append(records, {key: value}))
        self.appended[records[-1].epoch] = records[-1].sequence
        if value is None:
            self.checkpoint.pop(key, None)
        else:
            self.checkpoint[key] = value

    @rule(
        sink=sinks, limit=st.integers(1, 50), max_bytes=st.sampled_from([1, 5000, 1 << 20]), acknowledge=st.booleans()
    )
    def read(self, sink: str, limit: int, max_bytes: int, *, acknowledge: bool) -> None:
        if not self.outbox.depth(sink):
            return
        batch = list(self.runner.run(self.outbox.read(sink, limit, max_bytes)))
        assert 1 <= len(batch) <= limit
        for record in batch:
            self.consumers[sink].accept(record)
        if acknowledge:
            self.runner.run(self.outbox.acknowledge(sink, batch[: (limit + 1) // 2] if limit % 3 == 0 else batch))

    @rule(sink=sinks, limit=st.integers(1, 50), indices=st.sets(st.integers(0, 49), min_size=1, max_size=3))
    def reject(self, sink: str, limit: int, indices: set[int]) -> None:
        if not self.outbox.depth(sink):
            return
        batch = self.runner.run(self.outbox.read(sink, limit))
        positions = {(each.epoch, each.sequence) for index, each in enumerate(batch) if index in indices}
        self.runner.run(self.outbox.reject(sink, positions, "too large"))

    @rule(seconds=st.sampled_from([1, 100, 600]))
    def pass_time(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule()
    def start_epoch(self) -> None:
        self.factory = RecordFactory(epoch=self.factory.encoder.epoch + 1)

    @invariant()
    def assert_bounded(self) -> None:
        for sink in SINKS:
            # A batch in flight, rejected records and one append may exceed the limit.
            assert self.outbox.depth(sink) <= 3 * LIMITS.max_records + 60


class MemoryOutboxMachine(OutboxMachine):
    @initialize()
    def make(self) -> None:
        self.open(None)


class DiskOutboxMachine(OutboxMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="whalebridge-"))
        self.number = 0

    def teardown(self) -> None:
        try:
            super().teardown()
        finally:
            shutil.rmtree(self.directory)

    @initialize()
    def make(self) -> None:
        self.open(self.path)

    @property
    def path(self) -> Path:
        return self.directory / str(self.number)

    @rule()
    def restart(self) -> None:
        self.close()
        self.make()
        self.assert_checkpoint()

    @rule()
    def crash(self) -> None:
        """Kill the process with SIGKILL: recently acknowledged records may be read again, and nothing else changes."""
        self.switch_to_copy()
        self.make()
        self.assert_checkpoint()

    @rule(fraction=st.floats(0, 1))
    def lose_power(self, fraction: float) -> None:
        """Lose the newest transactions, as on a disk that ignores fsync; earlier transactions are complete."""
        if not self.appended:  # not a precondition, because the retained records differ between runs
            return
        self.switch_to_copy()
        log = self.path / "outbox.db-wal"
        if log.exists():
            with log.open("r+b") as file:
                file.truncate(int(log.stat().st_size * fraction))
        self.make()
        values = self.runner.run(self._read_backlogs())
        self.checkpoint = dict(self.outbox.load_checkpoint().values)
        for sink in SINKS:
            self.consumers[sink].skip_to(values)
        self.appended = dict(values)
        self.factory = RecordFactory(epoch=self.factory.encoder.epoch + 1)

    async def _read_backlogs(self) -> dict[int, int]:
        """Check that the backlogs have no gaps; return their last sequence in each epoch."""
        last_sequences: dict[int, int] = {}
        for sink in SINKS:
            expected: dict[int, int] = {}
            while self.outbox.depth(sink):
                batch = await self.outbox.read(sink, 1000)
                for record in batch:
                    first = record.sequence if record.type != "lost" else loss_range(record)[1]
                    assert expected.setdefault(record.epoch, first) == first
                    expected[record.epoch] = record.sequence + 1
                await self.outbox.acknowledge(sink, batch)
            last_sequences |= {epoch: sequence - 1 for epoch, sequence in expected.items()}
        return last_sequences

    def switch_to_copy(self) -> None:
        """Continue with a copy of the files as they are now."""
        before = self.path
        self.number += 1
        self.wait_for_worker()
        shutil.copytree(before, self.path)
        self.close()
        shutil.rmtree(before)

    def wait_for_worker(self) -> None:
        """Wait until the outbox's thread is idle, so that all files are copied in the same state.

        The thread gets no new calls in the meantime, because the event loop is not running.
        """
        worker = self.outbox._worker
        assert isinstance(worker, DatabaseWorker)
        calls, done = worker._worker._calls, Event()
        assert calls is not None
        calls.put(done.set)
        assert done.wait(60)

    def assert_checkpoint(self) -> None:
        assert dict(self.outbox.load_checkpoint().values) == self.checkpoint


@pytest.mark.parametrize("fraction", [number / 20 for number in range(21)])
def test_fault_19_power_fails_after_records_were_dropped(fraction: float) -> None:
    """Sink b has acknowledged the record that is dropped for sink a, but its cursor is not on the disk yet."""
    machine = DiskOutboxMachine()
    machine.make()
    machine.append(count=1, size=0, key="x")
    machine.read("b", 1, 1, acknowledge=True)
    machine.append(count=11, size=3000, key="x")
    machine.lose_power(fraction)
    machine.teardown()


TestMemoryOutbox = MemoryOutboxMachine.TestCase
TestMemoryOutbox.settings = hypothesis_settings
TestDiskOutbox = DiskOutboxMachine.TestCase
TestDiskOutbox.settings = hypothesis_settings
