"""Additional events: created, deleted, renamed and oom. test_properties.py covers that they affect no other record."""

from __future__ import annotations

import pytest

from bridge.core.container_state import Transition
from bridge.core.containerd_model import ContainerCreated, ContainerDeleted, ContainerEvent, ContainerUpdated, TaskOOM
from bridge.core.reconcile import Listing, reconcile, reevaluate_scope
from bridge.core.tracker import Tracker
from tests.unit.core.factories import (
    BOOT_ID,
    DB,
    WEB,
    ImmediateTracker,
    exited,
    make_metadata,
    moment,
    started,
    summarize,
    task,
    wall,
)
from tests.unit.core.harness import ADDITIONAL_EVENTS

CREATED = ContainerCreated(WEB, wall(1), "busybox", "runc")
RENAMED = ContainerUpdated(WEB, wall(2), "busybox", {})
DELETED = ContainerDeleted(WEB, wall(3))
OOM = TaskOOM(WEB, wall(2.5))


def make_tracker(*additional_events: str) -> Tracker:
    tracker = ImmediateTracker(BOOT_ID, additional_events or ADDITIONAL_EVENTS)  # type: ignore[arg-type]
    tracker.mark_synced(set())
    return tracker


def step(tracker: Tracker, *events: ContainerEvent, name: str = "", in_scope: bool = True) -> list[Transition]:
    tracker.update_metadata(make_metadata(name=name, in_scope=in_scope))
    return [each for event in events for each in tracker.process_event(event, moment(10))]


def listing(name: str = "", created_at: int = 1) -> Listing:
    """Return a listing of one container, or of none."""
    containers = [make_metadata(name=name, created_at=created_at)] if name else []
    return Listing(namespaces=["shop"], containers={metadata.key: metadata for metadata in containers})


def test_every_container_deleted_in_gap_is_published() -> None:
    tracker = make_tracker()
    for key in (WEB, DB):
        tracker.update_metadata(make_metadata(key))
        tracker.emit_metadata_change(key, moment(1))
    tracker.disconnect()
    deleted = reconcile(tracker, listing(), moment(10))
    assert [(each.type, each.key) for each in deleted] == [("deleted", WEB), ("deleted", DB)]


def test_additional_events_follow_container_lifecycle() -> None:
    tracker = make_tracker()
    assert summarize(step(tracker, CREATED)) == [("created", "live", 0)]
    assert summarize(step(tracker, started(5, 1.5))) == [("started", "live", 5)]
    (renamed,) = step(tracker, RENAMED, name="shop-web-1")
    assert (renamed.type, renamed.origin, renamed.at, renamed.pid) == ("renamed", "live", wall(2), 5)
    assert renamed.incarnation
    assert renamed.metadata is not None
    assert renamed.metadata.name == "shop-web-1"
    assert summarize(tracker.process_event(OOM, moment(10))) == [("oom", "live", 5)]
    assert summarize(tracker.process_event(exited(5, 2.7), moment(10))) == [("exited", "live", 5)]
    (deleted,) = tracker.process_event(DELETED, moment(10))
    assert (deleted.type, deleted.origin, deleted.at, deleted.pid, deleted.incarnation) == (
        "deleted",
        "live",
        wall(3),
        0,
        "",
    )
    assert deleted.metadata == renamed.metadata


def test_additional_events_are_emitted_only_when_enabled() -> None:
    tracker = make_tracker("renamed")
    assert summarize(step(tracker, CREATED, OOM, RENAMED, DELETED)) == []
    assert summarize(step(tracker, CREATED)) == []
    assert summarize(step(tracker, RENAMED, name="other")) == [("renamed", "live", 0)]
    tracker.additional_events = [*tracker.additional_events, "deleted"]
    assert summarize(tracker.process_event(DELETED, moment(11))) == [("deleted", "live", 0)]


def test_renamed_is_not_emitted_when_name_is_unchanged() -> None:
    tracker = make_tracker()
    step(tracker, CREATED)
    assert step(tracker, RENAMED, CREATED) == []


