"""The container store as a data structure: entries, tombstones, changes, metadata and pods."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from bridge.core.container_state import ContainerState, Incarnation, PendingExit, TaskState
from bridge.core.container_store import MAX_TOMBSTONES, ContainerStore
from bridge.core.containerd_model import ContainerKey, Labels, PodReference
from bridge.core.label_rules import LabelRules
from tests.unit.core.factories import DB, WEB, exited, make_metadata

POD = PodReference("web-1", "prod", "uid-1", "app")
PAUSE = ContainerKey("k8s.io", "pause")
APP = ContainerKey("k8s.io", "app")


def changes(store: ContainerStore) -> dict[str, tuple[bool, bool]]:
    """Return by id whether the container is still known, and whether its metadata has changed."""
    return {change.key.id: (change.entry is not None, change.metadata_changed) for change in store.changes()}


def test_tombstone_is_revived_with_its_state() -> None:
    store = ContainerStore()
    entry = store.get_or_create(WEB)
    store.note_change(entry)
    assert (list(store.entries()), store.find(WEB)) == ([], entry)
    store.update_metadata(make_metadata())
    assert list(store.entries()) == [entry]


@pytest.mark.parametrize(
    "reason",
    [
        {"metadata": make_metadata()},
        {"incarnation": Incarnation(5, "x-5", False, in_scope=True)},
        {"state": TaskState(unknown=True)},
        {"state": TaskState(evidence=(PendingExit(5, exited(5, 1), 0),))},
    ],
    ids=["exists", "running", "unknown", "pending exit"],
)
def test_container_is_no_tombstone_while_it_matters(reason: dict[str, object]) -> None:
    store = ContainerStore()
    store.add(ContainerState(WEB, **reason), persisted=True)  # type: ignore[arg-type]
    (entry,) = store.entries()
    store.note_change(entry)
    assert list(store.entries()) == [entry]


def test_oldest_tombstone_is_evicted_when_limit_is_reached() -> None:
    store = ContainerStore()
    ids = [ContainerKey("shop", str(number)) for number in range(MAX_TOMBSTONES + 1)]
    for key in ids:
        store.note_change(store.get_or_create(key))
        if key == ids[-2]:
            store.note_change(store.get_or_create(ids[0]))
    assert [store.find(key) is not None for key in (ids[0], ids[1], ids[2], ids[-1])] == [True, False, True, True]
    assert list(store.entries()) == []
    assert changes(store)["1"] == (False, True)


def test_changes_are_returned_once() -> None:
    store = ContainerStore()
    store.update_metadata(make_metadata())
    store.note_change(store.get_or_create(WEB))
    assert store.changed
    assert changes(store) == {"web": (True, True)}
    store.update_metadata(make_metadata())
    assert not store.changed
    store.note_change(store.get_or_create(WEB))
    assert changes(store) == {"web": (True, False)}
    assert store.remove_all(lambda key: key == WEB) == [WEB]
    assert changes(store) == {"web": (False, True)}


def test_namespace_is_synced_only_after_completed_snapshot() -> None:
    store = ContainerStore()
    assert not store.has_synced("shop")
    store.mark_synced({"shop", "lab"})
    assert (store.has_synced("default"), store.has_synced("shop")) == (True, False)
    store.mark_synced({"shop", "default"})
    assert [store.has_synced(each) for each in ("default", "shop", "lab")] == [True, False, True]
    store.mark_synced(set())
    assert store.has_synced("shop")


def test_metadata_update_keeps_fields_missing_from_event() -> None:
    store = ContainerStore()
    store.update_metadata(make_metadata())
    store.update_metadata(make_metadata(labels={"tier": "back"}, runtime="", created_at=None, updated_at=7))
    store.update_metadata(make_metadata(DB, runtime="", created_at=None))
    assert [entry.metadata for entry in store.entries()] == [
        make_metadata(labels={"tier": "back"}, updated_at=7),
        make_metadata(DB, runtime="", created_at=None),
    ]


def test_pod_labels_come_from_sandbox_until_sandbox_is_deleted() -> None:
    store = ContainerStore()
    app = make_metadata(APP, pod=POD)
    store.update_metadata(app)
    assert store.pod_labels(app) is None
    store.update_metadata(make_metadata(PAUSE, kind="sandbox", pod=POD, pod_labels={"app": "web"}))
    labels: list[Labels | None] = []
    for key in (ContainerKey("k8s.io", "other"), APP, PAUSE):
        store.set_deleted(store.get_or_create(key))
        labels.append(store.pod_labels(app))
    assert labels == [{"app": "web"}, {"app": "web"}, None]


def test_pod_labels_come_from_cri_without_sandbox() -> None:
    store, app = ContainerStore(), make_metadata(APP, pod=POD, pod_labels={"app": "web", "token": "x"})
    store.update_metadata(app)
    store.update_metadata(replace(app, updated_at=9, pod_labels=None))  # CRI has not responded
    entry = store.get_or_create(APP)
    assert entry.metadata is not None
    assert store.pod_labels(entry.metadata) == {"app": "web", "token": "x"}
    store.apply_label_rules(LabelRules(("*",), ("token",), ()))
    assert store.pod_labels(entry.metadata) == {"app": "web"}
    store.update_metadata(replace(app, pod=replace(POD, uid="another"), pod_labels=None))
    assert store.pod_labels(entry.metadata) is None


def test_sandbox_without_pod_has_no_pod_labels() -> None:
    store, sandbox = ContainerStore(), make_metadata(PAUSE, kind="sandbox", pod_labels={"app": "web"})
    store.update_metadata(sandbox)
    assert store.pod_labels(sandbox) is None
