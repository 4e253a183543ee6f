"""A deterministic history of a host: containerd, brokers, a disk, and the bridge, which is killed and restarted.

Everything that happens follows from one seed: the scenario, the faults, and the random numbers of the bridge. The
bridge is the real one, from the client of containerd to the pumps; only gRPC, SQLite and the brokers are models.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import traceback
from collections.abc import Callable, Coroutine, Iterator, MutableMapping
from operator import gt
from random import Random
from typing import Any

import msgspec
import structlog

from bridge.app import _cancel
from bridge.clock import SystemClock
from bridge.containerd.http2 import StatusCode
from bridge.core.container_metadata import CRI_KIND_LABEL
from bridge.core.containerd_model import ContainerKey, Instant, TaskStatus
from bridge.core.errors import BridgeError
from bridge.core.filters import ContainerFilter, NamespaceFilter
from bridge.core.label_rules import LabelRules
from bridge.core.time import SECOND
from bridge.delivery.heartbeats import HeartbeatFactory
from bridge.delivery.pump import Pump
from bridge.outbox.sink_queue import Limits
from bridge.task_groups import task_group
from bridge.watch import ContainerWatch, WatchSettings
from tests.simulator.broker import Broker, BrokerSink
from tests.simulator.client import InProcessClient
from tests.simulator.containerd import SimulatedContainerd
from tests.simulator.disk import Disk, SimulatedOutbox, dead_letters_on, stored_exits
from tests.simulator.faults import ALL
from tests.simulator.shims import ObservedState, run_id
from tests.simulator.state import IMAGE, SimulatedRpcError
from tests.virtual_time import VirtualClock, VirtualTimeLoop

HOST = "node-1"
SECRET = "s3cr3t"  # noqa: S105 (in labels that must not be stored)
KEYS = [
    ContainerKey(*each) for each in (("default", "a"), ("default", "b"), ("shop", "a"), ("k8s.io", "c"), ("moby", "d"))
]
RULES = {
    "wide": LabelRules(include=["app.*", "nerdctl/name"], exclude=["app.hidden"], redact=["*token*"]),
    "narrow": LabelRules(include=["app.token"], exclude=[], redact=["*token*"]),
}
FILTERS = {"all": ContainerFilter(), "some": ContainerFilter(labels=((), ("app.skip",)))}
QUIET_SECONDS = 700  # two audits
STOP_SECONDS = 6
MAX_TURNS = 200_000  # of the event loop; a history takes a few thousand


class EndlessHistoryError(Exception):
    """A history does not come to its end: something is repeated without a pause."""


class SimulationLoop(VirtualTimeLoop):
    """A loop on virtual time whose futures and tasks have hashes that do not depend on addresses in memory.

    ``tasks`` keeps what is left of killed processes from the garbage collector.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tasks: set[asyncio.Task[Any]] = set()
        self._count = self._turns = 0
        self.set_task_factory(self._create_task)  # type: ignore[arg-type] # of CPython 3.11 and later
        self.set_exception_handler(lambda *_: None)  # errors of abandoned calls

    def _run_once(self) -> None:  # of BaseEventLoop
        self._turns += 1
        if self._turns > MAX_TURNS:
            raise EndlessHistoryError
        super()._run_once()  # type: ignore[misc]

    def next_hash(self) -> int:
        self._count += 1
        return self._count

    def create_future(self) -> asyncio.Future[Any]:
        return _Future(loop=self)

    def _create_task(self, _: object, coroutine: Coroutine[Any, Any, Any], **options: Any) -> asyncio.Task[Any]:
        task = _Task(coroutine, loop=self, **options)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class _Future(asyncio.Future[Any]):
    def __init__(self, *, loop: SimulationLoop) -> None:
        super().__init__(loop=loop)
        self._hash = loop.next_hash()

    def __hash__(self) -> int:
        return self._hash


class _Task(asyncio.Task[Any]):
    def __init__(self, coroutine: Coroutine[Any, Any, Any], *, loop: SimulationLoop, **options: Any) -> None:
        self._hash = loop.next_hash()
        super().__init__(coroutine, loop=loop, **options)

    def __hash__(self) -> int:
        return self._hash