def test_out_of_scope_container_has_no_additional_events() -> None:
    assert step(make_tracker(), CREATED, OOM, DELETED, in_scope=False) == []


def test_additional_events_use_scope_of_incarnation() -> None:
    tracker = make_tracker()
    assert summarize(step(tracker, started(5, 1))) == [("started", "live", 5)]
    assert summarize(step(tracker, OOM, in_scope=False)) == [("oom", "live", 5)]


def test_oom_of_unknown_container_has_no_metadata() -> None:
    (oom,) = make_tracker().process_event(OOM, moment(10))
    assert (oom.type, oom.metadata, oom.pid, oom.incarnation) == ("oom", None, 0, "")


def test_oom_before_snapshot_record_has_no_incarnation() -> None:
    tracker = ImmediateTracker(BOOT_ID, ADDITIONAL_EVENTS)
    tracker.update_metadata(make_metadata())
    tracker.apply_task_state(WEB, task(5), moment(1))
    assert summarize(tracker.process_event(OOM, moment(10))) == [("oom", "live", 0)]


def test_recreated_container_emits_deleted_and_created() -> None:
    tracker = make_tracker()
    step(tracker, CREATED)
    tracker.update_metadata(make_metadata(created_at=2))
    assert summarize(tracker.process_event(CREATED, moment(10))) == [
        ("deleted", "inferred", 0),
        ("created", "live", 0),
    ]


def test_metadata_fetched_later_belongs_to_same_container() -> None:
    tracker = make_tracker()
    tracker.update_metadata(make_metadata(created_at=None))
    assert summarize(tracker.process_event(CREATED, moment(10))) == [("created", "live", 0)]
    assert step(tracker, RENAMED) == []


def test_first_listing_emits_no_created() -> None:
    tracker = ImmediateTracker(BOOT_ID, ADDITIONAL_EVENTS)
    assert summarize(reconcile(tracker, listing("web"), moment(10))) == []
    tracker.mark_synced(set())
    assert summarize(tracker.process_event(DELETED, moment(11))) == [("deleted", "live", 0)]
    assert summarize(tracker.process_event(DELETED, moment(12))) == []


def test_additional_events_missed_in_gap_are_inferred() -> None:
    tracker = make_tracker()
    assert summarize(reconcile(tracker, listing("web"), moment(10))) == [("created", "inferred", 0)]
    assert summarize(reconcile(tracker, listing("other"), moment(20))) == [("renamed", "inferred", 0)]
    recreated = reconcile(tracker, listing("web", created_at=2), moment(30))
    assert summarize(recreated) == [("deleted", "inferred", 0), ("created", "inferred", 0)]
    assert summarize(reconcile(tracker, listing(), moment(40))) == [("deleted", "inferred", 0)]


def test_deleted_follows_exited_when_both_were_missed() -> None:
    tracker = make_tracker()
    step(tracker, CREATED, started(5, 1.5))
    tracker.disconnect()
    assert summarize(reconcile(tracker, listing(), moment(10))) == []
    (query,) = tracker.due_queries(moment(10))
    assert summarize(tracker.apply_query_result(query, None, moment(11))) == [
        ("exited", "inferred", 5),
        ("deleted", "inferred", 0),
    ]


def test_deleted_is_not_emitted_when_metadata_was_never_known() -> None:
    tracker = make_tracker()
    tracker.process_event(started(5, 1.5), moment(2))
    tracker.disconnect()
    reconcile(tracker, listing(), moment(10))
    (query,) = tracker.due_queries(moment(10))
    assert summarize(tracker.apply_query_result(query, None, moment(11))) == [("exited", "inferred", 5)]


@pytest.mark.parametrize(("created_at", "live"), [(wall(1), []), (wall(20), [("created", "live", 0)])])
def test_created_is_emitted_after_filter_change_unless_listed(
    created_at: int, live: list[tuple[str, str, int]]
) -> None:
    tracker = make_tracker()
    tracker.apply_filters(lambda _: True)
    assert summarize(reevaluate_scope(tracker, listing("web", created_at=created_at), wall(10), moment(21))) == []
    assert summarize(tracker.process_event(CREATED, moment(22))) == live
