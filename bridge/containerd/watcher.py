"""whalewatcher's engine client for containerd, in Python: see docs/library.md.

Names and meanings are those of the Go package ``engineclient/containerd``: a container is what has a living initial
process, Docker's namespace is left out, ids and names are told in display form (``NAMESPACE/ID``, bare in ``default``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from types import TracebackType
from typing import NamedTuple, Self, TypeAlias

from bridge.containerd.client import ContainerdClient
from bridge.containerd.lifecycle import ContainerEvent, ContainerEventType, LifecycleEvents
from bridge.containerd.resolve import resolve
from bridge.core.errors import NotFoundError
from bridge.core.filters import NamespaceFilter
from bridge.core.identity import (
    COMPOSER_PROJECT_LABEL,
    DOCKER_NAMESPACE,
    NERDCTL_LABEL_PREFIX,
    NERDCTL_NAME_LABEL,
    describe,
    display_id,
    parse_display_id,
)
from bridge.core.labels import LabelRules
from bridge.core.model import ContainerKey, Engine, Labels, Metadata, Task

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
    "Living",
]

TYPE = "containerd.io"


_Raised: TypeAlias = type[BaseException]  # inside the class, `type` and `list` are whalewatcher's


class Container(NamedTuple):
    """A container as whalewatcher tells it; ``paused`` is true for containerd's PAUSING and PAUSED."""

    id: str
    name: str
    labels: Labels
    pid: int
    project: str
    paused: bool


class Living(NamedTuple):
    """A container with a living initial process, as the model of the bridge tells it: more than whalewatcher does."""

    metadata: Metadata
    task: Task


class ContainerdWatcher:
    """Watches one containerd. Namespaces are told by globs; ``moby`` has to be included by its name to be watched."""

    type = TYPE

    def __init__(
        self,
        client: ContainerdClient,
        *,
        pid: int = 0,
        include: Iterable[str] = ("*",),
        exclude: Iterable[str] = (),
    ) -> None:
        """Watch through ``client``, which is closed with the watcher; ``pid`` is containerd's own, where known."""
        self._client = client
        self._pid = pid
        self._watched = NamespaceFilter(include, exclude)

    @classmethod
    def at(cls, address: str, *, pid: int = 0, include: Iterable[str] = ("*",), exclude: Iterable[str] = ()) -> Self:
        """Return a watcher of the containerd at ``PATH`` or ``unix://PATH``, which lets all labels through."""
        client = ContainerdClient(address, LabelRules.keep_all())
        return cls(client, pid=pid, include=include, exclude=exclude)

    async def __aenter__(self) -> Self:
        await self._engine()
        return self

    async def __aexit__(
        self, kind: _Raised | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    # --- the engine ---

    @property
    def client(self) -> ContainerdClient:
        """The client underneath."""
        return self._client

    @property
    def api(self) -> str:
        """The path of containerd's socket."""
        return self._client.path

    @property
    def pid(self) -> int:
        """containerd's process id as given, else as the socket tells it once connected; 0 where unknown."""
        return self._pid

    async def id(self) -> str:
        """Return the server's UUID; "" for a daemon that has none."""
        return (await self._engine()).id

    async def version(self) -> str:
        """Return containerd's version."""
        return (await self._engine()).version

    async def _engine(self) -> Engine:
        engine = await self._client.engine()
        self._pid = self._pid or engine.pid
        return engine

    async def close(self) -> None:
        """End all connections; harmless when repeated."""
        await self._client.close()

    # --- containers ---

    async def list(self) -> Sequence[Container]:
        """Return all containers with a living initial process.

        Raises:
            TransientError: containerd did not answer, be it for one namespace only.
        """
        return [_told(row) for row in await self.living()]

    async def inspect(self, name_or_id: str) -> Container:
        """Return one container by its display id, the unique beginning of its id, or its nerdctl name.

        Raises:
            NotFoundError: There is none, or it has no living initial process.
            AmbiguousError: Several are meant.
        """
        return _told(await self.find(name_or_id))

    async def living(self) -> Sequence[Living]:
        """Do as ``list``, with everything that is known of a container: status, image, times and so on."""
        await self._engine()
        return [row for namespace in await self._namespaces() for row in await self._living_in(namespace)]

    async def find(self, name_or_id: str) -> Living:
        """Do as ``inspect``, with everything that is known of the container."""
        await self._engine()
        record = await self._client.container(parse_display_id(name_or_id))
        if record is None or not self._watched(record.key.namespace):
            record = resolve(name_or_id, [record async for record in self._records()])
        task = await self._client.task(record.key)
        if task is None or not task.alive:
            state = f"its task is {task.status.name}" if task else "it has no task"
            raise NotFoundError(f"container {display_id(record.key)} has no initial process: {state}")
        return Living(record, task)

    async def _namespaces(self) -> Iterable[str]:
        return filter(self._watched, await self._client.namespaces())

    async def _records(self) -> AsyncIterator[Metadata]:
        for namespace in await self._namespaces():
            async for record in self._client.containers(namespace):
                yield record

    async def _living_in(self, namespace: str) -> Iterable[Living]:
        alive = {task.key: task for task in await self._client.tasks(namespace) if task.alive}
        if not alive:
            return []
        records = {record.key: record async for record in self._client.containers(namespace) if record.key in alive}
        return [Living(records.get(key) or self._gone(key), task) for key, task in alive.items()]

    def _gone(self, key: ContainerKey) -> Metadata:
        """Describe what lives although its record was deleted, or ended since its task was listed."""
        return describe(key, None, self._client.rules)

    # --- events ---

    def lifecycle_events(self) -> LifecycleEvents:
        """Return an async iterator of what begins, ends, pauses and goes on, from now on; an exec's exit is no end.

        As a context manager it does not begin before the subscription is proven, so that a ``list`` inside of it
        misses nothing. It raises TransientError when the stream is lost, as the Go package tells by its error channel.
        """
        return LifecycleEvents(self._client, self._watched)


def _told(row: Living) -> Container:
    metadata, task = row
    return Container(
        id=display_id(metadata.key),
        name=display_id(ContainerKey(metadata.key.namespace, metadata.name)),
        labels=metadata.labels or {},
        pid=task.pid,
        project=metadata.project,
        paused=task.paused,
    )