class ProcessClock(SystemClock):
    """The clocks of the host, with the random numbers of one process."""

    def __init__(self, host: VirtualClock, rng: Random) -> None:
        self._host = host
        self._rng = rng

    def now(self) -> Instant:
        return self._host.now()

    def random(self) -> float:
        return self._rng.random()


class Bridge:
    """One process of the bridge."""

    def __init__(self, world: World, number: int) -> None:
        self._world = world
        self.clock = ProcessClock(world.clock, Random(f"{world.seed}/bridge/{number}"))  # noqa: S311
        self.client = InProcessClient(
            world.containerd,
            self.clock,
            RULES[world.rules],
            container_filter=FILTERS[world.filters],
            subscription_delay=lambda: world.rng.choice((0, 0, 0.05, 0.3)),
        )
        sinks = [BrokerSink(broker, self.clock, world.rng) for broker in world.brokers]
        self.outbox = SimulatedOutbox(
            world.disk, [broker.name for broker in world.brokers], self.clock, world.limits, world.on_commit
        )
        self.watch = ContainerWatch(self.client, self.outbox, self.clock, self.settings(), world.state.boot)
        heartbeats = HeartbeatFactory(lambda: self.watch.watermark, 60)
        self.pumps = [
            Pump(
                broker.name,
                sink,
                self.outbox,
                self.clock,
                heartbeat_factory=heartbeats,
                request_snapshot=self.watch.request_snapshot,
            )
            for broker, sink in zip(world.brokers, sinks, strict=True)
        ]
        self._sinks = sinks
        self._stop_requested = asyncio.Event()
        self.task = asyncio.create_task(self._run())

    def settings(self) -> WatchSettings:
        return WatchSettings(
            host=HOST,
            namespace_filter=NamespaceFilter(),
            container_filter=FILTERS[self._world.filters],
            label_rules=RULES[self._world.rules],
            filter_fingerprint=f"{self._world.filters}/{self._world.rules}",
            selection_fingerprint=self._world.filters,
            keeps_checkpoint=self._world.disk is not None,
        )

    async def _run(self) -> None:
        """Run the parts, and stop them in order, as ``bridge.app`` does."""
        async with self.outbox:
            try:
                await self.outbox.open()
                async with task_group() as tasks:
                    pumping = [tasks.create_task(pump.run()) for pump in self.pumps]
                    watching = tasks.create_task(self.watch.run())
                    await self._stop_requested.wait()
                    await _cancel(watching, self.clock)
                    with contextlib.suppress(TimeoutError):
                        async with self.clock.timeout(STOP_SECONDS):
                            await asyncio.gather(*(pump.wait_drained() for pump in self.pumps))
                    for task in pumping:
                        task.cancel()
            finally:
                await asyncio.gather(*(pump.close() for pump in self.pumps))
                await self.client.close()

    async def stop(self) -> None:
        self._stop_requested.set()
        await asyncio.wait([self.task], timeout=30)

    def kill(self) -> None:
        """End the process here and now: nothing that it still does has an effect."""
        self.client.kill()
        self.outbox.kill(self._world.rng)
        for sink in self._sinks:
            sink.kill()
        self.task.cancel()


