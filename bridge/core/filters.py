"""Which namespaces are watched and which containers are published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Protocol

from bridge.core.containerd_model import Labels

DOCKER_NAMESPACE = "moby"
IncludeExclude = tuple[Iterable[str], Iterable[str]]
"""Globs to include, and globs to exclude."""


class ContainerPredicate(Protocol):
    """The container filter: selects the containers to publish; ``labels`` are all labels of the container."""

    def __call__(self, *, kind: str, name: str, project: str, labels: Labels, id: str) -> bool:
        """Return whether the container is in scope."""


def match_all(**_: object) -> bool:
    """Match every container."""
    return True


class NamespaceFilter:
    """Match namespaces by globs: one of ``include`` must match, and none of ``exclude``.

    Docker's namespace ``moby`` is excluded as well, because Docker's own API provides more, unless ``include``
    contains it literally.
    """

    def __init__(self, include: Iterable[str] = ("*",), exclude: Iterable[str] = ()) -> None:
        self._include = tuple(include)
        self._exclude = tuple(exclude)
        if DOCKER_NAMESPACE not in self._include:
            self._exclude += (DOCKER_NAMESPACE,)

    def __call__(self, namespace: str) -> bool:
        """Return whether ``namespace`` is watched."""
        return _matches_any(self._include, namespace) and not _matches_any(self._exclude, namespace)


class ContainerFilter:
    """Match containers by kind, name, compose project and labels; all of them must match.

    A glob of the included ``names`` (``projects``) must match, and none of the excluded ones. ``names`` matches the
    nerdctl name or the id. ``labels`` holds selectors, ``KEY`` or ``KEY=VALUE``, both of them globs; without an
    included selector every container matches. An unknown property of a container is empty.
    """

    def __init__(
        self,
        kinds: Iterable[str] = ("container",),
        names: IncludeExclude = (("*",), ()),
        projects: IncludeExclude = (("*",), ()),
        labels: IncludeExclude = ((), ()),
    ) -> None:
        self._kinds = frozenset(kinds)
        self._names = _parse_globs(names)
        self._projects = _parse_globs(projects)
        self._included_labels = tuple(map(_parse_selector, labels[0]))
        self._excluded_labels = tuple(map(_parse_selector, labels[1]))

    def __call__(
        self, *, kind: str, name: str, project: str, labels: Mapping[str, str] | None = None, id: str = ""
    ) -> bool:
        """Return whether such a container is published."""
        labels = labels or {}
        return (
            kind in self._kinds
            and (self._names is None or _is_included(self._names, name, id or name))
            and (self._projects is None or _is_included(self._projects, project))
            and (not self._included_labels or _has_label(labels, self._included_labels))
            and not (self._excluded_labels and _has_label(labels, self._excluded_labels))
        )


def _parse_globs(globs: IncludeExclude) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return included and excluded globs; None if they match everything."""
    include, exclude = tuple(globs[0]), tuple(globs[1])
    return None if "*" in include and not exclude else (include, exclude)


def _is_included(globs: tuple[tuple[str, ...], tuple[str, ...]], *values: str) -> bool:
    include, exclude = globs
    return _matches_any(include, *values) and not _matches_any(exclude, *values)


def _matches_any(globs: tuple[str, ...], *values: str) -> bool:
    return "*" in globs or any(fnmatchcase(value, glob) for glob in globs for value in values)


def _parse_selector(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    return key, value if equals else "*"


def _has_label(labels: Mapping[str, str], selectors: Iterable[tuple[str, str]]) -> bool:
    return any(
        fnmatchcase(key, key_glob) and fnmatchcase(value, value_glob)
        for key_glob, value_glob in selectors
        for key, value in labels.items()
    )
