"""Lists the running containers of a containerd, for commands that list once, over one connection."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import msgspec

from bridge.app import boot_id
from bridge.cli.failure import CommandError
from bridge.containerd.client import ContainerdClient
from bridge.containerd.watcher import ContainerdWatcher
from bridge.core.encode import container
from bridge.core.errors import BridgeError
from bridge.core.identity import describe, display_id, incarnation
from bridge.core.labels import LabelRules
from bridge.core.lives import Transition
from bridge.core.model import ContainerKey, Labels, Metadata, Task, TaskStatus
from config.models import NamespacesSettings
from config.settings import Settings


class Lists(Protocol):
    """The part of ``EngineClient`` that listing needs."""

    async def namespaces(self) -> Sequence[str]:
        """List all namespaces."""

    async def tasks(self, namespace: str) -> Sequence[Task]:
        """List a namespace's tasks."""

    def containers(self, namespace: str) -> AsyncIterator[Metadata]:
        """List a namespace's container metadata."""


class Living(NamedTuple):
    """A container whose task is running, paused, or in an unknown state."""

    metadata: Metadata
    task: Task
    pod_labels: Labels | None

    @property
    def id(self) -> str:
        """The display id."""
        return display_id(self.task.key)

    @property
    def status(self) -> str:
        """``running``, ``paused``, or ``unknown`` if the shim does not respond."""
        if self.task.status is TaskStatus.UNKNOWN:
            return "unknown"
        return "paused" if self.task.paused else "running"

    def document(self) -> dict[str, Any]:
        """Return the object ``container`` as in a record, built by the same code."""
        pid = self.task.pid
        transition = Transition(
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
        document: dict[str, Any] = msgspec.to_builtins(container(transition))
        return document


class Listing(NamedTuple):
    """The containers, and the errors of namespaces that could not be listed."""

    containers: list[Living]
    failures: list[str]


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[ContainerdClient]:
    """Connect to the containerd of ``settings``.

    Raises:
        CommandError: Connecting failed, or the connection failed later.
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
    """List the running containers of the watched namespaces.

    Raises:
        CommandError: A namespace in ``required`` does not exist.
    """
    existing = sorted(await source.namespaces())
    missing = [name for name in named if name not in existing]
    if missing:
        names = ", ".join(existing) or "none"
        raise CommandError(*(f"namespace {name!r} does not exist; existing namespaces: {names}" for name in missing))
    listing = Listing([], [])
    for namespace in filter(watched, existing):
        try:
            listing.containers.extend(await _living_in(source, namespace))
        except BridgeError as error:
            listing.failures.append(f"namespace {namespace} could not be listed: {error}")
    return listing


async def find(client: ContainerdClient, namespaces: NamespacesSettings, name_or_id: str) -> Living:
    """Find one running container; a namespace in ``name_or_id`` is searched even if it is not watched.

    Raises:
        NotFoundError: No container matches.
        AmbiguousError: Several containers match.
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
    """List one namespace. Tasks first, so that an old task is not matched with the metadata of a new container."""
    tasks = [task for task in await source.tasks(namespace) if task.alive or task.status is TaskStatus.UNKNOWN]
    if not tasks:
        return []
    containers = {each.key: each async for each in source.containers(namespace)}
    pods = _pods(containers.values())
    return [_living(task, containers.get(task.key) or _unrecorded(task.key), pods) for task in tasks]


def _pods(records: Iterable[Metadata]) -> dict[str, Labels | None]:
    """Return the labels of pods, which their sandboxes have, by the pod's uid."""
    return {each.pod.uid: each.pod_labels for each in records if each.pod and each.kind == "sandbox"}


def _living(task: Task, metadata: Metadata, pods: Mapping[str, Labels | None]) -> Living:
    return Living(metadata, task, pods.get(metadata.pod.uid) if metadata.pod else None)


def _unrecorded(key: ContainerKey) -> Metadata:
    """Return placeholder metadata for a running container whose metadata was deleted."""
    return describe(key, None, LabelRules.keep_all())
