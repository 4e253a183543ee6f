"""A hostile but valid topic for testing consumers, with the state that they must have after it. Pure.

Everything follows from a seed. ``SampleBridge`` makes the records of one bridge; ``generate`` lets several nodes
publish, lose, repeat and restart. What a consumer must know is noted with each step, from what the step means, and not
computed from the records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import count
from random import Random  # noqa: TID251 (reproducible from a seed)
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from bridge.consumer.record_decoder import RUNNING_TYPES
from bridge.core.container_state import ExitInfo, Transition
from bridge.core.containerd_model import ContainerKey, Engine, Metadata
from bridge.core.record_encoder import (
    Gap,
    RecordEncoder,
    SnapshotCoverage,
    heartbeat_record,
    lost_record,
    retirement_record,
    rfc3339,
)
from bridge.core.records import LossReason, Record, SnapshotReason, SourcePosition
from bridge.core.time import SECOND

HOST, ENGINE = "node-1", "c79d280c-f53d-4f0e-9d3e-0a1b2c3d4e5f"
FIRST_EPOCH = 1_795_636_000_000
BEGIN = FIRST_EPOCH // 1000 * SECOND
_IMAGE_DIGEST = f"sha256:{1:064x}"
INTERVAL = 60.0


class SampleBridge:
    """Makes the records of one source in one epoch.

    Args:
        epoch: The epoch.
        previous: The last position before it; None if it is unknown.
        host: The name of the node.
        engine: The id of the containerd.
        attributes: The attributes of every record.
        clock: Returns the time of a record; by default, a second passes with each record.
    """

    def __init__(
        self,
        epoch: int = FIRST_EPOCH,
        previous: tuple[int, int] | None = None,
        *,
        host: str = HOST,
        engine: str = ENGINE,
        attributes: dict[str, str] | None = None,
        clock: Callable[[], int] | None = None,
    ) -> None:
        before = previous and SourcePosition(*previous)
        containerd = Engine(engine, "2.4.2", "/c.sock", 812)
        self._encoder = RecordEncoder(host, containerd, epoch, previous=before, attributes=attributes)
        self._epoch = epoch
        self._clock = clock
        self._last: Record

    def start(self, id_: str, pid: int) -> Record:
        """Return the start of a run."""
        return self.encode("started", id_, pid)

    def pause(self, id_: str, pid: int) -> Record:
        """Return the pause of a container."""
        return self.encode("paused", id_, pid)

    def unpause(self, id_: str, pid: int) -> Record:
        """Return the resumption of a container."""
        return self.encode("unpaused", id_, pid)

    def exit(self, id_: str, pid: int) -> Record:
        """Return the exit of a run."""
        return self.encode("exited", id_, pid)

    def snapshot(
        self,
        *running: tuple[str, int],
        reason: SnapshotReason = "start",
        failed: Sequence[str] = (),
        partial: bool = False,
        missed: Sequence[tuple[str, str, int]] = (),
        paused: Sequence[str] = (),
    ) -> list[Record]:
        """Return a snapshot of ``running``, with transitions that were ``missed``, as (type, id, pid)."""
        gap = Gap(reason, None, self._now())
        coverage = SnapshotCoverage(["default", "shop"], list(failed), partial)
        transitions = [self._transition(type_, id_, pid, inferred=True) for type_, id_, pid in missed]
        presents = [self._transition("present", id_, pid, paused=id_ in paused) for id_, pid in running]
        records = self._encoder.encode_snapshot(gap, coverage, transitions, presents, self._now())
        self._last = records[-1]
        return records

    def lost(self, *replaced: Record, reason: LossReason = "overflow") -> Record:
        """Return the loss that takes the place of consecutive records."""
        return lost_record(replaced[-1], replaced[0].sequence, reason, self._now())

    def heartbeat(self, last: Record | None = None, *, number: int = 1) -> Record:
        """Return a heartbeat after the last record."""
        return heartbeat_record(last or self._last, self._now(), number, INTERVAL)

    def retire(self, last: Record | None = None) -> Record:
        """Return the retirement of the source after its last record."""
        return retirement_record(last or self._last, "node deleted", "ops@bastion", self._now())

    def encode(self, type_: str, id_: str, pid: int = 0) -> Record:
        """Return a record of a container; the pid is 0 if there is no run."""
        self._last = self._encoder.encode_transition(self._transition(type_, id_, pid))
        return self._last

    def _now(self) -> int:
        if self._clock is not None:
            return self._clock()
        return BEGIN + (self._epoch - FIRST_EPOCH) * SECOND // 1000 + self._encoder.sequence * SECOND

    def _transition(
        self, type_: Any, id_: str, pid: int, *, paused: bool = False, inferred: bool = False
    ) -> Transition:
        namespace, _, name = id_.rpartition("/")
        key = ContainerKey(namespace or "default", name)
        metadata = Metadata(
            key, name, "demo", name, "busybox", "io.containerd.runc.v2", BEGIN, BEGIN, {}, image_digest=_IMAGE_DIGEST
        )
        exit_info = ExitInfo(0, self._now(), False) if type_ == "exited" and not inferred else None
        if type_ == "present":
            origin: Any = "snapshot"
        else:
            origin = "inferred" if inferred else "live"
        incarnation = incarnation_of(pid) if pid else ""
        is_paused = paused or type_ == "paused"
        return Transition(type_, origin, self._now(), key, metadata, None, pid, incarnation, is_paused, exit_info)


def incarnation_of(pid: int) -> str:
    """Return the incarnation of a run."""
    return f"5f3c9a1e-{pid}"


def edit(record: Record, **values: Any) -> Record:
    """Return a record whose document has other values, also of fields that are not known."""
    return replace(record, data=msgspec.json.encode(msgspec.json.decode(record.data) | values))


class ConformanceTopic(NamedTuple):
    """Batches to be published one after another, and what a consumer must know after them, as in a vector's file."""

    batches: list[list[Record]]
    expected: dict[str, Any]


