"""whalewatcher's engine client for containerd, in Python: see docs/library.md.

Names and semantics are those of the Go package ``engineclient/containerd``: a container has a running initial process,
Docker's namespace is excluded, ids and names have display form (``NAMESPACE/ID``, bare in ``default``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

from bridge.containerd.client import ContainerdClient
from bridge.containerd.container_lookup import resolve
from bridge.containerd.whalewatcher_events import ContainerEvent, ContainerEventType, LifecycleEvents
from bridge.core.container_metadata import (
    COMPOSER_PROJECT_LABEL,
    NERDCTL_LABEL_PREFIX,
    NERDCTL_NAME_LABEL,
    build_metadata,
    display_id,
    parse_display_id,
)
from bridge.core.containerd_model import ContainerKey, Engine, Labels, Metadata, Task
from bridge.core.errors import NotFoundError
from bridge.core.filters import DOCKER_NAMESPACE, NamespaceFilter
from bridge.core.label_rules import LabelRules

__all__ = [
    "COMPOSER_PROJECT_LABEL",
    "DOCKER_NAMESPACE",
    "NERDCTL_LABEL_PREFIX",
    "NERDCTL_NAME_LABEL",
    "TYPE",
    "Container",
    "ContainerEvent",
    "ContainerEventType",
    "ContainerdWatcher",
    "LifecycleEvents",
    "RunningContainer",
]

TYPE = "containerd.io"


_ExceptionType: TypeAlias = type[BaseException]  # inside the class, `type` and `list` are attributes


class Container(NamedTuple):
    """A container in whalewatcher's form; ``paused`` is true for containerd's PAUSING and PAUSED."""

    id: str
    name: str
    labels: Labels
    pid: int
    project: str
    paused: bool


class RunningContainer(NamedTuple):
    """A container with a running initial process, in the bridge's model, which has more fields than whalewatcher's."""

    metadata: Metadata
    task: Task


class ContainerdWatcher:
    """Watches one containerd; globs select the namespaces, and ``moby`` must be included by its exact name."""

    type = TYPE

    def __init__(
        self,
        client: ContainerdClient,
        *,
        pid: int = 0,
        include: Iterable[str] = ("*",),
        exclude: Iterable[str] = (),
    ) -> None:
        """Watch through ``client`` and close it with the watcher; ``pid`` is containerd's process id, 0 if unknown."""
        self._client = client
        self._pid = pid
        self._namespace_filter = NamespaceFilter(include, exclude)

    @classmethod
    def at(cls, address: str, *, pid: int = 0, include: Iterable[str] = ("*",), exclude: Iterable[str] = ()) -> Self:
        """Return a watcher of the containerd at ``PATH`` or ``unix://PATH`` that keeps all labels."""
        client = ContainerdClient(address, LabelRules.keep_all())
        return cls(client, pid=pid, include=include, exclude=exclude)

    async def __aenter__(self) -> Self:
        await self._engine()
        return self

    async def __aexit__(
        self, kind: _ExceptionType | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # --- the engine ---

    @property
    def client(self) -> ContainerdClient:
        """The underlying client."""
        return self._client

    @property
    def api(self) -> str:
        """The path of containerd's socket."""
        return self._client.path

    @property
    def pid(self) -> int:
        """containerd's process id: the given one, else the socket's once connected; 0 if unknown."""
        return self._pid

    async def id(self) -> str:
        """Return the server's UUID; "" for a daemon without one."""
        return (await self._engine()).id

    async def version(self) -> str:
        """Return containerd's version."""
        return (await self._engine()).version

    async def _engine(self) -> Engine:
        engine = await self._client.engine()
        self._pid = self._pid or engine.pid
        return engine

    async def close(self) -> None:
        """Close all connections; idempotent."""
        await self._client.close()

    # --- containers ---

    async def list(self) -> Sequence[Container]:
        """Return all containers with a running initial process.

        Raises:
            TransientError: containerd did not respond, for one namespace or more.
        """
        return [_to_container(container) for container in await self.list_detailed()]

    async def inspect(self, name_or_id: str) -> Container:
        """Return one container by display id, unique id prefix, or nerdctl name.

        Raises:
            NotFoundError: No container matches, or it has no running initial process.
            AmbiguousError: Several containers match.
        """
        return _to_container(await self.find(name_or_id))

    async def list_detailed(self) -> Sequence[RunningContainer]:
        """Return the containers of ``list`` with all known fields, such as status, image and times."""
        await self._engine()
        return [
            container
            for namespace in await self._watched_namespaces()
            for container in await self._list_namespace(namespace)
        ]

    async def find(self, name_or_id: str) -> RunningContainer:
        """Return the container of ``inspect`` with all known fields."""
        await self._engine()
        metadata = await self._client.container(parse_display_id(name_or_id))
        if metadata is None or not self._namespace_filter(metadata.key.namespace):
            metadata = resolve(name_or_id, [container async for container in self._watched_metadata()])
        task = await self._client.task(metadata.key)
        if task is None or not task.running:
            state = f"its task is {task.status.name}" if task else "it has no task"
            raise NotFoundError(f"container {display_id(metadata.key)} has no initial process: {state}")
        return RunningContainer(metadata, task)

    async def _watched_namespaces(self) -> Iterable[str]:
        return filter(self._namespace_filter, await self._client.namespaces())

    async def _watched_metadata(self) -> AsyncIterator[Metadata]:
        for namespace in await self._watched_namespaces():
            async for metadata in self._client.containers(namespace):
                yield metadata

    async def _list_namespace(self, namespace: str) -> Iterable[RunningContainer]:
        running = {task.key: task for task in await self._client.tasks(namespace) if task.running}
        if not running:
            return []
        known = {each.key: each async for each in self._client.containers(namespace) if each.key in running}
        return [RunningContainer(known.get(key) or self._placeholder(key), task) for key, task in running.items()]

    def _placeholder(self, key: ContainerKey) -> Metadata:
        """Return placeholder metadata: the container was deleted, or has exited since the tasks were listed."""
        return build_metadata(key, None, self._client.rules)

    # --- events ---

    def lifecycle_events(self) -> LifecycleEvents:
        """Return an async iterator of starts, exits, pauses and resumes from now on; exits of execs are excluded.

        Entering it as a context manager waits for a confirmed subscription, so that a ``list`` inside of it misses
        nothing. It raises TransientError when the stream is lost, which the Go package reports on its error channel.
        """
        return LifecycleEvents(self._client, self._namespace_filter)


def _to_container(running: RunningContainer) -> Container:
    metadata, task = running
    return Container(
        id=display_id(metadata.key),
        name=display_id(ContainerKey(metadata.key.namespace, metadata.name)),
        labels=metadata.labels or {},
        pid=task.pid,
        project=metadata.project,
        paused=task.paused,
    )
