"""What lives on a containerd right now, for the commands that look once: asked for over one connection."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from typing import Any, NamedTuple

from bridge.app import boot_id
from bridge.cli.failure import NOT_CONNECTED, Failure
from bridge.containerd.client import ContainerdClient
from bridge.core.encode import Ledger
from bridge.core.errors import BridgeError
from bridge.core.identity import display_id, incarnation
from bridge.core.labels import LabelRules
from bridge.core.lives import Transition
from bridge.core.model import ContainerKey, Engine, Labels, Metadata, Task, TaskStatus
from bridge.core.ports import Source
from config.settings import Settings


class Living(NamedTuple):
    """A container with a task that is not known to have ended."""

    metadata: Metadata
    task: Task
    pod_labels: Labels | None

    @property
    def id(self) -> str:
        """The display id."""
        return display_id(self.task.key)

    @property
    def status(self) -> str:
        """``running``, ``paused``, or ``unknown`` where its shim does not answer."""
        if self.task.status is TaskStatus.UNKNOWN:
            return "unknown"
        return "paused" if self.task.paused else "running"

    def document(self) -> dict[str, Any]:
        """Return the object ``container`` of a record: made by what makes the records, so that it is the same."""
        pid = self.task.pid
        row = Transition(
            type="present",
            origin="snapshot",
            at=0,
            key=self.task.key,
            metadata=self.metadata,
            pod_labels=self.pod_labels,
            pid=pid,
            incarnation=incarnation(boot_id(), pid),
            paused=self.task.paused,
        )
        record = Ledger("", Engine("", "", "", 0), epoch=0).transition(row)
        container: dict[str, Any] = json.loads(record.data)["container"]
        return container


class Listing(NamedTuple):
    """What was found, and why some of it was not."""

    containers: list[Living]
    failures: list[str]


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[ContainerdClient]:
    """Connect to the containerd of ``settings``.

    Raises:
        Failure: That is not possible, or the connection fails later.
    """
    rules = LabelRules(settings.labels.include, settings.labels.exclude, settings.labels.redact)
    client = ContainerdClient(settings.containerd.address, rules)
    try:
        try:
            await client.engine()
        except BridgeError as error:
            raise Failure.to_connect(error) from error
        yield client
    except BridgeError as error:
        raise Failure.of(error) from error
    finally:
        await client.close()


async def list_living(source: Source, watched: Callable[[str], bool], named: Iterable[str]) -> Listing:
    """List what lives in the watched namespaces; those that are ``named`` literally have to exist.

    Raises:
        Failure: A named one does not.
    """
    existing = sorted(await source.namespaces())
    missing = [name for name in named if name not in existing]
    if missing:
        there = ", ".join(existing) or "none"
        raise Failure(*(f"there is no namespace {name!r} on this containerd; there are: {there}" for name in missing))
    listing = Listing([], [])
    for namespace in filter(watched, existing):
        try:
            listing.containers.extend(await _living_in(source, namespace))
        except BridgeError as error:
            listing.failures.append(f"namespace {namespace} is not listed: {error}")
    return listing
