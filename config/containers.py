"""Which containers are published."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

Globs = tuple[Iterable[str], Iterable[str]]
"""What to let in, and what to leave out all the same."""


class ContainerFilter:
    """Decides by plain values; pure, and a plain callable to those who ask.

    A container is published if it is of one of ``kinds``, and ``names``, ``projects`` and ``labels`` all let it
    through: a glob of what they let in fits, and none of what they leave out does. ``names`` is about the nerdctl
    name and the id; ``labels`` has conditions, ``KEY`` or ``KEY=VALUE``, of which both may be globs, and lets all
    labels through where it names none to let in. What is not known of a container is empty.
    """

    def __init__(
        self,
        kinds: Iterable[str] = ("container",),
        names: Globs = (("*",), ()),
        projects: Globs = (("*",), ()),
        labels: Globs = ((), ()),
    ) -> None:
        self._kinds = frozenset(kinds)
        self._names = (tuple(names[0]), tuple(names[1]))
        self._projects = (tuple(projects[0]), tuple(projects[1]))
        self._wanted = tuple(map(_condition, labels[0]))
        self._unwanted = tuple(map(_condition, labels[1]))

    def __call__(
        self, *, kind: str, name: str, project: str, labels: Mapping[str, str] | None = None, id: str = ""
    ) -> bool:
        """Tell whether such a container is published."""
        labels = labels or {}
        return (
            kind in self._kinds
            and _lets_through(self._names, name, id or name)
            and _lets_through(self._projects, project)
            and (not self._wanted or _fits(labels, self._wanted))
            and not _fits(labels, self._unwanted)
        )


def _lets_through(globs: tuple[tuple[str, ...], tuple[str, ...]], *values: str) -> bool:
    include, exclude = globs
    return _any(include, values) and not _any(exclude, values)


def _any(globs: Iterable[str], values: Iterable[str]) -> bool:
    return any(fnmatchcase(value, glob) for glob in globs for value in values)


def _condition(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    return key, value if equals else "*"


def _fits(labels: Mapping[str, str], conditions: Iterable[tuple[str, str]]) -> bool:
    return any(
        fnmatchcase(key, wanted_key) and fnmatchcase(value, wanted_value)
        for wanted_key, wanted_value in conditions
        for key, value in labels.items()
    )
