"""The state machine of lives, fault by fault; what its rules add up to is in test_properties.py."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bridge.core.book import GRAVES_KEPT, HOLD
from bridge.core.lives import CREATED_KEPT, ENDED_KEPT, Ending, Question
from bridge.core.model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    Instant,
    PodReference,
    Task,
    TaskEnd,
    TaskExited,
    TaskOOM,
    TaskStatus,
)
from bridge.core.tracker import GRACE, WITNESSED_GRACE, Tracker
from tests.unit.core.made import (
    BOOT,
    DB,
    SECOND,
    WEB,
    Told,
    created,
    deleted,
    exited,
    following,
    listening,
    moment,
    paused,
    record,
    resumed,
    started,
    task,
    told,
    wall,
)

STARTED = [("started", "live", 5)]
EXITED = [("exited", "live", 5)]
DIED = [("exited", "inferred", 5)]


def step(tracker: Tracker, event: ContainerEvent, now: Instant | None = None) -> Told:
    """Take in an event the moment that it happens, unless told otherwise."""
    since = (event.at - wall(0)) / SECOND
    return told(tracker.step(event, now or moment(since)))


def asked(tracker: Tracker, seconds: float = 1000) -> list[ContainerKey]:
    return [question.key for question in tracker.due_questions(moment(seconds))]


def lives(tracker: Tracker) -> list[tuple[str, int, bool]]:
    return [(entry.key.id, life.pid, life.paused) for entry, life in tracker.lives()]


# --- a life as it should be ---


def test_a_life_is_told_from_its_start_to_its_exit() -> None:
    tracker = listening()
    tracker.learn(record(labels={"tier": "front"}))
    assert step(tracker, created(5, 1)) == []
    (start,) = tracker.step(started(5, 2), moment(2.1))
    assert (start.type, start.origin, start.at, start.key, start.pid) == ("started", "live", wall(2), WEB, 5)
    assert (start.incarnation, start.paused, start.ending) == ("5f3c9a1e-5", False, None)
    assert start.metadata == record(labels={"tier": "front"})
    (pause,) = tracker.step(paused(3), moment(3.1))
    assert (pause.type, pause.origin, pause.at, pause.paused) == ("paused", "live", wall(3), True)
    (resume,) = tracker.step(resumed(4), moment(4.1))
    assert (resume.type, resume.origin, resume.at, resume.paused) == ("unpaused", "live", wall(4), False)
    (end,) = tracker.step(exited(5, 5, 137), moment(5.1))
    assert (end.type, end.origin, end.at, end.paused) == ("exited", "live", wall(5), False)
    assert end.ending == Ending(137, wall(5), oom=False)
    assert step(tracker, deleted(5, 6)) == []
    assert tracker.next_due() is None


def test_who_exits_while_paused_is_not_told_as_paused() -> None:
    tracker = following()
    step(tracker, paused(1))
    (end,) = tracker.step(exited(5, 2), moment(2))
    assert (end.type, end.paused) == ("exited", False)


def test_an_oom_event_before_the_exit_is_told_with_it_and_with_no_other() -> None:
    tracker = following(4)
    step(tracker, TaskOOM(WEB, wall(0.5)))
    step(tracker, exited(4, 0.5))
    step(tracker, started(5, 0.6))
    (end,) = tracker.step(exited(5, 0.7), moment(0.7))
    assert end.ending == Ending(0, wall(0.7), oom=False)
    tracker = following()
    assert step(tracker, TaskOOM(WEB, wall(1))) == []
    (end,) = tracker.step(exited(5, 2, 137), moment(2))
    assert end.ending == Ending(137, wall(2), oom=True)
    step(tracker, TaskOOM(WEB, wall(3)))
    step(tracker, created(6, 4))
    step(tracker, started(6, 5))
    (end,) = tracker.step(exited(6, 6), moment(6))
    assert end.ending == Ending(0, wall(6), oom=False)


def test_the_same_id_lives_again_as_another_incarnation() -> None:
    tracker = following()
    step(tracker, exited(5, 1))
    step(tracker, deleted(5, 2))
    step(tracker, created(6, 3))
    (start,) = tracker.step(started(6, 4), moment(4))
    assert start.incarnation == "5f3c9a1e-6"
    assert lives(tracker) == [("web", 6, False)]


# --- repeated, late, never started ---


@pytest.mark.parametrize(
    ("event", "count"),
    [
        (created(5, 0.1), "late"),
        (started(5, 0.2), "duplicate"),
        (exited(5, 1, 137), "duplicate"),
        (deleted(5, 2), None),
        (exited(5, 3, 137), "duplicate"),
    ],
)
def test_what_an_ended_life_is_told_of_again_changes_nothing(event: ContainerEvent, count: str | None) -> None:
    tracker = following()
    assert step(tracker, exited(5, 1)) == EXITED
    before = tracker.counts.copy()
    assert step(tracker, event, moment(4)) == []
    assert lives(tracker) == []
    assert tracker.next_due() is None
    assert tracker.counts - before == ({count: 1} if count else {})


@pytest.mark.parametrize("event", [created(5, 0.1), started(5, 0.2), deleted(4, 0.1), exited(5, 1, exec_id="sh")])
def test_what_a_living_container_is_told_of_again_changes_nothing(event: ContainerEvent) -> None:
    tracker = following()
    assert step(tracker, event, moment(4)) == []
    assert lives(tracker) == [("web", 5, False)]
    assert tracker.next_due() is None


def test_ended_lives_are_remembered_for_a_good_many_lives() -> None:
    tracker = following()
    step(tracker, exited(5, 1))
    for pid in range(6, 5 + ENDED_KEPT):
        step(tracker, started(pid, pid))
        step(tracker, exited(pid, pid + 0.5))
    assert step(tracker, started(5, 0.2), moment(100)) == []
    assert step(tracker, exited(5, 1), moment(100)) == []
    assert tracker.next_due() is None


def test_an_exec_that_ends_says_nothing_even_after_its_container() -> None:
    tracker = following()
    (question,) = _ask(tracker)
    assert step(tracker, exited(5, 1, 1, exec_id="health")) == []
    assert step(tracker, deleted(5, 1, 1, exec_id="health")) == []
    assert tracker.counts["exec_exit"] == 1
    assert told(tracker.answer(question, None, moment(2))) == DIED, "an exec's exit makes no answer doubtful"
    assert step(tracker, exited(77, 3, 1, exec_id="health")) == []
    assert tracker.next_due() is None


def test_an_exit_that_comes_before_its_start_is_told_after_it() -> None:
    tracker = listening()
    step(tracker, created(5, 1))
    step(tracker, TaskOOM(WEB, wall(2)))
    assert step(tracker, exited(5, 3, 9)) == []
    first, second = tracker.step(started(5, 2), moment(20))
    assert told([first, second]) == STARTED + EXITED
    assert second.at == wall(3)
    assert second.ending == Ending(9, wall(3), oom=True)
    assert told(tracker.expire(moment(100))) == []


def test_an_exit_whose_start_fell_into_a_gap_is_told_with_it_after_a_while() -> None:
    tracker = listening()
    assert step(tracker, exited(5, 1, 9)) == []
    assert tracker.next_due() == SECOND + HOLD
    assert told(tracker.expire(moment(30.999))) == []
    first, second = tracker.expire(moment(31))
    assert told([first, second]) == [("started", "inferred", 5), *EXITED]
    assert (first.at, second.at, second.ending) == (wall(31), wall(1), Ending(9, wall(1), oom=False))
    assert tracker.next_due() is None
    assert step(tracker, started(5, 0.5), moment(40)) == []


def test_a_task_killed_before_it_was_started_is_not_told() -> None:
    tracker = listening()
    step(tracker, created(5, 1))
    step(tracker, exited(5, 2, 137))
    step(tracker, exited(5, 2, 137))
    assert told(tracker.expire(moment(32))) == []
    assert tracker.counts["never_started"] == 1
    assert step(tracker, exited(5, 2, 137), moment(40)) == []
    assert tracker.next_due() is None


@pytest.mark.parametrize("next_one", [started(6, 4), exited(6, 4), started(6, 40)])
def test_nor_is_it_told_when_the_next_task_comes(next_one: ContainerEvent) -> None:
    tracker = listening()
    step(tracker, created(5, 1))
    step(tracker, exited(5, 2, 137))
    step(tracker, deleted(5, 2, 137))
    step(tracker, created(6, 3))
    transitions = step(tracker, next_one) + told(tracker.expire(moment(100)))
    assert all(pid == 6 for _type, _origin, pid in transitions)


def test_nor_when_its_exit_comes_after_the_creation_of_others() -> None:
    tracker = listening()
    for pid in range(5, 5 + CREATED_KEPT):
        step(tracker, created(pid, pid))
        step(tracker, created(pid, pid))
    step(tracker, exited(5, 6, 137), moment(20))
    assert told(tracker.expire(moment(100))) == []


def test_an_exit_that_waits_makes_way_for_the_next() -> None:
    tracker = listening()
    step(tracker, exited(5, 1))
    assert step(tracker, exited(6, 2)) == [("started", "inferred", 5), *EXITED]
    assert told(tracker.expire(moment(31.5))) == [], "the second has its own 30 s"
    assert told(tracker.expire(moment(32))) == [("started", "inferred", 6), ("exited", "live", 6)]


def test_an_exit_that_waits_is_told_before_the_next_life_begins() -> None:
    tracker = listening()
    step(tracker, exited(5, 1))
    assert step(tracker, started(6, 2)) == [("started", "inferred", 5), *EXITED, ("started", "live", 6)]


def test_a_late_exit_of_an_older_life_changes_nothing() -> None:
    tracker = following(6)
    assert step(tracker, exited(5, 0.1), moment(3)) == []
    assert asked(tracker, 3) == [WEB], "for it may as well be a newer one's"
    assert told(tracker.expire(moment(33))) == []
    assert (tracker.counts["late"], lives(tracker)) == (1, [("web", 6, False)])


# --- an exit that was lost ---


def test_a_delete_event_proves_an_exit_that_was_lost() -> None:
    tracker = following()
    (end,) = tracker.step(deleted(5, 2, 137), moment(2.5))
    assert (told([end]), end.at, end.ending) == (DIED, wall(2.5), Ending(137, wall(2)))
    assert step(tracker, exited(5, 1, 137), moment(3)) == []
    assert tracker.next_due() is None


@pytest.mark.parametrize("status", [TaskStatus.RUNNING, TaskStatus.PAUSED])
def test_the_next_start_is_told_when_containerd_confirms_that_the_life_is_over(status: TaskStatus) -> None:
    tracker = following()
    step(tracker, created(6, 1))
    assert step(tracker, started(6, 2), moment(2.5)) == []
    assert tracker.counts["unconfirmed_start"] == 1
    (question,) = tracker.due_questions(moment(2.5))
    first, second, *more = tracker.answer(question, task(6, status), moment(2.6))
    assert told([first, second]) == [*DIED, ("started", "live", 6)]
    assert (first.at, first.ending, second.at, second.paused) == (wall(2.6), Ending(), wall(2), False)
    assert told(more) == ([("paused", "inferred", 6)] if status is TaskStatus.PAUSED else [])


@pytest.mark.parametrize("asked_already", [True, False])
def test_the_next_start_is_told_too_where_the_exit_was_only_late(asked_already: bool) -> None:
    tracker = following()
    step(tracker, created(6, 1))
    step(tracker, started(6, 2))
    questions = tracker.due_questions(moment(2)) if asked_already else []
    assert step(tracker, exited(5, 0.9), moment(3)) == EXITED
    for question in questions:
        assert told(tracker.answer(question, task(6), moment(3))) == []
    (question,) = tracker.due_questions(moment(3))
    assert told(tracker.answer(question, task(6), moment(3))) == [("started", "live", 6)]


@pytest.mark.parametrize("answer", [None, task(6, TaskStatus.STOPPED)])
def test_a_whole_life_may_pass_before_containerd_confirms_its_start(answer: Task | None) -> None:
    tracker = following()
    step(tracker, created(6, 1))
    step(tracker, started(6, 2))
    step(tracker, exited(6, 3))
    (question,) = tracker.due_questions(moment(3))
    assert told(tracker.answer(question, answer, moment(3))) == [
        *DIED,
        ("started", "live", 6),
        ("exited", "live", 6),
    ]
    assert tracker.next_due() is None


def test_a_start_that_was_seen_is_told_though_its_task_is_gone_before_containerd_was_asked() -> None:
    tracker = following()
    step(tracker, created(6, 1))
    step(tracker, started(6, 2))
    (question,) = tracker.due_questions(moment(2))
    assert told(tracker.answer(question, None, moment(2.5))) == DIED
    assert step(tracker, exited(6, 2.2), moment(3)) == []
    assert told(tracker.expire(moment(33))) == [("started", "live", 6), ("exited", "live", 6)]


@pytest.mark.parametrize("event", [created(6, 1), ContainerDeleted(WEB, wall(1))])
def test_a_life_that_must_be_over_is_asked_for_unless_its_exit_comes(event: ContainerEvent) -> None:
    tracker = following()
    assert step(tracker, event) == []
    assert tracker.next_due() == SECOND + GRACE
    assert asked(tracker, 5.9) == []
    assert asked(tracker, 6) == [WEB]
    tracker = following()
    step(tracker, event)
    assert step(tracker, exited(5, 2)) == EXITED
    assert tracker.next_due() is None


@pytest.mark.parametrize("event", [exited(0, 1, 255), deleted(0, 1, 255)])
def test_a_dead_shims_pid_0_ends_nothing_without_asking(event: ContainerEvent) -> None:
    tracker = following()
    assert step(tracker, event) == []
    (question,) = tracker.due_questions(moment(1))
    assert told(tracker.answer(question, task(5), moment(1.1))) == []
    assert step(tracker, event, moment(2)) == []
    (question,) = tracker.due_questions(moment(2))
    (end,) = tracker.answer(question, None, moment(2.1))
    assert (told([end]), end.at, end.ending) == (DIED, wall(2.1), Ending())
    assert step(tracker, event, moment(3)) == []
    assert tracker.next_due() is None


# --- who waited for the task ---

END = TaskEnd(9, 123)


def test_a_witnessed_end_gives_an_exit_that_was_lost_its_status() -> None:
    tracker = following()
    tracker.witness(WEB, 5, END, moment(1))
    assert tracker.next_due() == SECOND + WITNESSED_GRACE
    (question,) = tracker.due_questions(moment(3))
    (end,) = tracker.answer(question, None, moment(3))
    assert (told([end]), end.ending) == (DIED, Ending(9, 123))


def test_a_witnessed_end_is_told_by_its_exit_event_where_that_comes() -> None:
    tracker = following()
    tracker.witness(WEB, 5, END, moment(1))
    (end,) = tracker.step(exited(5, 1.1, 9), moment(1.2))
    assert (told([end]), end.ending) == (EXITED, Ending(9, wall(1.1), oom=False))
    assert tracker.next_due() is None


def test_an_end_may_be_witnessed_before_the_start_is_known() -> None:
    tracker = listening()
    tracker.learn(record())
    step(tracker, created(5, 1))
    tracker.witness(WEB, 5, END, moment(2))
    assert tracker.next_due() is None
    assert step(tracker, started(5, 1.5), moment(3)) == STARTED
    (question,) = tracker.due_questions(moment(5))
    (end,) = tracker.answer(question, None, moment(5))
    assert end.ending == Ending(9, 123)


def test_what_was_witnessed_of_another_task_says_nothing_of_this_one() -> None:
    tracker = listening()
    tracker.learn(record())
    tracker.witness(WEB, 4, END, moment(1))
    tracker.witness(DB, 4, END, moment(1))
    step(tracker, created(4, 1))
    tracker.witness(WEB, 4, END, moment(1))
    step(tracker, created(5, 2))
    assert step(tracker, started(5, 3)) == STARTED
    assert tracker.next_due() is None
    (question,) = _ask(tracker)
    (end,) = tracker.answer(question, None, moment(4))
    assert end.ending == Ending()


# --- events out of order: timestamps raise doubt, containerd decides ---


def test_a_late_start_of_an_older_life_does_not_end_the_newer_one() -> None:
    tracker = following(6)
    assert step(tracker, created(5, 0.1), moment(3)) == []
    assert step(tracker, started(5, 0.15), moment(3)) == []
    (question,) = tracker.due_questions(moment(3))
    assert told(tracker.answer(question, task(6), moment(3))) == []
    assert lives(tracker) == [("web", 6, False)]


def test_nor_does_one_that_nobody_waits_for_whatever_its_timestamp() -> None:
    tracker = following(6)
    assert step(tracker, exited(5, 2), moment(3)) == []
    assert step(tracker, started(5, 2), moment(3)) == []
    (question,) = tracker.due_questions(moment(3))
    assert told(tracker.answer(question, task(6), moment(3))) == []
    assert lives(tracker) == [("web", 6, False)]


def test_a_start_that_was_doubted_is_told_when_containerd_confirms_it() -> None:
    tracker = following()
    assert step(tracker, started(6, 2)) == [], "its creation was not seen, nor the exit of the life before it"
    (question,) = tracker.due_questions(moment(2))
    assert told(tracker.answer(question, task(6), moment(2.1))) == [*DIED, ("started", "live", 6)]


def test_a_start_that_is_late_and_not_awaited_is_asked_for() -> None:
    tracker = following()
    step(tracker, paused(2))
    step(tracker, exited(5, 3))
    assert step(tracker, started(4, 0.1), moment(4)) == []
    assert tracker.counts["unconfirmed_start"] == 1
    assert asked(tracker, 4) == [WEB]


def test_a_late_start_whose_exit_waits_for_it_is_told() -> None:
    tracker = listening()
    step(tracker, paused(2))
    step(tracker, exited(5, 3))
    assert step(tracker, started(5, 1), moment(4)) == STARTED + EXITED


def test_a_start_that_is_late_and_awaited_is_told_and_asked_for() -> None:
    tracker = listening()
    step(tracker, created(5, 1))
    assert step(tracker, paused(3)) == []
    assert step(tracker, started(5, 2), moment(4)) == STARTED
    (question,) = tracker.due_questions(moment(4))
    assert told(tracker.answer(question, task(5, TaskStatus.PAUSED), moment(4))) == [("paused", "inferred", 5)]


@pytest.mark.parametrize("event", [paused(0.1), resumed(1), paused(9)], ids=["late", "repeated", "of the future"])
def test_a_pause_event_that_does_not_fit_is_asked_for(event: ContainerEvent) -> None:
    tracker = following()
    assert step(tracker, event, moment(2)) == []
    assert tracker.counts["unexpected_pause"] == 1
    (question,) = tracker.due_questions(moment(2))
    answer = tracker.answer(question, task(5, TaskStatus.PAUSED), moment(2.5))
    assert told(answer) == [("paused", "inferred", 5)]
    assert (answer[0].at, answer[0].paused) == (wall(2.5), True)
    assert told(tracker.answer(question._replace(version=question.version + 1), task(5), moment(3))) == [
        ("unpaused", "inferred", 5)
    ]


def test_a_pause_of_nobody_known_is_asked_for() -> None:
    tracker = listening()
    assert step(tracker, paused(1)) == []
    assert asked(tracker, 1) == [WEB]


def test_a_pause_overtaken_by_its_end_is_not_told() -> None:
    tracker = following()
    assert step(tracker, resumed(3)) == []
    assert step(tracker, paused(2), moment(4)) == []
    assert lives(tracker) == [("web", 5, False)]


def test_a_pause_older_than_containerds_word_is_not_told() -> None:
    tracker = following()
    (question,) = _ask(tracker)
    tracker.answer(question, task(5), moment(3))
    assert step(tracker, paused(2), moment(4)) == []
    assert asked(tracker, 4) == [WEB]


def test_a_pause_of_a_life_not_yet_confirmed_is_asked_for() -> None:
    tracker = following()
    tracker.disconnect()
    assert step(tracker, paused(2)) == []
    assert asked(tracker, 2) == [WEB]


def test_a_repeated_start_confirms_a_life_but_not_another_one() -> None:
    tracker = following()
    step(tracker, exited(5, 1))
    step(tracker, created(6, 2))
    step(tracker, started(6, 3))
    tracker.disconnect()
    step(tracker, started(5, 0.2), moment(4))
    assert step(tracker, paused(5)) == []
    step(tracker, started(6, 3), moment(6))
    assert step(tracker, paused(7)) == [("paused", "live", 6)]


@pytest.mark.parametrize("hours", [-2, 2])
def test_a_clock_that_is_set_does_not_matter(hours: int) -> None:
    tracker = following()
    step(tracker, paused(2))
    offset = hours * 3600
    transitions = tracker.step(resumed(3 + offset), Instant(wall(3 + offset), 3 * SECOND))
    assert told(transitions) == [("unpaused", "live", 5)]
    assert transitions[0].at == wall(3 + offset)


# --- questions and answers ---


def _ask(tracker: Tracker, key: ContainerKey = WEB) -> list[Question]:
    tracker.ask(key)
    return tracker.due_questions(moment(0))


def test_questions_are_handed_out_once_and_when_due() -> None:
    tracker = following()
    tracker.ask(WEB, 8 * SECOND)
    tracker.ask(WEB, 7 * SECOND)
    tracker.ask(WEB, 9 * SECOND)
    tracker.ask(DB, 8 * SECOND)
    assert tracker.next_due() == 7 * SECOND
    assert asked(tracker, 6.9) == []
    assert asked(tracker, 7) == [WEB]
    assert tracker.next_due() == 8 * SECOND
    assert asked(tracker, 8) == [DB]
    assert tracker.next_due() is None


def test_what_is_due_first_is_due_next() -> None:
    tracker = listening()
    step(tracker, exited(5, 1))
    tracker.ask(DB, 2 * SECOND)
    assert tracker.next_due() == 2 * SECOND
    tracker.due_questions(moment(2))
    assert tracker.next_due() == 31 * SECOND


@pytest.mark.parametrize(
    "event",
    [
        started(5, 0.2),
        paused(2),
        created(6, 2),
        exited(0, 2),
        ContainerUpdated(WEB, wall(2), "busybox", {}),
        ContainerCreated(WEB, wall(2), "busybox", "runc"),
    ],
)
def test_an_answer_that_events_have_crossed_is_asked_for_again(event: ContainerEvent) -> None:
    tracker = following()
    (question,) = _ask(tracker)
    tracker.step(event, moment(2))
    assert told(tracker.answer(question, None, moment(3))) == []
    assert lives(tracker) != []
    assert asked(tracker, 3) == [WEB]


def test_so_is_one_that_a_witness_has_crossed() -> None:
    tracker = following()
    (question,) = _ask(tracker)
    tracker.witness(WEB, 5, END, moment(2))
    assert told(tracker.answer(question, task(5), moment(2))) == []
    assert asked(tracker, 2) == [WEB]


def test_of_two_answers_the_older_one_is_asked_for_again() -> None:
    tracker = following()
    (first,) = _ask(tracker)
    (second,) = _ask(tracker)
    assert told(tracker.answer(second, task(6), moment(2))) == [*DIED, ("started", "inferred", 6)]
    assert told(tracker.answer(first, None, moment(2))) == []
    assert lives(tracker) == [("web", 6, False)]
    assert asked(tracker) == [WEB]


def test_an_answer_about_nobody_known_leaves_nothing_behind() -> None:
    tracker = listening()
    (question,) = _ask(tracker)
    assert told(tracker.answer(question, None, moment(1))) == []
    assert list(tracker.entries()) == []


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (TaskStatus.RUNNING, [("started", "inferred", 5)]),
        (TaskStatus.PAUSED, [("started", "inferred", 5), ("paused", "inferred", 5)]),
        (TaskStatus.PAUSING, [("started", "inferred", 5), ("paused", "inferred", 5)]),
        (TaskStatus.STOPPED, [("started", "inferred", 5), *DIED]),
        (TaskStatus.CREATED, []),
        (TaskStatus.UNKNOWN, []),
    ],
)
def test_whoever_is_found_where_everything_is_known_is_a_newborn(status: TaskStatus, expected: Told) -> None:
    tracker = listening()
    (question,) = _ask(tracker)
    transitions = tracker.answer(question, task(5, status), moment(1))
    assert told(transitions) == expected
    assert tracker.adopted == 0
    if status is TaskStatus.STOPPED:
        assert transitions[-1].ending == Ending(3, wall(0.5))


@pytest.mark.parametrize(
    ("status", "rows"),
    [
        (TaskStatus.RUNNING, [("web", False)]),
        (TaskStatus.PAUSED, [("web", True)]),
        (TaskStatus.STOPPED, []),
        (TaskStatus.CREATED, []),
        (TaskStatus.UNKNOWN, []),
    ],
)
def test_whoever_is_found_where_nothing_is_known_is_adopted(status: TaskStatus, rows: list[tuple[str, bool]]) -> None:
    tracker = Tracker(BOOT)
    (question,) = _ask(tracker)
    assert told(tracker.answer(question, task(5, status), moment(1))) == []
    assert [(row.key.id, row.paused) for row in tracker.rows(moment(2))] == rows
    assert tracker.adopted == len(rows)
    if status is TaskStatus.STOPPED:
        assert step(tracker, exited(5, 0.5), moment(3)) == []
        assert tracker.next_due() is None


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (TaskStatus.RUNNING, []),
        (TaskStatus.PAUSED, [("paused", "inferred", 5)]),
        (TaskStatus.STOPPED, DIED),
        (TaskStatus.CREATED, []),
        (TaskStatus.UNKNOWN, []),
    ],
)
def test_containerds_word_about_a_life(status: TaskStatus, expected: Told) -> None:
    tracker = following()
    (question,) = _ask(tracker)
    transitions = tracker.answer(question, task(5, status), moment(1))
    assert told(transitions) == expected
    if status is TaskStatus.STOPPED:
        assert transitions[0].ending == Ending(3, wall(0.5))


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (TaskStatus.RUNNING, [*DIED, ("started", "inferred", 6)]),
        (TaskStatus.STOPPED, [*DIED, ("started", "inferred", 6), ("exited", "inferred", 6)]),
        (TaskStatus.CREATED, DIED),
    ],
)
def test_another_task_under_the_id_means_that_the_life_is_over(status: TaskStatus, expected: Told) -> None:
    tracker = following()
    (question,) = _ask(tracker)
    assert told(tracker.answer(question, task(6, status), moment(1))) == expected


def test_stopped_beats_running_of_the_same_pid() -> None:
    tracker = following()
    step(tracker, exited(5, 1))
    for status in (TaskStatus.RUNNING, TaskStatus.STOPPED, TaskStatus.CREATED):
        (question,) = _ask(tracker)
        assert told(tracker.answer(question, task(5, status), moment(2))) == []
        assert lives(tracker) == []


def test_an_old_task_that_is_still_there_means_that_no_other_one_is() -> None:
    tracker = following()
    step(tracker, exited(5, 1))
    step(tracker, created(6, 2))
    step(tracker, started(6, 3))
    (question,) = _ask(tracker)
    assert told(tracker.answer(question, task(5, TaskStatus.STOPPED), moment(4))) == [("exited", "inferred", 6)]


@pytest.mark.parametrize("status", [TaskStatus.RUNNING, TaskStatus.STOPPED])
def test_an_exit_that_waits_is_told_when_containerd_knows_its_task(status: TaskStatus) -> None:
    tracker = listening()
    step(tracker, exited(5, 1, 9))
    (question,) = _ask(tracker)
    transitions = tracker.answer(question, task(5, status), moment(2))
    assert told(transitions) == [("started", "inferred", 5), *EXITED]
    assert transitions[-1].ending == Ending(9, wall(1), oom=False)
    assert tracker.next_due() is None


def test_a_running_task_was_started_whatever_was_seen() -> None:
    tracker = listening()
    step(tracker, created(5, 1))
    step(tracker, exited(5, 2))
    (question,) = _ask(tracker)
    assert told(tracker.answer(question, task(5), moment(2))) == [("started", "inferred", 5), *EXITED]


def test_a_stopped_task_that_nobody_saw_started_goes_on_waiting_for_its_start() -> None:
    tracker = listening()
    step(tracker, created(5, 1))
    (question,) = _ask(tracker)
    assert told(tracker.answer(question, task(5, TaskStatus.STOPPED), moment(2))) == []
    step(tracker, exited(5, 2))
    (question,) = _ask(tracker)
    assert told(tracker.answer(question, task(5, TaskStatus.STOPPED), moment(2))) == []
    assert step(tracker, started(5, 1.5), moment(3)) == STARTED + EXITED


def test_an_exit_that_waits_is_an_older_lifes_where_containerd_knows_another_task() -> None:
    tracker = following(6)
    step(tracker, exited(5, 1))
    (question,) = tracker.due_questions(moment(1))
    assert told(tracker.answer(question, task(6), moment(1))) == []
    assert step(tracker, exited(6, 2)) == [("exited", "live", 6)]
    assert tracker.next_due() is None
    tracker = listening()
    step(tracker, exited(5, 1))
    (question,) = _ask(tracker)
    assert told(tracker.answer(question, task(6), moment(1))) == [
        ("started", "inferred", 5),
        *EXITED,
        ("started", "inferred", 6),
    ]


def test_a_created_task_that_containerd_knows_of_is_expected_to_start() -> None:
    tracker = listening()
    (question,) = _ask(tracker)
    tracker.answer(question, task(5, TaskStatus.CREATED), moment(1))
    step(tracker, exited(5, 2))
    assert told(tracker.expire(moment(100))) == []


# --- no answer ---


def test_without_an_answer_a_life_goes_on_unproven() -> None:
    tracker = following()
    (question,) = _ask(tracker)
    tracker.no_answer(question)
    ((_entry, life),) = tracker.lives()
    assert not life.proven
    assert tracker.next_due() is None
    (question,) = _ask(tracker)
    tracker.answer(question, task(5), moment(1))
    assert life.proven


@pytest.mark.parametrize("recorded", [True, False])
def test_without_an_answer_nobody_knows_whether_it_is_a_newborn(recorded: bool) -> None:
    tracker = listening()
    if recorded:
        tracker.learn(record())
    (question,) = _ask(tracker)
    tracker.no_answer(question)
    (entry,) = tracker.entries()
    assert entry.unanswered
    (question,) = _ask(tracker)
    assert told(tracker.answer(question, task(5), moment(1))) == []
    assert (tracker.adopted, entry.unanswered) == (1, False)


@pytest.mark.parametrize("answer", [None, task(5, TaskStatus.STOPPED), task(6, TaskStatus.CREATED)])
def test_an_answer_is_an_answer_though_it_tells_nothing_new(answer: Task | None) -> None:
    tracker = following()
    step(tracker, exited(5, 1))
    (question,) = _ask(tracker)
    tracker.answer(question, task(0, TaskStatus.UNKNOWN), moment(2))
    entry = tracker.find(WEB)
    assert entry is not None
    assert entry.unanswered
    (question,) = _ask(tracker)
    tracker.answer(question, answer, moment(3))
    assert not entry.unanswered


def test_an_answer_that_did_not_come_is_asked_for_again_where_events_came_instead() -> None:
    tracker = following()
    (question,) = _ask(tracker)
    step(tracker, exited(5, 1))
    tracker.no_answer(question)
    assert asked(tracker) == [WEB]
    assert not any(entry.unanswered for entry in tracker.entries())


def test_a_new_record_and_a_start_need_no_answer() -> None:
    tracker = listening()
    for event in (ContainerCreated(WEB, wall(1), "busybox", "runc"), started(5, 2)):
        (question,) = _ask(tracker)
        tracker.no_answer(question)
        tracker.learn(record())
        step(tracker, event)
        (entry,) = tracker.entries()
        assert not entry.unanswered


# --- adoption, scope, rows ---


def _adopting() -> Tracker:
    """A tracker that has just found a container that lived before anybody looked."""
    tracker = Tracker(BOOT)
    tracker.learn(record())
    tracker.settle(WEB, task(5), moment(0.1))
    return tracker


def test_a_row_is_the_first_that_is_told_of_an_adopted_life() -> None:
    tracker = _adopting()
    (row,) = tracker.rows(moment(1))
    assert (row.type, row.origin, row.at, row.key, row.pid) == ("present", "snapshot", wall(1), WEB, 5)
    assert (row.incarnation, row.paused, row.metadata, row.ending) == ("5f3c9a1e-5", False, record(), None)
    assert step(tracker, paused(2)) == [("paused", "live", 5)]
    assert step(tracker, exited(5, 3)) == EXITED
    assert tracker.rows(moment(4)) == []


def test_until_that_row_its_pauses_are_not_told() -> None:
    tracker = _adopting()
    assert step(tracker, paused(1)) == []
    (row,) = tracker.rows(moment(2))
    assert row.paused


def test_where_it_ends_before_that_row_its_life_is_told_whole() -> None:
    assert step(_adopting(), exited(5, 1)) == [("started", "inferred", 5), *EXITED]


def test_what_is_out_of_scope_is_followed_and_not_told() -> None:
    tracker = Tracker(BOOT)
    tracker.learn(record(in_scope=False))
    tracker.settle(WEB, task(5), moment(0.1))
    assert (tracker.adopted, tracker.rows(moment(1)), lives(tracker)) == (0, [], [("web", 5, False)])
    assert step(tracker, paused(2)) == []
    assert step(tracker, exited(5, 3)) == []
    tracker.learn(record())
    assert step(tracker, started(6, 4)) == [("started", "live", 6)], "each life is judged of its own"


def test_only_a_completed_snapshot_makes_newborns_known_as_such() -> None:
    tracker = Tracker(BOOT)
    assert not tracker.remembers("shop")
    tracker.complete({"shop", "lab"})
    assert (tracker.remembers("default"), tracker.remembers("shop")) == (True, False)
    tracker.complete({"shop", "default"})
    assert [tracker.remembers(each) for each in ("default", "shop", "lab")] == [True, False, True]
    tracker.complete(set())
    assert tracker.remembers("shop")


# --- records, pods ---


def test_records_are_told_as_they_are_now() -> None:
    tracker = following()
    tracker.learn(record(labels={"tier": "back"}, updated_at=2))
    (pause,) = tracker.step(paused(1), moment(1))
    assert pause.metadata == record(labels={"tier": "back"}, updated_at=2)


def test_an_update_whose_record_is_gone_keeps_what_only_the_record_knew() -> None:
    tracker = following()
    tracker.learn(record(labels={"tier": "back"}, runtime="", created_at=None, updated_at=7))
    entry = tracker.find(WEB)
    assert entry is not None
    assert entry.metadata == record(labels={"tier": "back"}, updated_at=7)
    tracker.learn(record(DB, runtime="", created_at=None))
    entry = tracker.find(DB)
    assert entry is not None
    assert entry.metadata == record(DB, runtime="", created_at=None)


POD = PodReference("web-1", "prod", "uid-1", "app")
PAUSE = ContainerKey("k8s.io", "pause")
APP = ContainerKey("k8s.io", "app")


def test_a_pods_labels_are_its_sandboxs_as_long_as_that_is_there() -> None:
    tracker = listening()
    tracker.learn(record(APP, pod=POD))
    (start,) = tracker.step(started(5, 1, APP), moment(1))
    assert start.pod_labels is None
    tracker.learn(record(PAUSE, kind="sandbox", pod=POD, pod_labels={"app": "web"}))
    assert tracker.rows(moment(2))[0].pod_labels == {"app": "web"}
    tracker.step(ContainerDeleted(ContainerKey("k8s.io", "other"), wall(3)), moment(3))
    tracker.step(ContainerDeleted(APP, wall(3)), moment(3))
    assert tracker.rows(moment(3))[0].pod_labels == {"app": "web"}
    tracker.step(ContainerDeleted(PAUSE, wall(4)), moment(4))
    assert tracker.rows(moment(4))[0].pod_labels is None


def test_a_sandbox_without_a_pod_is_a_container_like_others() -> None:
    tracker = listening()
    tracker.learn(record(PAUSE, kind="sandbox", pod_labels={"app": "web"}))
    (start,) = tracker.step(started(5, 1, PAUSE), moment(1))
    assert start.pod_labels is None


def test_who_has_neither_record_nor_life_is_forgotten_last_things_last() -> None:
    tracker = following()
    step(tracker, ContainerDeleted(WEB, wall(1)))
    assert [entry.key for entry in tracker.entries()] == [WEB], "it still lives"
    step(tracker, exited(5, 2))
    assert list(tracker.entries()) == []
    entry = tracker.find(WEB)
    assert entry is not None
    assert list(entry.ended) == [5]
    assert step(tracker, started(5, 0.2), moment(3)) == []
    assert list(tracker.entries()) == []
    tracker.learn(record())
    assert list(tracker.entries()) == [entry]
    assert not entry.deleted


def test_graves_are_bounded_and_the_oldest_goes_first() -> None:
    tracker = listening()
    ids = [ContainerKey("shop", str(number)) for number in range(GRAVES_KEPT + 1)]
    for key in ids:
        tracker.step(exited(1, 1, exec_id="sh", key=key), moment(1))
        if key == ids[-2]:
            tracker.step(exited(1, 1, exec_id="sh", key=ids[0]), moment(1))
    assert tracker.find(ids[1]) is None
    assert [tracker.find(key) is not None for key in (ids[0], ids[2], ids[-1])] == [True, True, True]
    assert list(tracker.entries()) == []


def test_forgetting_is_for_those_without_a_life() -> None:
    tracker = following()
    tracker.learn(record(DB))
    tracker.forget(DB)
    tracker.forget(WEB)
    tracker.forget(APP)
    assert [entry.key for entry in tracker.entries()] == [WEB]
    step(tracker, exited(5, 1))
    assert list(tracker.entries()) == []


# --- the stream is gone ---


def test_after_a_disconnect_nothing_is_proven_and_no_answer_counts() -> None:
    tracker = following()
    tracker.ask(WEB)
    tracker.disconnect()
    assert tracker.next_due() is None
    ((entry, life),) = tracker.lives()
    assert (life.proven, entry.version, entry.created) == (False, 0, ())


def test_a_task_created_before_a_gap_may_be_started_in_it() -> None:
    tracker = listening()
    step(tracker, created(5, 1))
    assert tracker.find(WEB) not in list(tracker.entries()), "without a record it is in its grave"
    tracker.disconnect()
    step(tracker, exited(5, 2))
    assert told(tracker.expire(moment(32))) == [("started", "inferred", 5), *EXITED]


def test_but_not_one_whose_exit_came_before_the_gap() -> None:
    tracker = listening()
    step(tracker, created(4, 1))
    step(tracker, created(5, 1))
    step(tracker, exited(5, 2))
    tracker.disconnect()
    (question,) = _ask(tracker)
    assert told(tracker.answer(question, task(4, TaskStatus.STOPPED), moment(4))) == [
        ("started", "inferred", 4),
        ("exited", "inferred", 4),
    ]
    assert told(tracker.expire(moment(100))) == []
    assert tracker.counts["never_started"] == 1


def test_a_boot_ends_all_lives_and_whatever_comes_next_is_new() -> None:
    tracker = following()
    tracker.learn(record(DB))
    tracker.step(exited(8, 1, key=DB), moment(1))
    tracker.ask(WEB)
    transitions = tracker.end_all(moment(9))
    assert told(transitions) == [("started", "inferred", 8), ("exited", "live", 8), *DIED]
    assert (transitions[-1].at, transitions[-1].ending) == (wall(9), Ending())
    assert (list(tracker.entries()), tracker.find(WEB), tracker.next_due()) == ([], None, None)
    assert tracker.remembers("shop")
    assert step(tracker, started(5, 10)) == STARTED


@pytest.mark.parametrize(("status", "expected"), [(TaskStatus.STOPPED, DIED), (TaskStatus.RUNNING, [])])
def test_a_task_without_a_pid_is_that_of_the_life_that_is_known(status: TaskStatus, expected: Told) -> None:
    assert told(following().settle(WEB, Task(WEB, 0, status), moment(6))) == expected


def test_a_task_without_a_pid_of_nobody_known_says_nothing() -> None:
    tracker = listening()
    tracker.no_answer(tracker.question(WEB))
    (entry,) = tracker.entries()
    assert told(tracker.settle(WEB, Task(WEB, 0, TaskStatus.STOPPED), moment(6))) == []
    assert lives(tracker) == []
    assert not entry.unanswered


@pytest.mark.parametrize(
    ("held", "end", "expected"),
    [
        pytest.param(exited(6, 1), exited(5, 2), [], id="older"),
        pytest.param(exited(6, 3), exited(5, 2), [("started", "inferred", 6), ("exited", "live", 6)], id="newer"),
        pytest.param(exited(6, 1), deleted(5, 2), [], id="older than a lost one"),
        pytest.param(
            replace(exited(6, 1), exited_at=None),
            exited(5, 2),
            [("started", "inferred", 6), ("exited", "live", 6)],
            id="of a time unknown",
        ),
        pytest.param(
            exited(6, 1),
            replace(exited(5, 2), exited_at=None),
            [("started", "inferred", 6), ("exited", "live", 6)],
            id="and a life's end of a time unknown",
        ),
    ],
)
def test_an_exit_that_waits_while_a_life_ends_is_a_newer_lifes_unless_it_is_the_older_exit(
    held: TaskExited, end: ContainerEvent, expected: Told
) -> None:
    tracker = following()
    step(tracker, held, moment(3))
    assert len(step(tracker, end, moment(4))) == 1
    assert told(tracker.expire(moment(33))) == expected
    assert step(tracker, held, moment(40)) == []
    assert tracker.next_due() is None


def test_an_oom_event_after_the_exit_is_not_the_next_lifes() -> None:
    tracker = following()
    step(tracker, exited(5, 1))
    tracker.step(TaskOOM(WEB, wall(2)), moment(2))
    step(tracker, started(6, 3))
    ending = tracker.step(exited(6, 4), moment(4))[0].ending
    assert ending is not None
    assert ending.oom is False
