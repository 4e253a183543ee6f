"""The simulated containerd's state with shims that lose, delay and repeat events, and with its true history."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bridge.containerd import decode
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.core.container_metadata import display_id
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerKey,
    ContainerUpdated,
    Event,
    Ignored,
    Instant,
    Marker,
    TaskCreated,
    TaskExited,
    TaskOOM,
    TaskStarted,
    Undecodable,
)
from bridge.core.record_encoder import rfc3339
from tests.simulator.state import KILLED, SimulatedTask, State
from tests.virtual_time import VirtualClock

_SENT_BY_CONTAINERD = (ContainerCreated, ContainerUpdated, ContainerDeleted, Marker, Ignored, Undecodable)
Listener = Callable[[Envelope | None], None]


@dataclass
class TrueRun:
    """One task: what happened when (wall clock), and to which bridge and stream its events were delivered at once.

    ``statuses`` are those that an event or a response may have reported. ``unreliable``: an event was lost, delayed or
    had no subscriber. ``excused``: the bridge ended before it can have stored the run. ``ended``: when it exited, on
    the monotonic clock.
    """

    key: ContainerKey
    pid: int
    boot: str
    labels: dict[str, str]
    started_at: int | None = None
    exited_at: int | None = None
    ended: int | None = None
    statuses: set[int] = field(default_factory=set)
    oom: bool = False
    delivered_to: dict[type, int] = field(default_factory=dict)
    streams: dict[type, object] = field(default_factory=dict)
    unreliable: bool = False
    excused: bool = False

    @property
    def id(self) -> tuple[Any, ...]:
        """Return what `run_id` returns for the ``exited`` record of the run; a pid alone may be that of several."""
        return display_id(self.key), self.boot, self.pid, self.exited_at and rfc3339(self.exited_at)


def run_id(record: dict[str, Any], exited_at: str | None) -> tuple[Any, ...]:
    """Return the display id, boot, pid and exit time of the run of a record."""
    container = record["container"]
    return record["id"], container["incarnation"][:8], container["pid"], exited_at


class ObservedState(State):
    """State with a history of all runs, and with faults of the way from a shim to the bridge.

    The probabilities are those of each event of a shim. Shims in ``silent`` send nothing. While ``lagging``, events
    wait in containerd's queues, and are gone with the connection. ``missed`` are the times of events without a
    subscriber. ``process`` is the number of the running bridge. ``labels`` are the names of the labels with which
    containers of an id were created. ``image_digests`` are those that the image's name pointed to when containers were
    created, by id and time of the creation.
    """

    def __init__(self, clock: VirtualClock, rng: Random, trace: Callable[[str], None], *, reuse_pids: bool) -> None:
        super().__init__(self._next_moment)
        self._clock = clock
        self.lost = self.late = self.duplicated = 0.0
        self.silent: set[ContainerKey] = set()
        self.boot = "boot-001"
        self.process = 0
        self.runs: list[TrueRun] = []
        self._newest_runs: dict[tuple[str, ContainerKey, int], TrueRun] = {}
        self.missed: list[Instant] = []
        self.labels: defaultdict[ContainerKey, set[str]] = defaultdict(set)
        self.image_digests: dict[tuple[str, str | None], str] = {}
        self._lagged: list[tuple[Listener, Envelope]] = []
        self._lagging = False
        self._shims = 0  # how often all shims were ended
        self._rng = rng
        self._trace = trace
        if reuse_pids:
            self._pids = self._reused_pids()  # type: ignore[assignment] # an iterator as well

    def run_of(self, key: ContainerKey, pid: int) -> TrueRun | None:
        """Return the newest run of a container with this pid."""
        return self._newest_runs.get((self.boot, key, pid))

    # --- operations ---

    def create(self, key: ContainerKey, labels: Mapping[str, str] | None = None, **options: Any) -> None:
        super().create(key, labels, **options)
        self.labels[key].update(labels or ())
        container = self.container(key)
        image = self.images.get((key.namespace, container.image))
        if image is not None:
            created = display_id(key), rfc3339(container.created_at)
            self.image_digests[created] = image.target.digest.decode()

    def stop_without_event(self, key: ContainerKey, status: int = KILLED) -> SimulatedTask:
        task = super().stop_without_event(key, status)
        if run := self.run_of(key, task.pid):
            run.exited_at, run.ended = task.exited_at, self._clock.now().monotonic
            run.statuses.add(status)
        return task

    def lose_task(self, key: ContainerKey) -> None:
        """Kill a task together with its shim: no event, and no task is left."""
        task = self.task(key)
        if task.exited_at is None:
            self.stop_without_event(key)
        self.container(key).task = None
        if run := self.run_of(key, task.pid):
            run.unreliable = True

    def reboot(self) -> None:
        """Restart the host: all tasks are gone."""
        self.end_all_tasks()
        self.boot = f"boot-{int(self.boot[5:]) + 1:03}"

    def end_all_tasks(self) -> None:
        """Kill all tasks and shims: no event is sent any more."""
        self._shims += 1
        for namespace, containers in self.namespaces.items():
            for container in containers.values():
                if container.task is not None:
                    self.lose_task(ContainerKey(namespace, container.id))

    # --- the way of events ---

    def send(self, envelope: Envelope) -> None:
        event = decode.event(envelope.SerializeToString())
        if not isinstance(event, Marker):
            fields = [getattr(event, name) for name in event.__struct_fields__ if name not in ("key", "at", "labels")]
            key = getattr(event, "key", ())
            self._trace(f"containerd: {type(event).__name__} {'/'.join(key)} {fields}")
        run = self._record(event)
        if isinstance(event, _SENT_BY_CONTAINERD):
            self._deliver(envelope, event, run)
        elif event.key in self.silent or self._rng.random() < self.lost:
            self._trace("  is lost")
            self._set_unreliable(run)
        elif self._rng.random() < self.late:
            self._set_unreliable(run)
            self._deliver_later(envelope, event)
        else:
            self._deliver(envelope, event, run)
            if self._rng.random() < self.duplicated:
                self._duplicate(envelope, event, run)

    @property
    def lagging(self) -> bool:
        return self._lagging

    @lagging.setter
    def lagging(self, lagging: bool) -> None:
        self._lagging = lagging
        lagged, self._lagged = self._lagged, []
        for listener, envelope in lagged:
            if lagging:
                self._lagged.append((listener, envelope))
            elif listener in self.listeners:
                listener(envelope)
            else:
                self._miss(envelope)

    def end_streams(self) -> None:
        for _, envelope in self._lagged:
            self._miss(envelope)
        self._lagged.clear()
        super().end_streams()

    def _duplicate(self, envelope: Envelope, event: Event, run: TrueRun | None) -> None:
        if isinstance(event, TaskExited) and self._rng.random() < 0.5:  # containerd makes up the status
            payload = decode._EVENT_DECODERS["/tasks/exit"]._parse(envelope.event.value)
            payload.exit_status = KILLED
            envelope = Envelope.FromString(envelope.SerializeToString())
            envelope.event.value = payload.SerializeToString()
            if run is not None:
                run.statuses.add(KILLED)
        if self._rng.random() < 0.5:
            self._deliver(envelope, event, None)
        else:
            self._deliver_later(envelope, event)

    def _deliver_later(self, envelope: Envelope, event: Event) -> None:
        delay = self._rng.choice((0.01, 1, 20, 100))
        self._trace(f"  arrives {delay} s later")
        shims = self._shims

        def deliver() -> None:
            if self._shims == shims:
                self._deliver(envelope, event, None)

        asyncio.get_running_loop().call_later(delay, deliver)

    def _deliver(self, envelope: Envelope, event: Event, run: TrueRun | None) -> None:
        if not self.listeners:
            self._trace("  has no subscriber")
            self._set_unreliable(run)
            self._miss(envelope)
        elif self.lagging:
            self._set_unreliable(run)
            self._lagged += ((listener, envelope) for listener in self.listeners)
        else:
            if run is not None:
                run.delivered_to[type(event)] = self.process
                run.streams[type(event)] = getattr(self.listeners[-1], "__self__", None)
            super().send(envelope)

    def _miss(self, envelope: Envelope) -> None:
        if not envelope.topic.startswith(decode.MARKER_TOPIC_PREFIX):
            self.now()
            self.missed.append(self._clock.now())

    def _record(self, event: Event) -> TrueRun | None:
        if isinstance(event, TaskOOM):
            task = self.container(event.key).task
            run = None if task is None else self.run_of(event.key, task.pid)
            if run is not None:
                run.oom = True
            return run
        if not isinstance(event, TaskCreated | TaskStarted | TaskExited):
            return None
        if isinstance(event, TaskExited) and event.exec_id:
            return None
        if isinstance(event, TaskCreated):
            run = TrueRun(event.key, event.pid, self.boot, dict(self.container(event.key).labels))
            self._newest_runs[self.boot, event.key, event.pid] = run
            self.runs.append(run)
            return run
        run = self.run_of(event.key, event.pid)
        if run is not None and isinstance(event, TaskStarted):
            run.started_at = self.now()
        return run

    def _next_moment(self) -> int:
        self._clock.advance(1e-6)  # nothing happens at the same time
        return self._clock.now().wall

    @staticmethod
    def _set_unreliable(run: TrueRun | None) -> None:
        if run is not None:
            run.unreliable = True

    def _reused_pids(self) -> Iterator[int]:
        while True:
            used = {c.task.pid for each in self.namespaces.values() for c in each.values() if c.task is not None}
            yield self._rng.choice([pid for pid in range(100, 110) if pid not in used])
