"""A client of the simulated containerd with hooks, an outbox in memory, and a running watch."""

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
    ExitStatus,
    Image,
    Labels,
    Metadata,
    RecordedExit,
    Task,
    TaskCreated,
    TaskExited,
    TaskStarted,
    TaskStatus,
)
from bridge.core.errors import FatalError, TransientError
from bridge.core.label_rules import LabelRules
from bridge.core.ports import Lag, StoredCheckpoint
from bridge.core.records import Record
from bridge.watch import ContainerWatch, WatchSettings
from tests.eventually import eventually_async
from tests.simulator.client import InProcessClient, InProcessStream
from tests.simulator.containerd import SimulatedContainerd
from tests.simulator.state import SimulatedContainer, SimulatedTask, State
from tests.virtual_time import VirtualClock

WEB = ContainerKey("default", "web")
DB = ContainerKey("shop", "db")
NEVER = 1e6  # seconds


class HookedClient(InProcessClient):
    """A client of the simulated containerd, with hooks at the points where races happen.

    `calls` counts the calls by method. A hook runs inside the calls of the method that it is named after, before their
    results are determined, with their argument. The filter does not match the ids in `out_of_scope`.
    """

    def __init__(self, running: Mapping[ContainerKey, int] | None = None) -> None:
        """Create containerd with running containers, given by the pids of their tasks."""
        clock = VirtualClock()
        containerd = SimulatedContainerd(state=State(lambda: clock.now().wall))
        self.out_of_scope: set[str] = set()
        super().__init__(containerd, clock, container_filter=lambda **fields: fields["id"] not in self.out_of_scope)
        self.clock, self.state, self.faults = clock, containerd.state, containerd.faults
        self.state.namespaces["default"] = {}
        self.calls: Counter[str] = Counter()
        self.hooks: dict[str, Callable[..., Awaitable[object]]] = {}
        for key, pid in (running or {}).items():
            self.run(key, pid)

    async def _called(self, method: str, *args: object) -> None:
        self.calls[method] += 1
        if method in self.hooks:
            await self.hooks[method](*args)

    async def engine(self) -> Engine:
        await self._called("engine")
        return await super().engine()

    async def subscribe(self) -> InProcessStream:
        stream = await super().subscribe()
        await self._called("subscribe")
        return stream

    async def publish_marker(self, nonce: str, number: int) -> None:
        await self._called("publish_marker")
        await super().publish_marker(nonce, number)

    async def namespaces(self) -> Sequence[str]:
        await self._called("namespaces")
        return await super().namespaces()

    async def containers(self, namespace: str) -> AsyncIterator[Metadata]:
        await self._called("containers", namespace)
        async for metadata in super().containers(namespace):
            yield metadata

    async def tasks(self, namespace: str) -> Sequence[Task]:
        await self._called("tasks", namespace)
        return await super().tasks(namespace)

    async def container(self, key: ContainerKey) -> Metadata | None:
        await self._called("container", key)
        return await super().container(key)

    async def task(self, key: ContainerKey) -> Task | None:
        await self._called("task", key)
        return await super().task(key)

    async def exited_containers(self, seconds: float) -> Sequence[ContainerKey] | None:
        await self._called("exited_containers")
        return await super().exited_containers(seconds)

    async def recorded_exit(self, key: ContainerKey, seconds: float) -> RecordedExit | None:
        await self._called("recorded_exit", key)
        return await super().recorded_exit(key, seconds)

    async def pod_labels(self, uids: Collection[str], seconds: float) -> Mapping[str, Labels]:
        await self._called("pod_labels", uids)
        return await super().pod_labels(uids, seconds)

    async def image(self, namespace: str, name: str, seconds: float) -> Image | None:
        await self._called("image", name)
        return await super().image(namespace, name, seconds)

    async def wait_for_exit(self, key: ContainerKey) -> ExitStatus | None:
        await self._called("wait_for_exit", key)
        return await super().wait_for_exit(key)

    # --- changes of containerd without an event ---

    def add(self, key: ContainerKey, name: str = "", created_at: int = 1) -> None:
        """Add a container."""
        labels = {"tier": "front", **({"nerdctl/name": name} if name else {})}
        container = SimulatedContainer(key.id, labels, "busybox", "runc", created_at, created_at, 0)
        self.state.namespaces.setdefault(key.namespace, {})[key.id] = container

    def run(self, key: ContainerKey, pid: int, status: TaskStatus = TaskStatus.RUNNING) -> None:
        """Add a task, and its container if necessary."""
        if key.id not in self.state.namespaces.get(key.namespace, {}):
            self.add(key)
        self.state.container(key).task = SimulatedTask(pid, status)

    def remove(self, key: ContainerKey) -> None:
        """Remove a container, and its task."""
        del self.state.namespaces[key.namespace][key.id]

    def remove_task(self, key: ContainerKey) -> None:
        """Remove the task of a container."""
        self.state.container(key).task = None


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
        self,
        client: HookedClient,
        checkpoint: Mapping[str, bytes | None] | None = None,
        boot_id: str = "5f3c9a1e-0000",
        **changed: object,
    ) -> None:
        self.client = client
        self.clock = client.clock
        self.outbox = RecordingOutbox(checkpoint)
        self.watch = ContainerWatch(client, self.outbox, self.clock, settings(**changed), boot_id)
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
    client: HookedClient, checkpoint: Mapping[str, bytes | None] | None = None, **changed: Any
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
async def synced_watch(client: HookedClient, **changed: object) -> AsyncIterator[RunningWatch]:
    """Run a watch whose first snapshot is published."""
    async with running_watch(client, None, **changed) as running:
        await running.wait_synced()
        yield running


def start_events(key: ContainerKey, pid: int) -> list[Any]:
    return [ContainerCreated(key, 1, "busybox", "runc"), TaskCreated(key, 2, pid), TaskStarted(key, 3, pid)]


def exit_event(key: ContainerKey, pid: int, status: int = 0) -> TaskExited:
    return TaskExited(key, 9, "", pid, status, 8)


def settings(**changed: object) -> WatchSettings:
    """Return settings that match every namespace except moby, and every container.

    ``filter_fingerprint`` is also that of the selection, unless that is given.
    """
    values = {
        "host": "node-1",
        "namespace_filter": lambda name: name != "moby",
        "label_rules": LabelRules.keep_all(),
        "selection_fingerprint": changed.get("filter_fingerprint", ""),
        **changed,
    }
    return WatchSettings(**values)  # type: ignore[arg-type]
