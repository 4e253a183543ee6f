"""Lookup of a container by display id, nerdctl name, or unique id prefix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from bridge.core.container_metadata import display_id, parse_display_id
from bridge.core.containerd_model import Metadata
from bridge.core.errors import AmbiguousError, NotFoundError

_MAX_CANDIDATES = 10  # candidates in an error message


def resolve(name_or_id: str, containers: Iterable[Metadata]) -> Metadata:
    """Return the metadata of the one container that matches.

    A prefix ``NAMESPACE/`` limits the search to that namespace. A complete display id has precedence (so a bare id is
    one in namespace ``default``), then complete ids and nerdctl names, then prefixes of ids.

    Raises:
        NotFoundError: No container matches.
        AmbiguousError: Several containers match equally well.
    """
    wanted = parse_display_id(name_or_id)
    any_namespace = "/" not in name_or_id
    searched = [each for each in containers if any_namespace or each.key.namespace == wanted.namespace]
    rules: tuple[Callable[[Metadata], bool], ...] = (
        lambda container: container.key == wanted,
        lambda container: wanted.id in (container.key.id, container.name),
        lambda container: bool(wanted.id) and container.key.id.startswith(wanted.id),
    )
    for is_match in rules:
        matches = [container for container in searched if is_match(container)]
        if matches:
            return _single_match(name_or_id, matches)
    raise NotFoundError(f"container {name_or_id!r} not found; use an id, an id prefix, or a nerdctl name")


def _single_match(name_or_id: str, matches: Sequence[Metadata]) -> Metadata:
    if len(matches) == 1:
        return matches[0]
    candidates = ", ".join(sorted(map(_format_candidate, matches))[:_MAX_CANDIDATES])
    more = f" and {len(matches) - _MAX_CANDIDATES} more" if len(matches) > _MAX_CANDIDATES else ""
    raise AmbiguousError(
        f"{name_or_id!r} matches {len(matches)} containers: {candidates}{more}; use a longer id, or NAMESPACE/ID"
    )


def _format_candidate(metadata: Metadata) -> str:
    id_ = display_id(metadata.key)
    return id_ if metadata.name == metadata.key.id else f"{id_} ({metadata.name})"
