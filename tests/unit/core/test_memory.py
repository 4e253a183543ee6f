"""What outlives the process: a tracker that is made anew of what was written down tells what the old one would have."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.core import memory
from bridge.core.book import GRAVES_KEPT, HOLD
from bridge.core.labels import LabelRules
from bridge.core.lives import Entry, Life, Transition
from bridge.core.memory import Memory, Position, SourceName, Watched
from bridge.core.model import (
    ContainerDeleted,
    ContainerKey,
    Engine,
    Instant,
    Metadata,
    PodReference,
    Task,
    TaskCreated,
    TaskEnd,
    TaskExited,
    TaskStarted,
    TaskStatus,
)
from bridge.core.reconcile import Listing, reconcile
from bridge.core.tracker import Tracker
from tests.scale import scaled
from tests.unit.core.follower import BOOT, Follower
from tests.unit.core.world import Faults, World

WEB = ContainerKey("shop", "web")
NOW = Instant(1_795_447_267_000_000_000, 1_000_000_000_000)
LATER = Instant(NOW.wall + HOLD + 1, NOW.monotonic + HOLD + 1)


def record(key: ContainerKey = WEB, **changed: Any) -> Metadata:
    values = {"name": key.id, "project": "", "service": "", "image": "busybox", "runtime": "runc", **changed}
    return Metadata(key, created_at=1, updated_at=1, **{"labels": {"tier": "front"}, **values})


def written(tracker: Tracker, values: dict[str, bytes] | None = None) -> dict[str, bytes]:
    """Write a tracker's changes down, on top of what was written before."""
    values = {} if values is None else values
    for key, value in memory.encode_changes(tracker.changes()):
        if value is None:
            values.pop(key, None)
        else:
            values[key] = value
    return values


def restored(values: dict[str, bytes], now: Instant = NOW, boot: str = BOOT) -> Tracker:
    tracker = Tracker(boot)
    tracker.restore(memory.decode(values).entries, set(), now)
    return tracker


def types(transitions: list[Transition]) -> list[str]:
    return [each.type for each in transitions]


# --- a made-up history, with ends of the process anywhere in it ---


