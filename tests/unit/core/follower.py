"""Drives the core as the watch does, against a world, and judges every record as a consumer would."""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge.core.events import ExtraType
from bridge.core.labels import LabelRules
from bridge.core.lives import Question, Transition
from bridge.core.model import ContainerEvent, ContainerKey, Task
from bridge.core.reconcile import reconcile, rescope, suspects
from bridge.core.tracker import Tracker
from tests.unit.core.world import KEYS, Happening, Witness, World

BOOT = "5f3c9a1e-2c1d-4b0e-8c5e-0d6b8c1f2a3b"
EXTRAS: tuple[ExtraType, ...] = ("created", "deleted", "oom", "renamed")
ROUNDS = 5  # of questions before a snapshot


@dataclass
class Judge:
    """A consumer: it folds the records into what lives, and accepts well-formed lives only (P2)."""

    fold: dict[ContainerKey, tuple[int, bool]] = field(default_factory=dict)
    told: list[Happening] = field(default_factory=list)
    ended: set[tuple[ContainerKey, str]] = field(default_factory=set)
    adoptions: int = 0
    filtered: bool = False  # not every record is told of, or nobody can tell one from the next
    names: dict[ContainerKey, str] = field(default_factory=dict)
    deleted: set[tuple[ContainerKey, int | None]] = field(default_factory=set)

    def take(self, each: Transition) -> None:
        if each.type in EXTRAS:
            self._take_extra(each)
            return
        current = self.fold.get(each.key)
        assert (each.key, each.incarnation) not in self.ended, f"told after its end: {each}"
        assert (each.ending is not None) is (each.type == "exited")
        if each.type == "started":
            assert current is None, f"started on top of {current}: {each}"
        else:
            assert current is not None, f"of nothing that lives: {each}"
            assert current[0] == each.pid, f"of another life than {current}: {each}"
        if each.type == "exited":
            del self.fold[each.key]
            self.ended.add((each.key, each.incarnation))
        else:
            paused = each.type == "paused"
            assert current is None or current[1] is not paused, f"told twice: {each}"
            assert each.paused is paused
            self.fold[each.key] = (each.pid, paused)
        status, oom = (each.ending.status, each.ending.oom) if each.ending is not None else (None, None)
        self.told.append(Happening(each.type, each.key, each.pid, status, oom))

    def _take_extra(self, each: Transition) -> None:
        """Records come and go in turn, and a renamed one is called something else; a life is one that lives."""
        assert each.ending is None
        life = self.fold.get(each.key)
        assert (each.pid, each.paused) in {(0, False), life}
        assert bool(each.pid) is bool(each.incarnation)
        assert each.metadata is not None or each.type == "oom"
        if each.type == "oom" or each.metadata is None or self.filtered:
            return
        known, name = self.names.pop(each.key, None), each.metadata.name
        if each.type == "deleted":  # this and a new name may also be of one that was there before anybody looked
            record = (each.key, each.metadata.created_at)
            assert record not in self.deleted, f"told twice: {each}"
            self.deleted.add(record)
        else:
            assert known is None if each.type == "created" else known != name, f"not after {known}: {each}"
            self.names[each.key] = name

    def take_snapshot(self, transitions: list[Transition], rows: list[Transition], *, rescoped: bool = False) -> None:
        """The rows are what the transitions led to, and whoever was there before anybody looked.

        Of other filters (``rescoped``) nothing else is known than whom the rows name.
        """
        for each in transitions:
            self.take(each)
        if rescoped:
            named = {row.key for row in rows}
            self.fold = {key: value for key, value in self.fold.items() if key in named}
        for row in rows:
            assert (row.type, row.origin) == ("present", "snapshot")
            assert (row.key, row.incarnation) not in self.ended, f"present after its end: {row}"
            self.adoptions += row.key not in self.fold
            assert self.fold.setdefault(row.key, (row.pid, row.paused)) == (row.pid, row.paused)
        assert len(rows) == len(self.fold), "a living container without a row"