_NODES = 6
_STEPS = 400
_MAX_BATCH = 50
_OVERTAKING = 5  # number of consecutive records that may arrive in any order, if the topic is not ordered
_REPETITION = 0.1  # probability after each step
_IN_ORDER = ("heartbeat", "source_retired", "lost")  # sent after what is before them was acknowledged, or has failed
_HALF = 0.5
_STALE_AFTER_SECONDS = 180


def generate(seed: int, *, ordered: bool = True) -> ConformanceTopic:
    """Return the topic of a seed; if it is not ``ordered``, the first copies of a source may overtake one another."""
    random = Random(seed)  # noqa: S311 (not for secrets)
    now = [BEGIN]
    nodes = [_Node(f"node-{seed}-{number}", random, lambda: now[0]) for number in range(_NODES)]
    for node in nodes[:2]:
        node.vanishes_at = random.randrange(_STEPS // 4, _STEPS // 2)  # stale at the end
    nodes[1].retired_at = nodes[2].retired_at = _STEPS * 3 // 4  # the second one comes back
    nodes[3].has_heartbeats = False
    arrivals: list[tuple[int, bool, list[Record]]] = []  # number of the node, whether they repeat, and the records
    for step in range(_STEPS):
        now[0] += SECOND
        for number, node in enumerate(nodes):
            if records := node.step(step):
                arrivals.append((number, False, records))
            if random.random() < _REPETITION and (repeated := node.repetition()):
                arrivals.append((number, True, repeated))
    if not ordered:
        arrivals = _disordered(arrivals, random)
    first_seen = dict.fromkeys(number for number, _, _ in arrivals)
    expected = {
        "description": f"The topic of seed {seed}.",
        "ordered": ordered,
        "now": rfc3339(now[0]),
        "invalid": 0,
        "sources": [nodes[number].expected(now[0]) for number in first_seen],
    }
    return ConformanceTopic(list(_batches(arrivals, random)), expected)


class _Node:
    """One source: what runs there, and what a consumer knows of it."""

    def __init__(self, host: str, random: Random, clock: Callable[[], int]) -> None:
        self.vanishes_at = self.retired_at = _STEPS
        self.has_heartbeats = True
        self._host = host
        self._random = random
        self._clock = clock
        self._running: dict[str, tuple[int, bool]] = {}  # the pid, and whether the container is paused
        self._pids = count(random.randrange(100, 30_000))
        self._heartbeats = count(1)
        self._published: list[Record] = []
        self._bridge: SampleBridge | None = None
        # What a consumer knows:
        self._position = (0, 0)
        self._known: dict[str, tuple[str, bool]] = {}  # the incarnation, and whether the container is paused
        self._is_complete = self._is_retired = False
        self._updated_at = 0
        self._knows_interval = False

    def step(self, step: int) -> list[Record]:
        """Let something happen, and return what is published then."""
        if step == self.retired_at:
            return self._retire()
        if self.retired_at < step < self.retired_at + _STEPS // 10 or step >= self.vanishes_at:
            return []
        if self._bridge is None or (step > self.retired_at and self._is_retired):
            return self.restart(knows_previous=self._bridge is not None)
        (act,) = self._random.choices(list(_ACTIONS), list(_ACTIONS.values()))
        return act(self)

    def repetition(self) -> list[Record]:
        """Return consecutive records of any time that were published already."""
        if not self._published:
            return []
        first = self._random.randrange(len(self._published))
        return self._published[first : first + self._random.randint(1, 10)]

    def expected(self, now: int) -> dict[str, Any]:
        """Return what a consumer must know."""
        is_stale = now - self._updated_at > _STALE_AFTER_SECONDS * SECOND
        return {
            "host": self._host,
            "engine": ENGINE,
            "position": list(self._position),
            "state": {
                id_: {"incarnation": incarnation, "paused": paused}
                for id_, (incarnation, paused) in self._known.items()
            },
            "complete": self._is_complete,
            "stale": is_stale if self._knows_interval else None,
            "retired": self._is_retired,
            "missing": [],
            "altered": [],
            "findings": [],
        }

    @property
    def _current(self) -> SampleBridge:
        assert self._bridge is not None  # noqa: S101 (after the first step)
        return self._bridge

    def _random_id(self) -> str:
        return self._random.choice(["a", "b", "c", "d", "shop/a", "shop/b", "dev.test/a"])

    def _publish(self, record: Record) -> Record:
        """Publish a record that a consumer gets."""
        self._published.append(record)
        self._position, self._updated_at = (record.epoch, record.sequence), self._clock()
        self._is_retired = False
        document = msgspec.json.decode(record.data)
        if record.type in RUNNING_TYPES:
            self._known[document["id"]] = document["container"]["incarnation"], document["container"]["paused"]
        elif record.type == "exited":
            self._known.pop(document["id"], None)
        elif record.type == "lost":
            self._is_complete = False
        return record

    def change(self) -> list[Record]:
        """Start, pause, resume or end a container."""
        return [self._publish(self._change())]

    def _change(self) -> Record:
        id_ = self._random_id()
        pid, is_paused = self._running.get(id_, (0, False))
        if not pid:
            self._running[id_] = next(self._pids), False
            return self._current.start(id_, self._running[id_][0])
        if self._random.random() < _HALF:
            self._running[id_] = pid, not is_paused
            return self._current.unpause(id_, pid) if is_paused else self._current.pause(id_, pid)
        del self._running[id_]
        return self._current.exit(id_, pid)

    def publish_unknown(self) -> list[Record]:
        """Publish a record of a type that consumers do not know, or with fields that they do not know."""
        if self._random.random() < _HALF:
            created = self._current.encode("created", self._random_id())
            unknown = edit(replace(created, type="sparkled"), type="sparkled")
        else:
            unknown = edit(self._change(), a_new_field={"deep": [1, None]}, origin="new")
        return [self._publish(unknown)]

    def publish_additional_event(self) -> list[Record]:
        """Publish an event that changes no state."""
        type_ = self._random.choice(["created", "deleted", "oom", "renamed"])
        return [self._publish(self._current.encode(type_, self._random_id()))]

    def restart(self, *, knows_previous: bool = True) -> list[Record]:
        """Begin an epoch, with a snapshot; a bridge that knows the previous epoch publishes what it has missed."""
        missed: list[tuple[str, str, int]] = []
        for id_ in list(self._running):
            if self._random.random() < _HALF:
                pid, _ = self._running.pop(id_)
                missed.append(("exited", id_, pid))
        if self._random.random() < _HALF and (id_ := self._random_id()) not in self._running:
            self._running[id_] = next(self._pids), False
            missed.append(("started", id_, self._running[id_][0]))
        epoch = self._clock() // 1_000_000
        previous = self._position if knows_previous else None
        self._bridge = SampleBridge(epoch, previous, host=self._host, clock=self._clock)
        return self.snapshot("start", missed=missed if knows_previous else [])

    def snapshot(
        self, reason: SnapshotReason, failed: Sequence[str] = (), missed: Sequence[tuple[str, str, int]] = ()
    ) -> list[Record]:
        """Publish a complete snapshot."""
        records = [self._publish(each) for each in self._snapshot_records(reason, failed, missed)]
        kept = {id_ for id_ in self._known if id_.rpartition("/")[0] in failed}
        self._known = {id_: each for id_, each in self._known.items() if id_ in self._running or id_ in kept}
        self._is_complete = True
        return records

    def _snapshot_records(
        self, reason: SnapshotReason, failed: Sequence[str] = (), missed: Sequence[tuple[str, str, int]] = ()
    ) -> list[Record]:
        listed = {id_: each for id_, each in self._running.items() if id_.rpartition("/")[0] not in failed}
        running = [(id_, pid) for id_, (pid, _) in listed.items()]
        paused = [id_ for id_, (_, is_paused) in listed.items() if is_paused]
        return self._current.snapshot(*running, reason=reason, failed=failed, missed=missed, paused=paused)

    def void_snapshot(self) -> list[Record]:
        """Publish a snapshot with a loss inside: what was lost in it and before is not known."""
        first, *inside, last = self._snapshot_records("interval")
        if not inside:
            return [self._publish(first), self._publish(last), *self.snapshot("interval")]
        at = self._random.randrange(len(inside))
        lost = self._current.lost(inside[at], reason="rejected")
        return [self._publish(each) for each in (first, *inside[:at], lost, *inside[at + 1 :], last)]

    def lose(self) -> list[Record]:
        """Lose some changes; a snapshot follows, unless the broker has rejected a single one."""
        changes = [self._change() for _ in range(self._random.randint(1, 5))]
        if len(changes) == 1:
            return [self._publish(self._current.lost(*changes, reason="rejected"))]
        return [self._publish(self._current.lost(*changes)), *self.snapshot("overflow")]

    def lose_nothing(self) -> list[Record]:
        """Publish a record, and a loss of the same position, because the acknowledgment did not arrive."""
        record = self._publish(self._change())
        self._updated_at = self._clock()
        return [record, self._current.lost(record, reason="rejected")]

    def heartbeat(self) -> list[Record]:
        """Publish a heartbeat, if the sink gets any."""
        if not self.has_heartbeats:
            return []
        self._knows_interval, self._updated_at = True, self._clock()
        return [self._current.heartbeat(number=next(self._heartbeats))]

    def _retire(self) -> list[Record]:
        self._known, self._is_complete, self._is_retired = {}, False, True
        retirement = self._current.retire()
        self._published.append(retirement)
        return [retirement]


_ACTIONS: dict[Callable[[_Node], list[Record]], int] = {  # with their weights
    lambda _: []: 19,
    _Node.change: 6,
    _Node.heartbeat: 3,
    lambda node: node.snapshot("interval"): 2,
    lambda node: node.snapshot("on_demand", failed=["shop"]): 1,
    _Node.void_snapshot: 1,
    _Node.lose: 1,
    _Node.lose_nothing: 1,
    _Node.publish_unknown: 1,
    _Node.publish_additional_event: 1,
    _Node.restart: 1,
    lambda node: node.restart(knows_previous=False): 1,
}


def _disordered(
    arrivals: Iterable[tuple[int, bool, list[Record]]], random: Random
) -> list[tuple[int, bool, list[Record]]]:
    """Let the first copies of a source overtake one another, except those that are sent on their own."""
    result: list[tuple[int, bool, list[Record]]] = []
    waiting: dict[int, list[Record]] = {}

    def release(number: int) -> None:
        records = waiting.pop(number, [])
        random.shuffle(records)
        result.extend((number, False, [each]) for each in records)

    for number, repeats, records in arrivals:
        for record in records:
            if repeats or record.type in _IN_ORDER:
                release(number)
                result.append((number, repeats, [record]))
                continue
            waiting.setdefault(number, []).append(record)
            if len(waiting[number]) >= _OVERTAKING:
                release(number)
    for number in list(waiting):
        release(number)
    return result


def _batches(arrivals: Iterable[tuple[int, bool, list[Record]]], random: Random) -> Iterable[list[Record]]:
    """Yield batches of records that are new, or that repeat earlier ones, as a bridge would send them again."""
    batch: list[Record] = []
    size, was_repeating = random.randint(1, _MAX_BATCH), False
    for _, repeats, records in arrivals:
        for record in records:
            if batch and (len(batch) >= size or repeats != was_repeating):
                yield batch
                batch, size = [], random.randint(1, _MAX_BATCH)
            batch.append(record)
            was_repeating = repeats
    if batch:
        yield batch