class Mortal(Follower):
    """A follower that dies now and then. What it told and what it knew are written down together."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.values: dict[str, bytes] = {}

    def die(self) -> None:
        """Be killed; the next one knows what was written down, and nothing else."""
        self.world.unsubscribe()
        self._live = False
        self._missed, self._adopted = [], 0
        self.tracker = Tracker(BOOT)
        self.tracker.restore(memory.decode(self.values).entries, set(), self.world.now())

    def _decided(self, transitions: list[Transition]) -> None:
        super()._decided(transitions)
        # What nobody is told of is written down with what comes next, which may be too late.
        if self._live and (transitions or self.world.flip(0.3)):
            written(self.tracker, self.values)

    def _publish(self, *, rescoped: bool = False) -> None:
        super()._publish(rescoped=rescoped)
        written(self.tracker, self.values)


FAULTS = {
    "nothing goes wrong": Faults(),
    "late": Faults(duplicates=True, late=True, lag=True),
    "gaps": Faults(gaps=True, lag=True),
    "silent shims": Faults(gaps=True, silence=True, lag=True),
    "anything": Faults(duplicates=True, late=True, lost=True, gaps=True, silence=True, dead_shims=True, lag=True),
}


@pytest.mark.parametrize("clock", ["steady", "stepping"])
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
@settings(
    max_examples=scaled(part=40, full=1000),
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(chance=st.randoms(use_true_random=False), length=st.integers(1, 80))
def test_lives_are_well_formed_across_processes_and_the_records_converge(
    faults: Faults, clock: Any, chance: Random, length: int
) -> None:
    follower = Mortal(World(chance))
    follower.connect()
    world = follower.world
    world.faults = Faults(**{**vars(faults), "clock": clock})
    for _ in range(length):
        if world.flip(0.1):
            follower.die()
        elif not world.subscribed:
            follower.connect()
        elif world.flip(0.05):
            follower.audit()
        else:
            world.move()
            follower.follow()
    follower.settle_down()
    follower.audit()
    follower.settle_down()
    assert follower.judge.fold == world.alive()


# --- what is remembered ---


def lively(tracker: Tracker) -> None:
    """Something of everything that can be known under an id."""
    tracker.learn(record(pod=PodReference("p", "n", "u", "c"), pod_labels={"a": "b"}))
    for pid in (7, 8):
        tracker.step(TaskStarted(WEB, NOW.wall, pid), NOW)
        tracker.step(TaskExited(WEB, NOW.wall, "", pid, 0, NOW.wall), NOW)
    tracker.step(TaskCreated(WEB, NOW.wall, 9), NOW)
    tracker.step(TaskStarted(WEB, NOW.wall, 9), NOW)
    tracker.witness(WEB, 9, TaskEnd(3, NOW.wall), NOW)


def test_an_entry_comes_back_as_it_was() -> None:
    tracker = Tracker(BOOT)
    lively(tracker)
    entry, again = tracker.find(WEB), restored(written(tracker)).find(WEB)
    assert entry is not None
    assert entry.life is not None
    assert again is not None
    entry.life.proven, entry.version, entry.changed_at, entry.created = False, 0, 0, ()
    entry.announced = entry.metadata  # as far as anybody remembers
    assert again == entry
    assert list(again.ended) == [7, 8]


def test_an_exit_that_waits_for_its_start_goes_on_waiting() -> None:
    tracker = Tracker(BOOT)
    tracker.learn(record())
    tracker.step(TaskExited(WEB, NOW.wall, "", 7, 3, NOW.wall), NOW)
    again = restored(written(tracker))
    assert types(again.expire(NOW)) == []
    told = again.expire(LATER)
    assert types(told) == ["started", "exited"]
    assert told[1].ending is not None
    assert told[1].ending.status == 3


def test_the_exit_of_a_task_that_was_never_started_stays_untold() -> None:
    tracker = Tracker(BOOT)
    tracker.learn(record())
    tracker.step(TaskCreated(WEB, NOW.wall, 7), NOW)
    tracker.step(TaskExited(WEB, NOW.wall, "", 7, 137, NOW.wall), NOW)
    assert types(restored(written(tracker)).expire(LATER)) == []


def test_a_late_exit_of_a_life_that_ended_before_changes_nothing_though_its_record_is_gone() -> None:
    tracker = Tracker(BOOT)
    tracker.learn(record())
    tracker.step(TaskStarted(WEB, NOW.wall, 7), NOW)
    tracker.step(TaskExited(WEB, NOW.wall, "", 7, 0, NOW.wall), NOW)
    tracker.step(ContainerDeleted(WEB, NOW.wall), NOW)
    values = written(tracker)
    assert len(values) == 1, "the record is not kept"
    again = restored(values)
    assert types(again.step(TaskExited(WEB, NOW.wall, "", 7, 137, NOW.wall), NOW)) == []
    assert types(again.expire(LATER)) == []


def test_what_is_forgotten_is_removed() -> None:
    tracker = Tracker(BOOT)
    values: dict[str, bytes] = {}
    for number in range(GRAVES_KEPT + 10):
        key = ContainerKey("shop", str(number))
        tracker.learn(record(key))
        tracker.step(TaskStarted(key, NOW.wall, 7), NOW)
        tracker.step(TaskExited(key, NOW.wall, "", 7, 0, NOW.wall), NOW)
        tracker.step(ContainerDeleted(key, NOW.wall), NOW)
        written(tracker, values)
    assert len(values) == GRAVES_KEPT
    tracker.end_all(NOW)
    assert written(tracker, values) == {}


def test_a_record_is_written_down_only_where_it_is_another_one() -> None:
    tracker = Tracker(BOOT)
    tracker.learn(record())
    tracker.step(TaskStarted(WEB, NOW.wall, 7), NOW)
    assert len(dict(memory.encode_changes(tracker.changes()))) == 2
    tracker.learn(record())
    tracker.step(TaskExited(WEB, NOW.wall, "", 7, 0, NOW.wall), NOW)
    assert len(dict(memory.encode_changes(tracker.changes()))) == 1
    tracker.learn(record(name="renamed"))
    assert len(dict(memory.encode_changes(tracker.changes()))) == 2
    assert not tracker.changed


def test_a_life_that_was_there_before_anybody_looked_is_still_to_be_told() -> None:
    tracker = Tracker(BOOT)
    tracker.learn(record())
    tracker.settle(WEB, Task(WEB, 7, TaskStatus.RUNNING), NOW)
    values = written(tracker)
    again = restored(values)
    assert types(again.settle(WEB, None, NOW)) == ["started", "exited"]
    tracker.rows(NOW)
    assert types(restored(written(tracker, values)).settle(WEB, None, NOW)) == ["exited"]


def test_pods_come_back_with_their_labels() -> None:
    sandbox, app = ContainerKey("k8s.io", "sandbox"), ContainerKey("k8s.io", "app")
    tracker = Tracker(BOOT)
    tracker.learn(record(sandbox, kind="sandbox", pod=PodReference("p", "n", "u", ""), pod_labels={"app": "shop"}))
    tracker.learn(record(app, pod=PodReference("p", "n", "u", "app")))
    told = restored(written(tracker)).step(TaskStarted(app, NOW.wall, 7), NOW)
    assert told[0].pod_labels == {"app": "shop"}


def test_another_boot_ends_every_life_under_its_own_name() -> None:
    tracker = Tracker("11111111-before")
    tracker.learn(record())
    tracker.step(TaskStarted(WEB, NOW.wall, 7), NOW)
    told = restored(written(tracker), boot="22222222-after").end_all(LATER)
    assert [(each.type, each.origin, each.incarnation) for each in told] == [("exited", "inferred", "11111111-7")]


def test_a_listing_tells_what_happened_meanwhile() -> None:
    keys = [ContainerKey("shop", name) for name in ("gone", "stopped", "reborn", "stays", "newborn")]
    _, stopped, reborn, stays, newborn = keys
    tracker = Tracker(BOOT)
    for pid, key in enumerate(keys[:4], 7):
        tracker.learn(record(key))
        tracker.step(TaskStarted(key, NOW.wall, pid), NOW)
    again = restored(written(tracker))
    listing = Listing(
        ["shop"],
        [],
        {key: record(key) for key in keys[1:]},
        {
            stopped: Task(stopped, 8, TaskStatus.STOPPED, 3, NOW.wall),
            reborn: Task(reborn, 99, TaskStatus.RUNNING),
            stays: Task(stays, 10, TaskStatus.RUNNING),
            newborn: Task(newborn, 100, TaskStatus.RUNNING),
        },
    )
    told = reconcile(again, listing, LATER)
    for question in again.due_questions(LATER):
        told += again.answer(question, None, LATER)
    assert [(each.key.id, each.type, each.pid) for each in told] == [
        ("stopped", "exited", 8),
        ("reborn", "exited", 9),
        ("reborn", "started", 99),
        ("newborn", "started", 100),
        ("gone", "exited", 7),
    ]
    assert told[0].ending is not None
    assert told[0].ending.status == 3


# --- settings that are others now ---


def entry(namespace: str, *, told: bool = True, **changed: Any) -> Entry:
    key = ContainerKey(namespace, "c")
    life = Life(pid=7, incarnation="x-7", paused=False, proven=True, told=told)
    return Entry(key, metadata=record(key, **changed), life=life)


RULES = LabelRules(include=["*"], exclude=["secret"], redact=["pass*"])


def restricted(*entries: Entry, watched: Callable[[str], bool] = lambda _: True) -> Tracker:
    """A tracker that remembers these, and has been told of the rules."""
    tracker = Tracker(BOOT)
    tracker.restore(entries, set(), NOW)
    tracker.restrict(watched, RULES)
    return tracker


def test_what_is_not_watched_any_more_is_forgotten() -> None:
    pod = PodReference("p", "n", "u", "")
    held = Entry(ContainerKey("a", "held"), held=TaskExited(ContainerKey("a", "held"), NOW.wall, "", 9, 0, NOW.wall))
    buried = Entry(ContainerKey("a", "buried"), deleted=True)
    tracker = restricted(
        entry("a", kind="sandbox", pod=pod), held, buried, entry("b"), watched=lambda name: name == "b"
    )
    assert [each.key.namespace for each in tracker.entries()] == ["b"]
    assert {key.id for key, entry_, *_ in tracker.changes() if entry_ is None} == {"c", "held", "buried"}
    assert tracker.find(buried.key) is None
    assert tracker.next_due() is None
    assert tracker.blind is None, "nobody can tell who is a newborn from who was left out so far"


@pytest.mark.parametrize(
    ("before", "after", "told", "silent"),
    [(True, True, True, False), (True, False, False, False), (False, True, True, True), (False, False, False, False)],
)
def test_who_is_told_of_only_now_gets_a_first_row(*, before: bool, after: bool, told: bool, silent: bool) -> None:
    remembered = entry("a", told=before)
    tracker = restricted(remembered)
    tracker.learn(record(remembered.key, in_scope=after))
    tracker.rescope(remembered.key)
    assert remembered.life is not None
    assert (remembered.life.told, remembered.life.silent) == (told, silent)


def test_rules_that_became_stricter_apply_to_what_is_remembered() -> None:
    labels = {"secret": "x", "password": "y", "tier": "front"}
    remembered = entry("k8s.io", labels=labels, pod_labels=labels, kind="sandbox", pod=PodReference("p", "n", "u", ""))
    remembered.announced = remembered.metadata
    app = entry("shop", pod=PodReference("p", "n", "u", "app"))
    tracker = restricted(remembered, app)
    assert remembered.metadata is not None
    assert remembered.metadata.labels == {"password": "[redacted]", "tier": "front"}
    assert remembered.metadata.pod_labels == remembered.metadata.labels
    assert remembered.announced == remembered.metadata
    exited, _ = tracker.end_all(NOW)
    assert exited.pod_labels == remembered.metadata.labels


def test_rules_do_not_bring_back_the_pod_of_a_sandbox_that_is_gone() -> None:
    labels, pod = {"secret": "x"}, PodReference("p", "n", "u", "")
    sandbox = entry("k8s.io", labels=labels, pod_labels=labels, kind="sandbox", pod=pod)
    tracker = Tracker(BOOT)
    tracker.restore([sandbox, entry("shop", pod=PodReference("p", "n", "u", "app"))], set(), NOW)
    tracker.step(ContainerDeleted(sandbox.key, NOW.wall), NOW)
    tracker.restrict(lambda _: True, RULES)
    assert [each.pod_labels for each in tracker.end_all(NOW)] == [None, None]


# --- positions, and what containers were seen under ---


def test_positions_and_circumstances_come_back() -> None:
    engine = Engine("c79d280c", "2.4.2", "/run/c.sock", 812)
    watched = Watched("node-1", engine, BOOT, "scope", ["shop"])
    position = Position(1_795_447_267_123, 42, NOW.wall)
    values = {memory.WATCHED: memory.encode_watched(watched)}
    values |= dict([memory.encode_position(watched.source, position)])
    again = memory.decode(values)
    assert again == Memory(watched, {SourceName("node-1", "c79d280c"): position}, [])
    assert list(memory.keys_of_containers(values)) == []


@pytest.mark.parametrize(
    "values", [{"state\0a\0b": b"\xc1"}, {"header": b"{}"}, {"metadata\0a\0b": b""}, {"state": b"\x90"}]
)
def test_what_cannot_be_understood_is_an_error(values: dict[str, bytes]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (msgspec's texts are its own)
        memory.decode(values)
