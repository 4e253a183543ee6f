"""Test the counts of published exits: statuses, the limit of namespaces, and what is exposed."""

from __future__ import annotations

import msgspec
import pytest

from bridge.core import checkpoint
from bridge.core.container_state import ExitInfo, Transition
from bridge.core.containerd_model import ContainerKey, Metadata, PodReference
from bridge.core.exit_counts import IDLE_NS, MAX_NAMESPACES, STATUSES, ExitCounts, ExitNamespace, NamespaceExits

OTHERS = ExitNamespace("other", "other")


def record(
    namespace: str = "shop", *, pod: str = "", exit_info: ExitInfo | None = None, at: int = 1, type_: str = "exited"
) -> Transition:
    key = ContainerKey(namespace, "c")
    reference = PodReference("web-1", pod, "uid", "app") if pod else None
    metadata = Metadata(key, "c", "", "", "busybox", "runc", 1, 1, {}, pod=reference)
    return Transition(type_, "live", at, key, metadata, None, 42, "boot-42", False, exit_info)  # type: ignore[arg-type]


def exited(status: int | None = 0, *, oom: bool | None = False, **changed: object) -> Transition:
    return record(exit_info=ExitInfo(status, None, oom), **changed)  # type: ignore[arg-type]


def persist(counts: ExitCounts) -> None:
    exits = counts.unpersisted()
    assert exits is not None
    counts.expose(exits)


def by_status(exits: NamespaceExits) -> dict[str, int]:
    return {name: count for name, count in zip(STATUSES, exits.statuses, strict=True) if count}


@pytest.mark.parametrize(
    ("exit_info", "expected"),
    [
        (ExitInfo(0), "0"),
        (ExitInfo(137), "137"),
        (ExitInfo(3), "other"),
        (ExitInfo(2**32 - 1), "other"),
        (ExitInfo(None), "unknown"),
        (None, "unknown"),
    ],
)
def test_exit_counts_by_status(exit_info: ExitInfo | None, expected: str) -> None:
    counts = ExitCounts()
    counts.count([record(exit_info=exit_info)])
    persist(counts)
    assert by_status(counts.persisted[ExitNamespace("shop", "")]) == {expected: 1}


def test_exit_counts_include_only_known_oom_kills() -> None:
    counts = ExitCounts()
    counts.count([exited(137, oom=True), exited(137, oom=None), exited(137, oom=False)])
    persist(counts)
    assert counts.persisted[ExitNamespace("shop", "")].oom == 1


def test_exit_counts_begin_with_zero_at_first_record() -> None:
    counts = ExitCounts()
    counts.count([record("k8s.io", pod="billing", type_="present")])
    persist(counts)
    assert counts.persisted == {ExitNamespace("k8s.io", "billing"): NamespaceExits((0,) * len(STATUSES), 0, 1)}
    counts.count([record("k8s.io", pod="billing", type_="started")])
    assert counts.unpersisted() is None


def test_exit_counts_are_exposed_when_persisted() -> None:
    counts = ExitCounts()
    counts.count([exited()])
    first = counts.unpersisted()
    assert first is not None
    assert counts.unpersisted() is first  # the transaction was interrupted
    counts.count([exited()])
    assert counts.persisted == {}
    counts.expose(first)
    assert by_status(counts.persisted[ExitNamespace("shop", "")]) == {"0": 1}
    persist(counts)
    assert by_status(counts.persisted[ExitNamespace("shop", "")]) == {"0": 2}
    assert counts.unpersisted() is None


@pytest.mark.parametrize("pod", ["x" * 77, 'a"b', "a\nb", "a\0b", "ä", "a/b"])
def test_exit_counts_of_invalid_namespace_are_others(pod: str) -> None:
    counts = ExitCounts()
    counts.count([exited(pod=pod), exited(pod=pod)])
    persist(counts)
    assert {name: by_status(each) for name, each in counts.persisted.items()} == {OTHERS: {"0": 2}}


def test_exit_counts_are_limited_to_busy_namespaces() -> None:
    counts = ExitCounts()
    counts.count(exited(namespace=f"n{number}", at=number) for number in range(MAX_NAMESPACES))
    counts.count(exited(namespace=f"more{number}", at=IDLE_NS) for number in range(3))
    persist(counts)
    assert len(counts.persisted) == MAX_NAMESPACES + 1
    assert by_status(counts.persisted[OTHERS]) == {"0": 3}
    assert sum(sum(each.statuses) for each in counts.persisted.values()) == MAX_NAMESPACES + 3


def test_exit_counts_replace_the_namespace_idle_for_longest() -> None:
    counts = ExitCounts()
    counts.count(exited(namespace=f"n{number}", at=number) for number in range(MAX_NAMESPACES))
    counts.count(
        [
            exited(namespace="n0", at=200),
            exited(namespace="more", at=IDLE_NS + 1),
            exited(namespace="new", at=IDLE_NS + 2),
        ]
    )
    persist(counts)
    names = {namespace.containerd for namespace in counts.persisted}
    assert len(names) == MAX_NAMESPACES + 1
    assert "n1" not in names
    assert {"n0", "n2", "new", "other"} <= names


def test_exit_counts_continue_from_checkpoint() -> None:
    before, after = ExitCounts(), ExitCounts()
    before.count([exited(3, pod="billing"), exited(137, oom=True), record("idle", type_="present")])
    persist(before)
    after.restore(checkpoint.decode({checkpoint.EXITS_KEY: checkpoint.encode_exits(before.persisted)}).exits)
    assert after.persisted == before.persisted
    after.count([exited(137)])
    assert after.persisted == before.persisted
    persist(after)
    assert by_status(after.persisted[ExitNamespace("shop", "")]) == {"137": 2}
    assert by_status(after.persisted[ExitNamespace("shop", "billing")]) == {"other": 1}


def test_exit_counts_of_version_with_other_statuses_are_restored() -> None:
    stored = msgspec.msgpack.encode((("0", "9", "other"), [(("shop", ""), ([3, 4, 5], 1, 7))]))
    exits = checkpoint.decode({checkpoint.EXITS_KEY: stored}).exits[ExitNamespace("shop", "")]
    assert by_status(exits) == {"0": 3, "other": 5}
    assert (exits.oom, exits.last_exit_at) == (1, 7)
