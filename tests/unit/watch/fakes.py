"""Fakes: a containerd that the test controls, with hooks at the points where races happen, an outbox, and a watch."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

import msgspec

from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerKey,
    Engine,
    Event,
    ExitStatus,
    Marker,
    Metadata,
    Task,
    TaskCreated,
    TaskExited,
    TaskStarted,
    TaskStatus,
)
from bridge.core.errors import BridgeError, FatalError, TransientError
from bridge.core.label_rules import LabelRules
from bridge.core.ports import Lag, StoredCheckpoint
from bridge.core.records import Record
from bridge.watch import ContainerWatch, WatchSettings
from tests.eventually import eventually_async
from tests.virtual_time import VirtualClock

WEB = ContainerKey("default", "web")
DB = ContainerKey("shop", "db")
NEVER = 1e6  # seconds


class FakeStream:
    """A stream that returns the events put into it, unless `held`, and then the error passed to `end`."""

    def __init__(self) -> None:
        self.closed = self.held = False
        self._events: list[Event] = []
        self._error: TransientError | None = None
        self._changed = asyncio.Event()

    def put(self, *events: Event) -> None:
        self._events += events
        self._changed.set()

    def end(self, error: TransientError | None = None) -> None:
        self._error = error or TransientError("stream ended")
        self._changed.set()

    async def batch(self) -> Sequence[Event]:
        while self.held or not self._events:
            if self._error is not None:
                raise self._error
            self._changed.clear()
            await self._changed.wait()
        return self.drain()

    def close(self) -> None:
        self.closed = True

    def drain(self) -> Sequence[Event]:
        events, self._events = self._events, []
        return events


class FakeEngineClient:
    """A containerd in memory.

    `calls` counts the calls by method. A hook runs inside the calls of the method that it is named after, before their
    results are determined, with their argument. `exits` are the results of `wait_for_exit`, which waits for them.
    """

    path = "/run/c.sock"

    def __init__(self, running: Mapping[ContainerKey, int] | None = None) -> None:
        """Create containerd with running containers, given by the pids of their tasks."""
        self.id = "engine-1"
        self.metadata: dict[ContainerKey, Metadata] = {}
        self.running: dict[ContainerKey, Task] = {}
        self.exits: dict[ContainerKey, asyncio.Future[ExitStatus | None]] = {}
        self.stream = FakeStream()
        self.calls: Counter[str] = Counter()
        self.hooks: dict[str, Callable[..., Awaitable[object]]] = {}
        self.markers_return = True
        for key, pid in (running or {}).items():
            self.run(key, pid)

    async def _called(self, method: str, *args: object) -> None:
        self.calls[method] += 1
        if method in self.hooks:
            await self.hooks[method](*args)

    async def engine(self) -> Engine:
        await self._called("engine")
        return Engine(self.id, "2.4.2", self.path, 812)

    async def subscribe(self) -> FakeStream:
        self.stream = FakeStream()
        await self._called("subscribe")
        return self.stream

    async def publish_marker(self, nonce: str, number: int) -> None:
        await self._called("publish_marker")
        if self.markers_return:
            self.stream.put(Marker(nonce, number))

    async def namespaces(self) -> Sequence[str]:
        await self._called("namespaces")
        return sorted({key.namespace for key in {**self.metadata, **self.running}} | {"default"})

    async def containers(self, namespace: str) -> AsyncIterator[Metadata]:
        await self._called("containers", namespace)
        for key, metadata in self.metadata.items():
            if key.namespace == namespace:
                yield metadata

    async def tasks(self, namespace: str) -> Sequence[Task]:
        await self._called("tasks", namespace)
        return [task for key, task in self.running.items() if key.namespace == namespace]

    async def container(self, key: ContainerKey) -> Metadata | None:
        await self._called("container", key)
        return self.metadata.get(key)

    async def task(self, key: ContainerKey) -> Task | None:
        await self._called("task", key)
        return self.running.get(key)

    async def wait_for_exit(self, key: ContainerKey) -> ExitStatus | None:
        await self._called("wait_for_exit", key)
        return await self.exits.setdefault(key, asyncio.get_running_loop().create_future())

    def wait_calls(self) -> FakeWaitCalls:
        return FakeWaitCalls(self)

    async def close(self) -> None:
        """Do nothing."""

    # --- for tests ---

    def run(self, key: ContainerKey, pid: int, status: TaskStatus = TaskStatus.RUNNING) -> None:
        """Add a container with a task, without an event."""
        self.metadata[key] = make_metadata(key)
        self.running[key] = Task(key, pid, status)

    def set_exit(self, key: ContainerKey, exit_status: ExitStatus | None) -> None:
        """Let `wait_for_exit` return."""
        self.exits.setdefault(key, asyncio.get_running_loop().create_future()).set_result(exit_status)


class FakeWaitCalls:
    """Pending calls of `wait_for_exit`."""

    def __init__(self, client: FakeEngineClient) -> None:
        self._client = client
        self._calls: set[asyncio.Task[None]] = set()

    def start(self, key: ContainerKey, on_end: Callable[[ExitStatus | BridgeError | None], None]) -> None:
        async def wait() -> None:
            try:
                result: ExitStatus | BridgeError | None = await self._client.wait_for_exit(key)
            except BridgeError as error:
                result = error
            on_end(result)

        call = asyncio.create_task(wait())
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    def close(self) -> None:
        for call in self._calls:
            call.cancel()


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


class RunningWatch:
    """A running watch, and the records that it published."""

    def __init__(
        self, client: FakeEngineClient, checkpoint: Mapping[str, bytes | None] | None = None, **changed: object
    ) -> None:
        self.client = client
        self.clock = VirtualClock()
        self.outbox = RecordingOutbox(checkpoint)
        self.watch = ContainerWatch(client, self.outbox, self.clock, settings(**changed), "5f3c9a1e-0000")
        self.task = asyncio.create_task(self.watch.run())

    @property
    def documents(self) -> list[dict[str, Any]]:
        return [msgspec.json.decode(each.data) for each in self.outbox.records]

    @property
    def transitions(self) -> list[tuple[str, str, str]]:
        """Type, origin and id of the published transitions and snapshot records."""
        return [(each["type"], each["origin"], each["id"]) for each in self.documents if each["id"]]

    def snapshots(self) -> list[dict[str, Any]]:
        return [each["snapshot"] for each in self.documents if each["type"] == "snapshot_completed"]

    async def eventually(self, condition: Callable[[], object]) -> None:
        """Wait until a condition is true; fail if the watch ends."""

        def holds() -> object:
            if not (met := condition()) and self.task.done():
                self.task.result()
            return met

        await eventually_async(holds, within=600)

    async def wait_synced(self, snapshots: int = 1) -> None:
        await self.eventually(lambda: len(self.snapshots()) >= snapshots)


@contextlib.asynccontextmanager
async def running_watch(
    client: FakeEngineClient, checkpoint: Mapping[str, bytes | None] | None = None, **changed: object
) -> AsyncIterator[RunningWatch]:
    """Run a watch that audits only on request, and does not verify its stream."""
    running = RunningWatch(
        client, checkpoint, **{"first_audit_delay": NEVER, "audit_interval": NEVER, "marker_interval": NEVER, **changed}
    )
    try:
        yield running
    finally:
        running.task.cancel()
        with contextlib.suppress(asyncio.CancelledError, FatalError, TransientError):
            await running.task


@contextlib.asynccontextmanager
async def synced_watch(client: FakeEngineClient, **changed: object) -> AsyncIterator[RunningWatch]:
    """Run a watch whose first snapshot is published."""
    async with running_watch(client, None, **changed) as running:
        await running.wait_synced()
        yield running


def make_metadata(key: ContainerKey, name: str = "") -> Metadata:
    return Metadata(key, name or key.id, "", "", "busybox", "runc", 1, 1, {"tier": "front"})


def start_events(key: ContainerKey, pid: int) -> list[Any]:
    return [ContainerCreated(key, 1, "busybox", "runc"), TaskCreated(key, 2, pid), TaskStarted(key, 3, pid)]


def exit_event(key: ContainerKey, pid: int, status: int = 0) -> TaskExited:
    return TaskExited(key, 9, "", pid, status, 8)


def settings(**changed: object) -> WatchSettings:
    """Return settings that match every namespace except moby, and every container."""
    values = {
        "host": "node-1",
        "namespace_filter": lambda name: name != "moby",
        "label_rules": LabelRules.keep_all(),
        **changed,
    }
    return WatchSettings(**values)  # type: ignore[arg-type]
