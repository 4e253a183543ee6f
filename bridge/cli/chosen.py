"""Filters for the records that ``tail`` shows. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import NamedTuple

from bridge.fleet.documents import Document

_SECOND = len("2026-11-23T15:21:08")

Globs = Sequence[str] | None


class Chosen(NamedTuple):
    """Matches records by globs; a filter that is not set matches everything."""

    namespaces: Globs = None
    excluded: Globs = None
    projects: Globs = None
    containers: Globs = None
    hosts: Globs = None
    types: Globs = None
    since: datetime | None = None

    def __call__(self, document: Document) -> bool:
        """Return whether a record matches all filters."""
        if self.since is not None and document.timestamp[:_SECOND] < _written(self.since):
            return False
        if document.type == "heartbeat" and not self.types:
            return False
        return _fits(self.hosts, document.host) and _fits(self.types, document.type) and self._of_container(document)

    def _of_container(self, document: Document) -> bool:
        container = document.container
        if container is None:  # a loss may affect matching containers
            return document.type == "lost" or not (self.namespaces or self.projects or self.containers)
        return (
            _fits(self.namespaces, container.namespace)
            and not (self.excluded and _fits(self.excluded, container.namespace))
            and _fits(self.projects, container.project)
            and _fits(self.containers, container.name, container.id, document.id or "")
        )


def _written(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _fits(globs: Globs, *values: str) -> bool:
    return not globs or any(fnmatchcase(value, glob) for glob in globs for value in values)
