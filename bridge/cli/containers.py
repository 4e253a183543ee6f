"""What lives on a containerd right now, for the commands that look once: asked for over one connection."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from bridge.app import boot_id
from bridge.cli.failure import NOT_CONNECTED, CommandError
from bridge.containerd.client import ContainerdClient
from bridge.core.encode import Ledger
from bridge.core.errors import BridgeError
from bridge.core.identity import describe, display_id, incarnation
from bridge.core.labels import LabelRules
from bridge.core.lives import Transition
from bridge.core.model import ContainerKey, Engine, Labels, Metadata, Task, TaskStatus
from config.namespaces import NamespaceFilter
from config.settings import Settings

MATCHES_TOLD = 5


class Lists(Protocol):
    """What is needed of a ``Source`` here."""

    async def namespaces(self) -> Sequence[str]:
        """List all namespaces."""

    async def tasks(self, namespace: str) -> Sequence[Task]:
        """List a namespace's tasks."""

    def containers(self, namespace: str) -> AsyncIterator[Metadata]:
        """List a namespace's records."""


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
        CommandError: That is not possible, or the connection fails later.
    """
    rules = LabelRules(settings.labels.include, settings.labels.exclude, settings.labels.redact)
    client = ContainerdClient(settings.containerd.address, rules)
    try:
        try:
            await client.engine()
        except BridgeError as error:
            raise CommandError.to_connect(error) from error
        yield client
    except BridgeError as error:
        raise CommandError.of(error) from error
    finally:
        await client.close()


async def list_living(source: Lists, watched: Callable[[str], bool], named: Iterable[str]) -> Listing:
    """List what lives in the watched namespaces; those that are ``named`` literally have to exist.

    Raises:
        CommandError: A named one does not.
    """
    existing = sorted(await source.namespaces())
    missing = [name for name in named if name not in existing]
    if missing:
        there = ", ".join(existing) or "none"
        raise CommandError(
            *(f"there is no namespace {name!r} on this containerd; there are: {there}" for name in missing)
        )
    listing = Listing([], [])
    for namespace in filter(watched, existing):
        try:
            listing.containers.extend(await _living_in(source, namespace))
        except BridgeError as error:
            listing.failures.append(f"namespace {namespace} is not listed: {error}")
    return listing


async def find(source: Lists, watched: Callable[[str], bool], name_or_id: str) -> Living:
    """Find one living container.

    ``NAMESPACE/...`` looks into that namespace alone, watched or not; anything else into all that are watched.

    Raises:
        CommandError: There is none, there are several, or containerd does not tell.
    """
    namespace, slash, rest = name_or_id.partition("/")
    if slash:
        listing = await list_living(source, lambda name: name == namespace, [namespace])
    else:
        listing = await list_living(source, watched, [])
    found = matching(listing.containers, rest if slash else name_or_id)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(f"{each.id} ({each.metadata.name})" for each in found[:MATCHES_TOLD])
        more = f" and {len(found) - MATCHES_TOLD} more" if len(found) > MATCHES_TOLD else ""
        raise CommandError(f"{name_or_id!r} fits several containers, say which: {names}{more}")
    if listing.failures:
        raise CommandError(*listing.failures, status=NOT_CONNECTED)
    raise CommandError(f"no living container is called {name_or_id!r}: 'whalebridge list' shows those that are")


def matching(containers: Iterable[Living], text: str) -> list[Living]:
    """Return those whose id is ``text``; where there are none, whose name it is; else, whose id begins with it."""
    containers = list(containers)
    by_id = [each for each in containers if each.task.key.id == text]
    by_name = [each for each in containers if each.metadata.name == text]
    return by_id or by_name or [each for each in containers if text and each.task.key.id.startswith(text)]


async def _living_in(source: Lists, namespace: str) -> list[Living]:
    """List one namespace. Tasks first: a record that comes later than its task is none of theirs."""
    tasks = [task for task in await source.tasks(namespace) if task.alive or task.status is TaskStatus.UNKNOWN]
    if not tasks:
        return []
    records = {each.key: each async for each in source.containers(namespace)}
    pods = {each.pod.uid: each.pod_labels for each in records.values() if each.pod and each.kind == "sandbox"}
    return [_living(task, records.get(task.key) or _unrecorded(task.key), pods) for task in tasks]


def watched_namespaces(settings: Settings) -> NamespaceFilter:
    """Return the decision which namespaces are watched."""
    return NamespaceFilter(settings.namespaces.include, settings.namespaces.exclude)


def _living(task: Task, metadata: Metadata, pods: Mapping[str, Labels | None]) -> Living:
    return Living(metadata, task, pods.get(metadata.pod.uid) if metadata.pod else None)


def _unrecorded(key: ContainerKey) -> Metadata:
    """Describe a container whose record was deleted while its task lives."""
    return describe(key, None, LabelRules.keep_all())
