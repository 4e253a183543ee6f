"""Drives the core as the watch does, against a world, and judges every record as a consumer would."""

from __future__ import annotations

from dataclasses import dataclass, field

from bridge.core.lives import Question, Transition
from bridge.core.model import ContainerEvent, ContainerKey, Task
from bridge.core.reconcile import reconcile, suspects
from bridge.core.tracker import Tracker
from tests.unit.core.world import Happening, Witness, World

BOOT = "5f3c9a1e-2c1d-4b0e-8c5e-0d6b8c1f2a3b"
ROUNDS = 5  # of questions before a snapshot


@dataclass
class Judge:
    """A consumer: it folds the records into what lives, and accepts well-formed lives only (P2)."""

    fold: dict[ContainerKey, tuple[int, bool]] = field(default_factory=dict)
    told: list[Happening] = field(default_factory=list)
    ended: set[tuple[ContainerKey, str]] = field(default_factory=set)
    adoptions: int = 0

    def take(self, each: Transition) -> None:
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

    def take_snapshot(self, transitions: list[Transition], rows: list[Transition]) -> None:
        """The rows are what the transitions led to, and whoever was there before anybody looked."""
        for each in transitions:
            self.take(each)
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
        self.tracker = Tracker(BOOT)
        self.received: list[ContainerEvent] = []
        self._live = False
        self._missed: list[Transition] = []
        self._adopted = 0

    # --- connecting ---

    def connect(self) -> None:
        world, tracker = self.world, self.tracker
        world.subscribe()
        self._meanwhile()
        listing = world.listing(self._meanwhile, records=True)
        self._deliver(len(world.stream))
        self._decided(reconcile(tracker, listing, world.now()))
        for _ in range(ROUNDS):
            self._decided(self._ask(tracker.due_questions(world.now())))
        tracker.complete(set(listing.failed))
        self._publish()
        self._live = True

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
            if key in world.records and (entry is None or entry.metadata is None):
                tracker.learn(world.records[key])
        repairs = self._ask(questions, follow=True)
        tracker.complete(set(listing.failed))
        if repairs or tracker.adopted != self._adopted:
            self._check(repairs)
            self._missed += repairs
            self._publish()

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

    def _publish(self) -> None:
        self.judge.take_snapshot(self._missed, self.tracker.rows(self.world.now()))
        self._missed = []
        self._adopted = self.tracker.adopted
