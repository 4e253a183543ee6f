"""Filters for the records that ``tail`` shows. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import NamedTuple

from bridge.consumer.record_decoder import DecodedRecord

_SECOND_LENGTH = len("2026-11-23T15:21:08")

Globs = Sequence[str] | None


class RecordFilter(NamedTuple):
    """Matches records by globs; a filter that is not set matches everything."""

    namespaces: Globs = None
    excluded_namespaces: Globs = None
    projects: Globs = None
    containers: Globs = None
    hosts: Globs = None
    types: Globs = None
    since: datetime | None = None

    def __call__(self, record: DecodedRecord) -> bool:
        """Return whether a record matches all filters."""
        if self.since is not None and record.timestamp[:_SECOND_LENGTH] < _format_timestamp(self.since):
            return False
        if record.type == "heartbeat" and not self.types:
            return False
        return (
            _matches(self.hosts, record.host) and _matches(self.types, record.type) and self._matches_container(record)
        )

    def _matches_container(self, record: DecodedRecord) -> bool:
        container = record.container
        if container is None:  # a loss may affect matching containers
            return record.type == "lost" or not (self.namespaces or self.projects or self.containers)
        return (
            _matches(self.namespaces, container.namespace)
            and not (self.excluded_namespaces and _matches(self.excluded_namespaces, container.namespace))
            and _matches(self.projects, container.project)
            and _matches(self.containers, container.name, container.id, record.id or "")
        )


def _format_timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S")


def _matches(globs: Globs, *values: str) -> bool:
    return not globs or any(fnmatchcase(value, glob) for glob in globs for value in values)
