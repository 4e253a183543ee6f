"""whalewatcher's lifecycle events: starts, exits, pauses and resumes of containers, as containerd publishes them.

The only state is the project of each container. Repeated and late events are passed on unchanged, and events that
containerd sent while no client was subscribed are missing. (The bridge's tracker handles all of these.)
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from enum import IntEnum
from types import TracebackType
from typing import NamedTuple, Self

from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.containerd.event_stream import ContainerdEventStream
from bridge.core import containerd_model
from bridge.core.container_metadata import COMPOSER_PROJECT_LABEL, display_id
from bridge.core.containerd_model import ContainerKey
from bridge.stream_markers import read_to_marker

_MAX_PROJECTS = 10_000
_MARKER_TIMEOUT_SECONDS = 10.0  # for the marker that confirms the subscription


class ContainerEventType(IntEnum):
    """The types of lifecycle events, with whalewatcher's numbers."""

    STARTED = 0
    EXITED = 1
    PAUSED = 2
    UNPAUSED = 3


class ContainerEvent(NamedTuple):
    """One event.

    ``timestamp`` is containerd's, in nanoseconds since the epoch; ``id`` is a display id; ``project`` is the name of
    the compose project, or "".
    """

    timestamp: int
    type: ContainerEventType
    id: str
    project: str


_LIFECYCLE_EVENTS = (
    containerd_model.TaskStarted,
    containerd_model.TaskExited,
    containerd_model.TaskPaused,
    containerd_model.TaskResumed,
)
_EVENT_TYPES: dict[type, ContainerEventType] = {
    containerd_model.TaskStarted: ContainerEventType.STARTED,
    containerd_model.TaskExited: ContainerEventType.EXITED,
    containerd_model.TaskPaused: ContainerEventType.PAUSED,
    containerd_model.TaskResumed: ContainerEventType.UNPAUSED,
}


class LifecycleEvents:
    """An async iterator of ``ContainerEvent``; entering it as a context manager waits for a confirmed subscription.

    It ends only with an error: a TransientError when the stream is lost, after it has returned all received events.
    """

    def __init__(self, client: ContainerdClient, is_watched: Callable[[str], bool]) -> None:
        self._client = client
        self._is_watched = is_watched
        self._projects = ProjectCache(client)
        self._stream: ContainerdEventStream | None = None
        self._pending: deque[containerd_model.Event] = deque()

    async def __aenter__(self) -> Self:
        await self._ensure_subscribed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ContainerEvent:
        stream = await self._ensure_subscribed()
        while True:
            while self._pending:
                event = await self._translate(self._pending[0])
                self._pending.popleft()  # only now, because the caller may have been canceled during the translation
                if event is not None:
                    return event
            self._pending.extend(await stream.batch())

    def close(self) -> None:
        """End the subscription; idempotent."""
        if self._stream is not None:
            self._stream.close()

    async def _ensure_subscribed(self) -> ContainerdEventStream:
        if self._stream is None:
            stream = await self._client.subscribe()
            try:  # so that events are missed neither before the next listing nor after it
                self._pending.extend(await read_to_marker(self._client, stream, SystemClock(), _MARKER_TIMEOUT_SECONDS))
            except BaseException:
                stream.close()
                raise
            self._stream = stream
        return self._stream

    async def _translate(self, event: containerd_model.Event) -> ContainerEvent | None:
        self._projects.update(event)
        if not isinstance(event, _LIFECYCLE_EVENTS) or not self._is_watched(event.key.namespace):
            return None
        if isinstance(event, containerd_model.TaskExited) and event.exec_id:
            return None
        project = await self._projects.get(event.key)
        return ContainerEvent(event.at, _EVENT_TYPES[type(event)], display_id(event.key), project)


class ProjectCache:
    """The compose project of each container: fetched from containerd once, then kept up to date by its events."""

    def __init__(self, client: ContainerdClient) -> None:
        self._client = client
        self._entries: OrderedDict[ContainerKey, str] = OrderedDict()

    def update(self, event: containerd_model.Event) -> None:
        """Apply an event; a deleted container keeps its project, because its exit event can follow the deletion."""
        if isinstance(event, containerd_model.ContainerCreated):
            self._entries.pop(event.key, None)
        elif isinstance(event, containerd_model.ContainerUpdated):
            self._store(event.key, event.labels.get(COMPOSER_PROJECT_LABEL, ""))

    async def get(self, key: ContainerKey) -> str:
        """Return the name of a container's project; "" if it has none or its metadata is gone."""
        if key not in self._entries:
            metadata = await self._client.container(key)
            if metadata is None:
                return ""
            self._store(key, metadata.project)
        return self._entries[key]

    def _store(self, key: ContainerKey, project: str) -> None:
        self._entries[key] = project
        self._entries.move_to_end(key)
        if len(self._entries) > _MAX_PROJECTS:
            self._entries.popitem(last=False)
