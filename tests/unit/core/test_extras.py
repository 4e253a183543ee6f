"""Extras: what becomes of records, and OOM; that lives are told the same with them is in test_properties.py."""

from __future__ import annotations

import pytest

from bridge.core.labels import LabelRules
from bridge.core.lives import Transition
from bridge.core.model import ContainerCreated, ContainerDeleted, ContainerEvent, ContainerUpdated, TaskOOM
from bridge.core.reconcile import Listing, reconcile, rescope
from bridge.core.tracker import Tracker
from tests.unit.core.follower import EXTRAS
from tests.unit.core.made import BOOT, WEB, exited, moment, record, started, task, told, wall

MADE = ContainerCreated(WEB, wall(1), "busybox", "runc")
RENAMED = ContainerUpdated(WEB, wall(2), "busybox", {})
GONE = ContainerDeleted(WEB, wall(3))
OOM = TaskOOM(WEB, wall(2.5))


def tracker(*extras: str) -> Tracker:
    made = Tracker(BOOT, extras or EXTRAS)  # type: ignore[arg-type]
    made.complete(set())
    return made


def step(follower: Tracker, *events: ContainerEvent, name: str = "", in_scope: bool = True) -> list[Transition]:
    follower.learn(record(name=name, in_scope=in_scope))
    return [each for event in events for each in follower.step(event, moment(10))]


def listing(name: str = "", created_at: int = 1) -> Listing:
    """A listing of one record, or of none."""
    records = [record(name=name, created_at=created_at)] if name else []
    return Listing(namespaces=["shop"], containers={each.key: each for each in records})


def test_a_record_s_way_is_told_as_events_tell_it() -> None:
    follower = tracker()
    assert told(step(follower, MADE)) == [("created", "live", 0)]
    assert told(step(follower, started(5, 1.5))) == [("started", "live", 5)]
    (renamed,) = step(follower, RENAMED, name="shop-web-1")
    assert (renamed.type, renamed.origin, renamed.at, renamed.pid) == ("renamed", "live", wall(2), 5)
    assert renamed.incarnation
    assert renamed.metadata is not None
    assert renamed.metadata.name == "shop-web-1"
    assert told(follower.step(OOM, moment(10))) == [("oom", "live", 5)]
    assert told(follower.step(exited(5, 2.7), moment(10))) == [("exited", "live", 5)]
    (deleted,) = follower.step(GONE, moment(10))
    assert (deleted.type, deleted.origin, deleted.at, deleted.pid, deleted.incarnation) == (
        "deleted",
        "live",
        wall(3),
        0,
        "",
    )
    assert deleted.metadata == renamed.metadata


def test_nothing_is_told_that_was_not_asked_for() -> None:
    follower = tracker("renamed")
    assert told(step(follower, MADE, OOM, RENAMED, GONE)) == []
    assert told(step(follower, MADE)) == []
    assert told(step(follower, RENAMED, name="other")) == [("renamed", "live", 0)]


def test_an_update_that_leaves_the_name_is_none() -> None:
    follower = tracker()
    step(follower, MADE)
    assert step(follower, RENAMED, MADE) == []


def test_what_is_out_of_scope_has_no_extras() -> None:
    assert step(tracker(), MADE, OOM, GONE, in_scope=False) == []


def test_the_scope_of_a_life_is_that_of_its_extras() -> None:
    follower = tracker()
    assert told(step(follower, started(5, 1))) == [("started", "live", 5)]
    assert told(step(follower, OOM, in_scope=False)) == [("oom", "live", 5)]


def test_an_oom_of_what_nobody_knows_is_told_without_a_record() -> None:
    (oom,) = tracker().step(OOM, moment(10))
    assert (oom.type, oom.metadata, oom.pid, oom.incarnation) == ("oom", None, 0, "")


def test_a_life_that_no_row_has_told_yet_is_not_named() -> None:
    follower = Tracker(BOOT, EXTRAS)
    follower.learn(record())
    follower.settle(WEB, task(5), moment(1))
    assert told(follower.step(OOM, moment(10))) == [("oom", "live", 0)]


def test_a_record_that_was_made_anew_unseen_is_another_one() -> None:
    follower = tracker()
    step(follower, MADE)
    follower.learn(record(created_at=2))
    assert told(follower.step(MADE, moment(10))) == [("deleted", "inferred", 0), ("created", "live", 0)]


def test_a_record_that_could_not_be_read_at_first_is_the_same_one() -> None:
    follower = tracker()
    follower.learn(record(created_at=None))
    assert told(follower.step(MADE, moment(10))) == [("created", "live", 0)]
    assert step(follower, RENAMED) == []


def test_the_first_listing_tells_nothing_of_records_and_of_their_end_later_on() -> None:
    follower = Tracker(BOOT, EXTRAS)
    assert told(reconcile(follower, listing("web"), moment(10))) == []
    follower.complete(set())
    assert told(follower.step(GONE, moment(11))) == [("deleted", "live", 0)]
    assert told(follower.step(GONE, moment(12))) == []


def test_a_gap_s_changes_are_inferred() -> None:
    follower = tracker()
    assert told(reconcile(follower, listing("web"), moment(10))) == [("created", "inferred", 0)]
    assert told(reconcile(follower, listing("other"), moment(20))) == [("renamed", "inferred", 0)]
    again = reconcile(follower, listing("web", created_at=2), moment(30))
    assert told(again) == [("deleted", "inferred", 0), ("created", "inferred", 0)]
    assert told(reconcile(follower, listing(), moment(40))) == [("deleted", "inferred", 0)]


def test_a_record_that_went_with_its_life_is_told_after_the_life_s_end() -> None:
    follower = tracker()
    step(follower, MADE, started(5, 1.5))
    follower.disconnect()
    assert told(reconcile(follower, listing(), moment(10))) == []
    (question,) = follower.due_questions(moment(10))
    assert told(follower.answer(question, None, moment(11))) == [("exited", "inferred", 5), ("deleted", "inferred", 0)]


def test_a_life_whose_record_was_never_known_has_none_to_lose() -> None:
    follower = tracker()
    follower.step(started(5, 1.5), moment(2))
    follower.disconnect()
    reconcile(follower, listing(), moment(10))
    (question,) = follower.due_questions(moment(10))
    assert told(follower.answer(question, None, moment(11))) == [("exited", "inferred", 5)]


@pytest.mark.parametrize(("created_at", "live"), [(wall(1), []), (wall(20), [("created", "live", 0)])])
def test_other_filters_leave_records_to_their_events_that_are_younger_than_the_listing(
    created_at: int, live: list[tuple[str, str, int]]
) -> None:
    follower = tracker()
    follower.restrict(lambda _: True, LabelRules.keep_all())
    assert told(rescope(follower, listing("web", created_at=created_at), wall(10), moment(21))) == []
    assert told(follower.step(MADE, moment(22))) == live
