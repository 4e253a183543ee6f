"""Which container a person means: by display id, by nerdctl name, or by the beginning of an id."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bridge.core.errors import AmbiguousError, NotFoundError
from bridge.core.identity import display_id, parse_display_id
from bridge.core.model import Metadata

_LISTED = 10  # candidates; more than that helps nobody to choose


def resolve(name_or_id: str, records: Iterable[Metadata]) -> Metadata:
    """Return the one record that is meant.

    ``NAMESPACE/`` in front confines the search to that namespace. A display id in full comes first (so a bare id means
    namespace ``default``), then ids and nerdctl names in full, then beginnings of ids.

    Raises:
        NotFoundError: Nothing fits.
        AmbiguousError: Several fit equally well.
    """
    wanted = parse_display_id(name_or_id)
    scope = [record for record in records if "/" not in name_or_id or record.key.namespace == wanted.namespace]
    rules: tuple[Callable[[Metadata], bool], ...] = (
        lambda record: record.key == wanted,
        lambda record: wanted.id in (record.key.id, record.name),
        lambda record: bool(wanted.id) and record.key.id.startswith(wanted.id),
    )
    for fits in rules:
        found = [record for record in scope if fits(record)]
        if found:
            return _only(name_or_id, found)
    raise NotFoundError(f"there is no container {name_or_id!r}: give an id, the beginning of one, or a nerdctl name")


def _only(name_or_id: str, found: Sequence[Metadata]) -> Metadata:
    if len(found) == 1:
        return found[0]
    candidates = ", ".join(sorted(map(_candidate, found))[:_LISTED])
    more = f" and {len(found) - _LISTED} more" if len(found) > _LISTED else ""
    raise AmbiguousError(
        f"{name_or_id!r} fits {len(found)} containers: {candidates}{more}: give a longer id, or NAMESPACE/ID"
    )


def _candidate(record: Metadata) -> str:
    id_ = display_id(record.key)
    return id_ if record.name == record.key.id else f"{id_} ({record.name})"
