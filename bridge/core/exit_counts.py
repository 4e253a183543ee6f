"""Counts of published exits by namespace and status: bounded in number, and kept across restarts by the checkpoint."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple, TypeAlias

from msgspec import Struct

from bridge.core.container_state import ExitInfo, Transition
from bridge.core.time import SECOND

MAX_NAMESPACES = 100
IDLE_NS = 24 * 3600 * SECOND
OTHER = "other"
# Success, failure, failure of Go and shell programs, SIGKILL, SIGSEGV, SIGTERM; other statuses share one count.
STATUSES = ("0", "1", "2", "137", "139", "143", OTHER, "unknown")
_INDEX: dict[int | None, int] = {int(each): index for index, each in enumerate(STATUSES) if each.isdigit()}
_INDEX[None] = STATUSES.index("unknown")
_OTHER_INDEX = STATUSES.index(OTHER)
_NAME = re.compile(r"[A-Za-z0-9._-]{0,76}")  # containerd's rule, which is wider than that of Kubernetes


class ExitNamespace(NamedTuple):
    """containerd's namespace and, for a container of a pod, that of the pod; otherwise ""."""

    containerd: str
    pod: str


class NamespaceExits(Struct, frozen=True, array_like=True):
    """Exits in one namespace, by status in the order of ``STATUSES``, and those with an OOM kill.

    ``last_exit_at`` (wall clock): time of the last exit; before the first one, of the first record.
    """

    statuses: tuple[int, ...]
    oom: int
    last_exit_at: int


Exits: TypeAlias = Mapping[ExitNamespace, NamespaceExits]
_OTHERS = ExitNamespace(OTHER, OTHER)


class ExitCounts:
    """Count the exits among published records.

    A namespace is listed from the first record of its containers on, so that its counts begin with 0. Beyond
    ``MAX_NAMESPACES``, it takes the place of the namespace that has had no exit for the longest time, if that is more
    than ``IDLE_NS``; otherwise its exits are counted as ``other``, like those in namespaces with invalid names.

    ``persisted``: the counts that no restart sets back, which are those to expose.
    """

    def __init__(self) -> None:
        self.persisted: Exits = {}
        self._counts: dict[ExitNamespace, NamespaceExits] = {}
        self._unpersisted: Exits | None = None
        self._changed = False
        self._full_until = 0  # wall clock; no place is free before

    def restore(self, persisted: Exits) -> None:
        """Continue with the counts of an earlier process."""
        self.persisted, self._counts = persisted, dict(persisted)

    def count(self, transitions: Iterable[Transition]) -> None:
        """Count the exits among transitions and snapshot records."""
        for each in transitions:
            pod = None if each.metadata is None else each.metadata.pod
            namespace = ExitNamespace(each.key.namespace, "" if pod is None else pod.namespace)
            if namespace not in self._counts:
                namespace = self._list(namespace, each.at)
            if each.type == "exited":
                self._count_exit(namespace, each.exit_info or ExitInfo(), each.at)

    def unpersisted(self) -> Exits | None:
        """Return the counts, to be persisted with the records that they count; None if they have not changed."""
        if self._changed:
            self._changed, self._unpersisted = False, dict(self._counts)
        return self._unpersisted

    def expose(self, persisted: Exits) -> None:
        """Expose counts that have been persisted."""
        self.persisted = persisted
        if self._unpersisted is persisted:
            self._unpersisted = None

    def _count_exit(self, namespace: ExitNamespace, exit_info: ExitInfo, at: int) -> None:
        self._changed = True
        before = self._counts[namespace]
        statuses = list(before.statuses)
        statuses[_INDEX.get(exit_info.status, _OTHER_INDEX)] += 1
        self._counts[namespace] = NamespaceExits(tuple(statuses), before.oom + (exit_info.oom is True), at)

    def _list(self, namespace: ExitNamespace, at: int) -> ExitNamespace:
        """List a namespace, or ``other`` in its place; return the one that is listed."""
        if not all(map(_NAME.fullmatch, namespace)) or not self._has_place(at):
            namespace = _OTHERS
        if namespace not in self._counts:
            self._changed = True
            self._counts[namespace] = NamespaceExits((0,) * len(STATUSES), 0, at)
        return namespace

    def _has_place(self, at: int) -> bool:
        """Return whether another namespace can be listed; if necessary, forget one that is idle."""
        if len(self._counts) < MAX_NAMESPACES:
            return True
        if at <= self._full_until:
            return False
        oldest = min(self._counts, key=lambda each: self._counts[each].last_exit_at)
        self._full_until = self._counts[oldest].last_exit_at + IDLE_NS
        if at <= self._full_until:
            return False
        del self._counts[oldest]
        return True