class Follower:
    """The watch, without its I/O."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.judge = Judge()
        self.tracker = Tracker(BOOT, EXTRAS)
        self.received: list[ContainerEvent] = []
        self._live = False
        self._missed: list[Transition] = []
        self._adopted = 0
        self._rescoping = False

    # --- connecting ---

    def connect(self) -> None:
        world, tracker = self.world, self.tracker
        world.subscribe()
        self._meanwhile()
        listing = world.listing(self._meanwhile, records=True)
        self._deliver(len(world.stream))
        if self._rescoping:
            tracker.restrict(lambda _: True, LabelRules.keep_all())
        self._decided(reconcile(tracker, listing, world.now(), rescoped=self._rescoping))
        for _ in range(ROUNDS):
            self._decided(self._ask(tracker.due_questions(world.now())))
        tracker.complete(set(listing.failed))
        self._publish(rescoped=self._rescoping)
        self._note_names()
        self._live, self._rescoping = True, False

    def disconnect(self) -> None:
        self.world.unsubscribe()
        self._live = False
        self.tracker.disconnect()

    # --- following ---

    def follow(self) -> None:
        """Take in some of what has happened, and do what is due."""
        self._deliver(self._some())
        self._decided(self.tracker.expire(self.world.now()))
        self._decided(self._ask(self.tracker.due_questions(self.world.now())))
        if self.tracker.adopted != self._adopted:
            self._publish()

    def audit(self) -> None:
        world, tracker = self.world, self.tracker
        listing = world.listing(self._meanwhile, records=False)
        questions = [tracker.question(key) for key in sorted(suspects(tracker, listing))]
        for key, _version in questions:
            entry = tracker.find(key)
            if (entry is None or entry.metadata is None) and (record := world.record(key)):
                tracker.learn(record)
        repairs = self._ask(questions, follow=True)
        tracker.complete(set(listing.failed))
        if repairs or tracker.adopted != self._adopted:
            self._check(repairs)
            self._missed += repairs
            self._publish()

    def rescope(self) -> None:
        """Have other filters; while connected, the records are listed to find out what that means."""
        world, tracker = self.world, self.tracker
        self.judge.filtered = True
        world.scope = frozenset(key for key in KEYS if world.flip(0.5))
        self._rescoping = not world.subscribed
        if self._rescoping:
            return
        began = world.now()
        listing = world.listing(self._meanwhile, records=True)
        questions = [tracker.question(key) for key in sorted(suspects(tracker, listing))]
        answers = [(question, world.task(question.key)) for question in questions]
        world.blur_what_is_on_its_way()
        self._deliver(len(world.stream))
        tracker.restrict(lambda _: True, LabelRules.keep_all())
        repairs = rescope(tracker, listing, began.wall, world.now())
        for question, task in answers:
            repairs += tracker.answer(question, task, world.now())
        tracker.complete(set(listing.failed))
        self._missed += repairs
        self._publish(rescoped=True)

    def settle_down(self) -> None:
        """Let everything arrive and every question be answered."""
        self.world.calm_down()
        if not self.world.subscribed:
            self.connect()
        for _ in range(100):
            self._deliver(len(self.world.stream))
            due = self.tracker.next_due()
            if due is None:
                return
            self.world.pass_time(max(0, due - self.world.now().monotonic))
            self.follow()
        raise AssertionError("questions without end")

    def repeat(self) -> None:
        """Receive every event once more."""
        for event in self.received:
            self._decided(self.tracker.step(event, self.world.now()))
        self.settle_down()

    def _ask(self, questions: list[Question], *, follow: bool = False) -> list[Transition]:
        """Ask, while things go on happening: whoever answers has not seen what comes next, nor has the asker."""
        answers: list[tuple[Question, Task | None, bool]] = []
        for question in questions:
            self._meanwhile()
            silent = self.world.faults.silence and self.world.flip(0.3)
            answers.append((question, self.world.task(question.key), silent))
            self.world.blur_what_is_on_its_way()
        if self.world.faults.lag and questions:
            self._meanwhile()
            if follow and self.world.flip(0.5):
                self.follow()
            self._deliver(self._some())
        told: list[Transition] = []
        for question, task, silent in answers:
            if silent:
                self.tracker.no_answer(question)
            else:
                told += self.tracker.answer(question, task, self.world.now())
        return told

    def _meanwhile(self) -> None:
        if self.world.faults.lag and self.world.flip(0.3):
            self.world.move()

    def _some(self) -> int:
        waiting = len(self.world.stream)
        return self.world.chance.randint(0, waiting) if self.world.faults.lag else waiting

    def _deliver(self, count: int) -> None:
        for _ in range(count):
            delivery = self.world.stream.popleft()
            if isinstance(delivery, Witness):
                self.tracker.witness(*delivery, self.world.now())
                continue
            self.received.append(delivery.event)
            if delivery.metadata is not None:
                self.tracker.learn(delivery.metadata)
            self._decided(self.tracker.step(delivery.event, self.world.now()))

    # --- telling ---

    def _decided(self, transitions: list[Transition]) -> None:
        self._check(transitions)
        if self._live:
            for each in transitions:
                self.judge.take(each)
        else:
            self._missed += transitions

    def _check(self, transitions: list[Transition]) -> None:
        """No exit is told of what lives at this moment, nothing is told of what never ran."""
        alive = self.world.alive()
        for each in transitions:
            assert each.type != "exited" or alive.get(each.key, (0, False))[0] != each.pid, f"it lives: {each}"
            assert each.pid not in self.world.never_ran - self.world.murky, f"it never ran: {each}"

    def _note_names(self) -> None:
        """Who reads of records only knows nothing of those that were there before anybody looked."""
        for entry in self.tracker.entries():
            if entry.announced is not None:
                self.judge.names.setdefault(entry.key, entry.announced.name)

    def _publish(self, *, rescoped: bool = False) -> None:
        self.judge.take_snapshot(self._missed, self.tracker.rows(self.world.now()), rescoped=rescoped)
        self._missed = []
        self._adopted = self.tracker.adopted
