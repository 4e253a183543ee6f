"""Fakes: a containerd that the test controls, with hooks at the points where races happen, a clock and an outbox."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence

from bridge.clock import SystemClock
from bridge.core.containerd_model import (
    ContainerKey,
    Engine,
    Event,
    ExitStatus,
    Instant,
    Marker,
    Metadata,
    Task,
    TaskStatus,
)
from bridge.core.errors import TransientError
from bridge.core.label_rules import LabelRules
from bridge.core.ports import Lag, StoredCheckpoint
from bridge.core.records import Record
from bridge.core.time import from_seconds
from bridge.watch import WatchSettings

INFINITE_SLEEP_SECONDS = 1e6


class FakeClock(SystemClock):
    """A clock that advances only in ``sleep``, immediately; a sleep longer than INFINITE_SLEEP_SECONDS never ends."""

    def __init__(self) -> None:
        self.nanoseconds = 0

    def now(self) -> Instant:
        return Instant(1_800_000_000_000_000_000 + self.nanoseconds, self.nanoseconds)

    async def sleep(self, seconds: float) -> None:
        if seconds > INFINITE_SLEEP_SECONDS:
            await asyncio.Event().wait()
        self.nanoseconds += from_seconds(seconds)
        await asyncio.sleep(0)

    def random(self) -> float:
        return 0.5


class FakeStream:
    """A stream that returns the events put into it, and then the error passed to ``end``."""

    def __init__(self) -> None:
        self.closed = False
        self._events: list[Event] = []
        self._error: TransientError | None = None
        self._changed = asyncio.Event()

    def put(self, *events: Event) -> None:
        self._events += events
        self._changed.set()

    def end(self, error: TransientError) -> None:
        self._error = error
        self._changed.set()

    async def batch(self) -> Sequence[Event]:
        while not self._events:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        self.closed = True

    def drain(self) -> Sequence[Event]:
        events, self._events = self._events, []
        return events


async def no_op(*_: object) -> None:
    """Do nothing; the default hook."""


class FakeEngineClient:
    """A containerd in memory. Each hook runs inside the call that it is named after."""

    def __init__(self) -> None:
        self.id = "engine-1"
        self.metadata: dict[ContainerKey, Metadata] = {}
        self.running: dict[ContainerKey, Task] = {}
        self.stream = FakeStream()
        self.calls: Counter[str] = Counter()
        self.markers_return = True
        self.before_listing: Callable[[str], Awaitable[None]] = no_op
        self.before_task: Callable[[ContainerKey], Awaitable[None]] = no_op
        self.before_container: Callable[[ContainerKey], Awaitable[None]] = no_op

    async def engine(self) -> Engine:
        return Engine(self.id, "2.4.2", "/run/c.sock", 812)

    async def subscribe(self) -> FakeStream:
        self.stream = FakeStream()
        return self.stream

    async def publish_marker(self, nonce: str, number: int) -> None:
        self.calls["marker"] += 1
        if self.markers_return:
            self.stream.put(Marker(nonce, number))

    async def namespaces(self) -> Sequence[str]:
        return sorted({key.namespace for key in {**self.metadata, **self.running}} | {"default"})

    async def containers(self, namespace: str) -> AsyncIterator[Metadata]:
        self.calls["containers"] += 1
        await self.before_listing(namespace)
        for key, metadata in self.metadata.items():
            if key.namespace == namespace:
                yield metadata

    async def tasks(self, namespace: str) -> Sequence[Task]:
        return [task for key, task in self.running.items() if key.namespace == namespace]

    async def container(self, key: ContainerKey) -> Metadata | None:
        self.calls["container"] += 1
        await self.before_container(key)
        return self.metadata.get(key)

    async def task(self, key: ContainerKey) -> Task | None:
        self.calls["task"] += 1
        await self.before_task(key)
        return self.running.get(key)

    async def wait_for_exit(self, key: ContainerKey) -> ExitStatus | None:  # noqa: ARG002 (the port's signature)
        await asyncio.Event().wait()
        return None

    async def close(self) -> None:
        """Do nothing."""

    # --- for tests ---

    def run(self, key: ContainerKey, pid: int, status: TaskStatus = TaskStatus.RUNNING) -> None:
        """Add a container with a task, without an event."""
        self.metadata[key] = make_metadata(key)
        self.running[key] = Task(key, pid, status)


class RecordingOutbox:
    """An outbox that keeps everything for inspection; its initial checkpoint is empty, or that of another process."""

    last_error = None

    def __init__(self, checkpoint: Mapping[str, bytes | None] | None = None) -> None:
        self.records: list[Record] = []
        self.checkpoint = dict(checkpoint or {})

    def load_checkpoint(self) -> StoredCheckpoint:
        return StoredCheckpoint({key: value for key, value in self.checkpoint.items() if value is not None})

    async def append(self, records: Sequence[Record], checkpoint: Mapping[str, bytes | None] | None = None) -> None:
        self.records += records
        self.checkpoint |= checkpoint or {}

    async def read(self, sink: str, limit: int, max_bytes: int = 0) -> Sequence[Record]:
        raise NotImplementedError

    async def acknowledge(self, sink: str, batch: Sequence[Record]) -> bool:
        raise NotImplementedError

    async def reject(self, sink: str, positions: Collection[tuple[int, int]], reason: str) -> int:
        raise NotImplementedError

    def depth(self, sink: str) -> int:  # noqa: ARG002 (the port's signature)
        return 0

    def lag(self, sink: str) -> Lag:
        raise NotImplementedError

    async def close(self) -> None:
        """Do nothing."""


def make_metadata(key: ContainerKey, name: str = "") -> Metadata:
    return Metadata(key, name or key.id, "", "", "busybox", "runc", 1, 1, {"tier": "front"})


def settings(**changed: object) -> WatchSettings:
    """Return settings that match every namespace except moby, and every container."""
    values = {
        "host": "node-1",
        "namespace_filter": lambda name: name != "moby",
        "label_rules": LabelRules.keep_all(),
        **changed,
    }
    return WatchSettings(**values)  # type: ignore[arg-type]