class World:
    """The host and what happens on it.

    ``committed`` are the published records with the moments of their commits (monotonic), ``trace`` is everything that
    happened, ``rule_changes`` are changes of the label rules, with the last positions that records had before.
    """

    def __init__(self, seed: int, *, steps: int = 40) -> None:
        self.seed = seed
        self.rng = rng = Random(f"{seed}/world")  # noqa: S311
        self.trace: list[str] = []
        self.clock = VirtualClock()
        self.state = ObservedState(self.clock, rng, self.log, reuse_pids=seed % 4 == 2)
        self.containerd = SimulatedContainerd(version=rng.choice(["1.6", "2.4"]), state=self.state)
        self.containerd.faults.shim_timeout_seconds = 2
        self.disk = Disk(rng) if rng.random() < 0.85 else None
        self.brokers = [Broker("kafka", rng, self.log, ordered=True), Broker("nats", rng, self.log, ordered=False)]
        self.tight = rng.random() < 0.2
        self.limits = Limits(max_records=8 if self.tight else 100_000, max_bytes=1 << 30, max_age=7 * 24 * 3600)
        self.filters, self.rules = "all", "wide"
        self.rule_changes: list[tuple[tuple[int, int], str]] = []
        self.committed: list[tuple[int, dict[str, Any]]] = []
        self.documents: dict[tuple[int, int], bytes] = {}
        self.violations: list[str] = []
        self.clock_stepped = False
        self._image_rng = Random(f"{seed}/images")  # noqa: S311
        self.kinds = {kind for kind in _OPERATIONS if rng.random() < 0.5} | {"move", "burst", "short run"}
        if self.disk is None:
            self.kinds.discard("clock step")  # epochs may not grow then
        if seed % 5 == 3:
            self.kinds.add("pod run")
            self.state.has_cri = True
        self._steps = steps
        self._bridges = 0
        self._largest_commit = 0
        self.stored_before_snapshot: list[int] = []
        self.bridge: Bridge

    def log(self, text: str) -> None:
        self.trace.append(f"{asyncio.get_running_loop().time():12.6f} {text}")

    def violate(self, promise: str, text: str) -> None:
        self.violations.append(f"{promise}: {text}")

    def on_commit(self, documents: list[bytes]) -> None:
        """Note records that the outbox has committed."""
        self._largest_commit = max(self._largest_commit, len(documents))
        for data in documents:
            record = msgspec.json.decode(data)
            self.committed.append((self.clock.now().monotonic, record))
            self.documents[record["epoch"], record["sequence"]] = data
            container, snapshot = record["container"] or {}, record["snapshot"] or {}
            details = [container.get("incarnation"), record["exit"], snapshot.get("reason"), snapshot.get("since")]
            self.log(
                f"bridge: {record['epoch']}-{record['sequence']} {record['type']} {record['origin']} {record['id']} "
                f"{[each for each in details if each]}"
            )

    # --- the history ---

    async def run(self) -> None:
        self.start_bridge()
        operations = sorted(self.kinds)
        weights = [_OPERATIONS.get(kind, _POD_RUN_WEIGHT) for kind in operations]
        for _ in range(self._steps):
            kind = self.rng.choices(operations, weights)[0]
            if kind not in ("move", "burst", "short run"):
                self.log(f"--- {kind}")
            result = getattr(self, "_" + kind.replace(" ", "_"))()
            if result is not None:
                await result
            self._change_images()
            await self._pass_time(self.rng.choice((0, 0, 0.001, 0.05, 1, 8, 40)))
        await self._quiesce()

    def _change_images(self) -> None:
        """Let the names of images point elsewhere or nowhere, with random numbers that nothing else depends on."""
        rng = self._image_rng
        for namespace in ("default", "shop", "k8s.io"):
            if rng.random() < 0.2:
                self.state.tag(namespace, f"sha256:{rng.randrange(4):064x}")
            elif rng.random() < 0.05:
                self.state.images.pop((namespace, IMAGE), None)

    def start_bridge(self) -> None:
        self._bridges += 1
        if self.disk is None:
            self.clock.advance(0.001)  # a start takes longer, and so each has an epoch of its own
        self._check_exit_counts()
        last = self._last_committed()  # the process before may have numbered others, whose positions are used again
        self.rule_changes = [(min(position, last), rules) for position, rules in self.rule_changes]
        self.state.process = self._bridges
        self.log(f"--- bridge {self._bridges} starts")
        self.bridge = Bridge(self, self._bridges)

    def _last_committed(self) -> tuple[int, int]:
        return (self.committed[-1][1]["epoch"], self.committed[-1][1]["sequence"]) if self.committed else (0, 0)

    def _check_exit_counts(self) -> None:
        """Check that no count that the process before has exposed is set back."""
        if self.disk is None or self._bridges == 1:
            return
        stored = stored_exits(self.disk)
        for namespace, each in self.bridge.watch.counters.exits.persisted.items():
            if namespace not in stored or any(map(gt, each.statuses, stored[namespace].statuses)):
                self.violate("exit counts", f"{each} of {namespace} is set back")

    async def _pass_time(self, seconds: float) -> None:
        if seconds:
            await asyncio.sleep(seconds)
        else:
            for _ in range(self.rng.randrange(40)):  # to some await point of the bridge
                await asyncio.sleep(0)
        task = self.bridge.task
        if task.done():
            error = None if task.cancelled() else task.exception()
            if not isinstance(error, BridgeError):
                self.violate("P1", f"the bridge ended with {error!r}")
                self.log("".join(traceback.format_exception(error)) if error else "")
            self.log(f"bridge ended with {error!r}")
            self.bridge.kill()
            self._excuse_runs()
            self.start_bridge()
        if seconds >= 1:
            await asyncio.sleep(0.001)  # for what has arrived now
            self._check_bounds()

    def _check_bounds(self) -> None:
        """Check P8: the stream is drained, and the outbox within its limits."""
        stream = getattr(self.bridge.client, "stream", None)
        if stream is not None and not stream.closed and stream.backlog:
            self.log(f"{stream.backlog} events wait in the stream")
            self.violate("P8", f"{stream.backlog} events wait in the stream")
        for broker in self.brokers:
            with contextlib.suppress(AttributeError):  # the outbox is not open
                depth = self.bridge.outbox.depth(broker.name)
                # What is in flight is not dropped, nor is the newest append; each epoch may have a loss record.
                losses = len(self.bridge.outbox._queues[broker.name].losses)
                if depth - losses > max(self.limits.max_records, broker.largest_batch) + self._largest_commit:
                    self.violate("P8", f"{depth} records wait for {broker.name}")

    async def _quiesce(self) -> None:
        """End all faults, and give the bridge time to notice everything."""
        self.log("--- all faults end")
        state = self.state
        state.lost = state.late = state.duplicated = 0.0
        self.containerd.down = False
        self.containerd.faults.release()
        self.containerd.faults.errors.clear()
        self.containerd.faults.hung_shims.clear()
        self.containerd.faults.unlisted_tasks.clear()
        state.lagging = False
        if self.disk is not None:
            self.disk.full = self.disk.hung = False
            self.disk.error_probability = 0.0
        for broker in self.brokers:
            broker.down = broker.misconfigured = broker.rejects = False
            broker.fault_probability = 0.0
        await self._pass_time(QUIET_SECONDS)
        self.stored_before_snapshot = [len(broker.stored) for broker in self.brokers]
        self.bridge.watch.request_snapshot("on_demand")  # after a rejected record, and for names and labels
        await self._pass_time(60)
        self.log("--- the end")

    # --- operations: containers ---

    def _move(self) -> None:
        """Change a container in some way that its state allows."""
        key, state, rng = self.rng.choice(KEYS), self.state, self.rng
        container = state.namespaces.get(key.namespace, {}).get(key.id)
        if container is None:
            state.create(key, self._labels(), spec_bytes=200 if rng.random() < 0.2 else 0)
            return
        task = container.task
        moves: list[Callable[[], object]]
        if task is None:
            moves = [
                *4 * [lambda: state.create_task(key)],
                lambda: state.relabel(key, self._labels(container.labels)),
                lambda: self._delete(key),
            ]
        elif task.status is TaskStatus.CREATED:
            moves = [*4 * [lambda: state.start(key)], lambda: state.exit(key)]
        elif task.status is TaskStatus.STOPPED:
            moves = [*2 * [lambda: state.delete_task(key)], lambda: state.exec(key, "late")]
        else:
            toggle = state.resume if task.status is TaskStatus.PAUSED else state.pause
            moves = [
                *2 * [lambda: toggle(key)],
                *2 * [lambda: state.exit(key, rng.choice([0, 1, 137]))],
                lambda: state.exec(key, "e1", rng.choice([0, 126])),
                lambda: state.relabel(key, self._labels(container.labels)),
                lambda: state.oom(key),
                lambda: self._oom_exit(key),
            ]
        rng.choice(moves)()

    async def _burst(self) -> None:
        """Make several moves at once, or nearly."""
        for _ in range(self.rng.randrange(2, 12)):
            self._move()
            for _ in range(self.rng.choice((0, 0, 1, 5))):
                await asyncio.sleep(0)

    async def _short_run(self) -> None:
        """Run a container for a moment."""
        key = ContainerKey(self.rng.choice(("default", "shop")), f"short-{len(self.state.runs)}")
        operations: list[Callable[[], object]] = [
            lambda: self.state.create(key, self._labels()),
            lambda: self.state.create_task(key),
            lambda: self.state.start(key),
            lambda: self.state.exit(key, 3),
            lambda: self.state.delete_task(key),
            lambda: self.state.delete(key),
        ]
        for operation in operations:
            operation()
            for _ in range(self.rng.choice((0, 0, 0, 3))):
                await asyncio.sleep(0)

    async def _pod_run(self) -> None:
        """Let a container of a pod run, often unseen; CRI deletes its task, and kubelet sometimes the container."""
        key, rng, state = ContainerKey("k8s.io", f"pod-{len(self.state.runs)}"), self.rng, self.state
        operations: list[Callable[[], object]] = [
            lambda: state.create(key, {**self._labels(), CRI_KIND_LABEL: "container"}),
            lambda: state.create_task(key),
            lambda: state.start(key),
            lambda: self._oom_exit(key) if rng.random() < 0.3 else state.exit(key, rng.choice([0, 1, 137])),
            lambda: state.delete_task(key),
            *[lambda: state.delete(key)] * (rng.random() < 0.2),
        ]
        for operation in operations:
            with contextlib.suppress(SimulatedRpcError):  # the shim or the host has ended
                operation()
            await self._pass_time(rng.choice((0, 0, 0.001, 0.05, 8)))

    def _labels(self, previous: dict[str, str] | None = None) -> dict[str, str]:
        rng = self.rng
        labels = {"app.tier": str(rng.randrange(100)), "app.token": SECRET, "app.hidden": SECRET, "other": SECRET}
        if rng.random() < 0.5:
            labels["nerdctl/name"] = f"name-{rng.randrange(10)}"
        skip = rng.random() < 0.2 if previous is None else "app.skip" in previous  # decides on the scope of a run
        if skip:
            labels["app.skip"] = "yes"
        if "rejections" in self.kinds and rng.random() < 0.1:
            labels["app.oversized"] = "yes"
        return labels

    def _oom_exit(self, key: ContainerKey) -> None:
        if self.rng.random() < 0.5:
            self.state.oom(key)
            self.state.exit(key, 137)
        else:
            self.state.stop_without_event(key, 137)
            task = self.state.task(key)
            self.state.publish_exit(key, task.pid, 137, exited_at=task.exited_at)
            self.state.oom(key)

    def _delete(self, key: ContainerKey) -> None:
        self.state.delete(key)
        if not self.state.namespaces[key.namespace] and self.rng.random() < 0.5:
            del self.state.namespaces[key.namespace]

    def _lose_shim(self) -> None:
        running = [
            ContainerKey(namespace, container.id)
            for namespace, containers in self.state.namespaces.items()
            for container in containers.values()
            if container.task is not None and container.task.exited_at is None
        ]
        if running:
            key = self.rng.choice(running)
            self.log(f"the shim of {key} dies")
            self.state.lose_task(key)

    # --- operations: faults of shims and containerd ---

    def _lossy_shims(self) -> None:
        self.state.lost = self.rng.choice((0.0, 0.1))

    def _slow_shims(self) -> None:
        self.state.late = self.rng.choice((0.0, 0.2))

    def _repeating_shims(self) -> None:
        self.state.duplicated = self.rng.choice((0.0, 0.3))

    def _silent_shim(self) -> None:
        self._toggle(self.state.silent, self.rng.choice(KEYS))

    def _hung_shim(self) -> None:
        self._toggle(self.containerd.faults.hung_shims, self.rng.choice(KEYS))

    def _unlisted_task(self) -> None:
        self._toggle(self.containerd.faults.unlisted_tasks, self.rng.choice(KEYS))

    @staticmethod
    def _toggle(keys: set[ContainerKey], key: ContainerKey) -> None:
        (keys.discard if key in keys else keys.add)(key)

    def _lag(self) -> None:
        self.state.lagging = not self.state.lagging

    async def _lost_connection(self) -> None:
        await self._move_before_end()
        self.containerd.disconnect()

    async def _move_before_end(self) -> None:
        """Leave events that are received but not processed."""
        if self.rng.random() < 0.5:
            await self._short_run()

    async def _restart_containerd(self) -> None:
        self.containerd.down = True
        self.containerd.disconnect()
        for _ in range(self.rng.randrange(8)):
            self._move()
            await asyncio.sleep(self.rng.choice((0.01, 1, 10)))
        self.containerd.down = False

    async def _hang_containerd(self) -> None:
        self.containerd.faults.hang(self.rng.choice((ALL, "Tasks.List", "Containers.Get", "Tasks.Get")))
        await asyncio.sleep(self.rng.choice((0.1, 5, 40)))
        self.containerd.faults.release()

    def _failing_namespace(self) -> None:
        errors, key = self.containerd.faults.errors, ("Tasks.List", self.rng.choice(("default", "shop")))
        if errors.pop(key, None) is None:
            errors[key] = SimulatedRpcError(StatusCode.INTERNAL, "ttrpc: closed")

    def _replace_containerd(self) -> None:
        """Install another containerd: no container is left."""
        self.containerd.disconnect()
        self.state.end_all_tasks()
        self.state.namespaces.clear()
        self.containerd.id = f"engine-{int(self.containerd.id[7:]) + 1}"

    # --- operations: faults of disk and brokers ---

    def _failing_disk(self) -> None:
        if self.disk is not None:
            self.disk.error_probability = self.rng.choice((0.0, 0.3))

    def _full_disk(self) -> None:
        if self.disk is not None:
            self.disk.full = not self.disk.full

    def _hung_disk(self) -> None:
        if self.disk is not None:
            self.disk.hung = not self.disk.hung

    def _broker_down(self) -> None:
        broker = self.rng.choice(self.brokers)
        broker.down = not broker.down

    def _broker_misconfigured(self) -> None:
        broker = self.rng.choice(self.brokers)
        broker.misconfigured = not broker.misconfigured

    def _broker_faults(self) -> None:
        self.rng.choice(self.brokers).fault_probability = self.rng.choice((0.0, 0.3))

    def _rejections(self) -> None:
        broker = self.rng.choice(self.brokers)
        broker.rejects = not broker.rejects

    # --- operations: the bridge ---

    async def _kill_bridge(self) -> None:
        await self._end_bridge(kill=True)
        self.start_bridge()

    async def _stop_bridge(self) -> None:
        await self._end_bridge(kill=False)
        self.start_bridge()

    async def _reboot(self) -> None:
        await self._end_bridge(kill=self.rng.random() < 0.5)
        self.containerd.disconnect()
        self.state.reboot()
        self.start_bridge()

    async def _end_bridge(self, *, kill: bool) -> None:
        await self._move_before_end()
        bridge, healthy = self.bridge, self.bridge.watch.synced and self._disk_healthy()
        if not kill:
            await bridge.stop()
        self.log("--- bridge is killed" if kill or not bridge.task.done() else "--- bridge has stopped")
        bridge.kill()
        if kill or not healthy:
            self._excuse_runs()
        self.state.process = 0
        for _ in range(self.rng.choice((0, 0, 3))):
            self._move()
            await self._pass_time_without_bridge()
        if self.rng.random() < 0.2 and "filters" in self.kinds:
            self.filters = self.rng.choice(sorted(FILTERS))

    async def _pass_time_without_bridge(self) -> None:
        await asyncio.sleep(self.rng.choice((0.01, 1, 60)))

    def _disk_healthy(self) -> bool:
        return self.disk is None or not (self.disk.full or self.disk.hung or self.disk.error_probability)

    def _excuse_runs(self) -> None:
        """Note that the process may have received events of runs that it did not store: these are in a gap."""
        ended = {run_id(record, record["exit"]["at"]) for _, record in self.committed if record["type"] == "exited"}
        for run in self.state.runs:
            if run.id not in ended:
                run.excused = True

    def _filters(self) -> None:
        self.filters = self.rng.choice(sorted(FILTERS))
        self._reload()

    def _label_rules(self) -> None:
        journal = self.bridge.watch._journal
        if journal is not None:
            self.rules = self.rng.choice(sorted(RULES))
            position = journal.encoder.epoch, journal.encoder.sequence
            # Without records, the epoch may never have any, and the next one may be lower.
            self.rule_changes.append((position if position[1] else self._last_committed(), self.rules))
            self._reload()

    def _reload(self) -> None:
        client = self.bridge.client
        client.rules, client.container_filter = RULES[self.rules], FILTERS[self.filters]
        self.bridge.watch.reload(self.bridge.settings())

    def _snapshot(self) -> None:
        self.bridge.watch.request_snapshot("on_demand")

    def _clock_step(self) -> None:
        self.clock_stepped = True
        self.clock.set_wall(self.clock.now().wall + self.rng.choice((-7200, -3, 3, 7200)) * SECOND)


