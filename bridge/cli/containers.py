"""What lives on a containerd right now, for the commands that look once: asked for over one connection."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from bridge.app import boot_id
from bridge.cli.failure import CommandError
from bridge.containerd.client import ContainerdClient
from bridge.containerd.watcher import ContainerdWatcher
from bridge.core.encode import Ledger
from bridge.core.errors import BridgeError
from bridge.core.identity import describe, display_id, incarnation
from bridge.core.labels import LabelRules
from bridge.core.lives import Transition
from bridge.core.model import ContainerKey, Engine, Labels, Metadata, Task, TaskStatus
from config.models import NamespacesSettings
from config.settings import Settings


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


async def find(client: ContainerdClient, namespaces: NamespacesSettings, name_or_id: str) -> Living:
    """Find one living container; a namespace that ``name_or_id`` begins with is looked into, watched or not.

    Raises:
        NotFoundError: There is none.
        AmbiguousError: There are several.
    """
    namespace, slash, _ = name_or_id.partition("/")
    if slash:
        watcher = ContainerdWatcher(client, include=(namespace,))
    else:
        watcher = ContainerdWatcher(client, include=namespaces.include, exclude=namespaces.exclude)
    found = await watcher.find(name_or_id)
    pods: dict[str, Labels | None] = {}
    if found.metadata.pod:
        pods = _pods([each async for each in client.containers(found.metadata.key.namespace)])
    return _living(found.task, found.metadata, pods)


async def _living_in(source: Lists, namespace: str) -> list[Living]:
    """List one namespace. Tasks first: a record that comes later than its task is none of theirs."""
    tasks = [task for task in await source.tasks(namespace) if task.alive or task.status is TaskStatus.UNKNOWN]
    if not tasks:
        return []
    records = {each.key: each async for each in source.containers(namespace)}
    pods = _pods(records.values())
    return [_living(task, records.get(task.key) or _unrecorded(task.key), pods) for task in tasks]


def _pods(records: Iterable[Metadata]) -> dict[str, Labels | None]:
    """Return the labels of pods, which their sandboxes carry, by the pod's uid."""
    return {each.pod.uid: each.pod_labels for each in records if each.pod and each.kind == "sandbox"}


def _living(task: Task, metadata: Metadata, pods: Mapping[str, Labels | None]) -> Living:
    return Living(metadata, task, pods.get(metadata.pod.uid) if metadata.pod else None)


def _unrecorded(key: ContainerKey) -> Metadata:
    """Describe a container whose record was deleted while its task lives."""
    return describe(key, None, LabelRules.keep_all())