_POD_RUN_WEIGHT = 8  # of an operation that only histories with CRI have
_OPERATIONS = {
    "move": 30,
    "burst": 10,
    "short run": 4,
    "lose shim": 2,
    "lossy shims": 2,
    "slow shims": 2,
    "repeating shims": 2,
    "silent shim": 2,
    "hung shim": 3,
    "unlisted task": 2,
    "lag": 4,
    "lost connection": 3,
    "restart containerd": 3,
    "hang containerd": 2,
    "failing namespace": 2,
    "replace containerd": 0.5,
    "failing disk": 3,
    "full disk": 2,
    "hung disk": 2,
    "broker down": 3,
    "broker misconfigured": 1,
    "broker faults": 4,
    "rejections": 3,
    "kill bridge": 5,
    "stop bridge": 3,
    "reboot": 0.5,
    "filters": 2,
    "label rules": 2,
    "snapshot": 2,
    "clock step": 0.3,
}
"""By kind of operation: how often it happens, compared with the others."""


def run_history(seed: int, **options: Any) -> World:
    """Run the history of a seed to its end, and judge it."""
    world: World

    async def main() -> None:
        nonlocal world
        world = World(seed, **options)
        with _logs_to(world.log), _dead_letters(world):
            await world.run()
            world.bridge.kill()
            await _end_tasks()

    loop = SimulationLoop()
    try:
        loop.run_until_complete(main())
    except EndlessHistoryError:
        world.violate("P8", "the history has no end")
    finally:
        loop.close()
    return world


async def _end_tasks() -> None:
    """End everything that is left of the bridges, some of which waits for what will never happen."""
    while tasks := asyncio.all_tasks() - {asyncio.current_task()}:
        for task in tasks:
            task.cancel()
        await asyncio.sleep(1)


def trace_hash(world: World) -> str:
    """Return a hash of everything that happened."""
    return hashlib.sha256("\n".join(world.trace).encode()).hexdigest()


@contextlib.contextmanager
def _logs_to(log: Callable[[str], None]) -> Iterator[None]:
    def write(_: object, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        log(f"bridge logs: {level} {event.pop('event')} {event}")
        raise structlog.DropEvent

    before = structlog.get_config()
    structlog.configure(processors=[write], cache_logger_on_first_use=False)
    try:
        yield
    finally:
        structlog.configure(**before)


def _dead_letters(world: World) -> contextlib.AbstractContextManager[None]:
    return contextlib.nullcontext() if world.disk is None else dead_letters_on(world.disk)
