"""whalewatcher's lifecycle events: starts, exits, pauses and resumes of containers, as containerd publishes them.

The only state is the project of each container. Repeated and late events are passed on unchanged, and events that
containerd sent while no client was subscribed are missing. (The bridge's tracker handles all of these.)
"""

from __future__ import annotations

import asyncio
import secrets
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from types import TracebackType
from typing import NamedTuple, Self

from bridge.containerd.client import ContainerdClient
from bridge.containerd.stream import EventStream
from bridge.core import model
from bridge.core.errors import TransientError
from bridge.core.identity import COMPOSER_PROJECT_LABEL, display_id
from bridge.core.model import ContainerKey

_PROJECTS_KEPT = 10_000
_MARK_SECONDS = 0.1  # between two markers, until the first one comes back
_MARKS = 100


class ContainerEventType(IntEnum):
    """The types of lifecycle events, with whalewatcher's numbers."""

    STARTED = 0
    EXITED = 1
    PAUSED = 2
    UNPAUSED = 3


class ContainerEvent(NamedTuple):
    """One event: ``timestamp`` is containerd's, in nanoseconds since the epoch; ``id`` is a display id; ``project`` is
    the composer project's name, or "".
    """

    timestamp: int
    type: ContainerEventType
    id: str
    project: str


_LIFECYCLE = (model.TaskStarted, model.TaskExited, model.TaskPaused, model.TaskResumed)
_TYPES: dict[type, ContainerEventType] = {
    model.TaskStarted: ContainerEventType.STARTED,
    model.TaskExited: ContainerEventType.EXITED,
    model.TaskPaused: ContainerEventType.PAUSED,
    model.TaskResumed: ContainerEventType.UNPAUSED,
}


class LifecycleEvents:
    """An async iterator of ``ContainerEvent``; entering it as a context manager waits for a confirmed subscription.

    It ends only with an error: a TransientError when the stream is lost, after it has returned all received events.
    """

    def __init__(self, client: ContainerdClient, watched: Callable[[str], bool]) -> None:
        self._client = client
        self._watched = watched
        self._projects = Projects(client)
        self._stream: EventStream | None = None
        self._waiting: deque[model.Event] = deque()

    async def __aenter__(self) -> Self:
        await self._subscribed()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ContainerEvent:
        stream = await self._subscribed()
        while True:
            while self._waiting:
                event = await self._translated(self._waiting[0])
                self._waiting.popleft()  # only now, because the caller may have been cancelled during the translation
                if event is not None:
                    return event
            self._waiting.extend(await stream.batch())

    def close(self) -> None:
        """End the subscription; idempotent."""
        if self._stream is not None:
            self._stream.close()

    async def _subscribed(self) -> EventStream:
        if self._stream is None:
            stream = await self._client.subscribe()
            try:
                await self._proven(stream)
            except BaseException:
                stream.close()
                raise
            self._stream = stream
        return self._stream

    async def _proven(self, stream: EventStream) -> None:
        """Publish markers until one comes back: containerd does not otherwise confirm that a subscription is active."""
        nonce = secrets.token_hex(8)
        for number in range(_MARKS):
            await self._client.mark(nonce, number)
            with suppress(TimeoutError):
                async with asyncio.timeout(_MARK_SECONDS):
                    return await self._received_mark(stream, nonce)
        raise TransientError(
            f"containerd at {self._client.path}: no marker came back on the event stream; events would be lost"
        )

    async def _received_mark(self, stream: EventStream, nonce: str) -> None:
        while True:
            events = await stream.batch()
            self._waiting.extend(events)
            if any(isinstance(event, model.Mark) and event.nonce == nonce for event in events):
                return

    async def _translated(self, event: model.Event) -> ContainerEvent | None:
        self._projects.follow(event)
        if not isinstance(event, _LIFECYCLE) or not self._watched(event.key.namespace):
            return None
        if isinstance(event, model.TaskExited) and event.exec_id:
            return None
        project = await self._projects.of(event.key)
        return ContainerEvent(event.at, _TYPES[type(event)], display_id(event.key), project)


class Projects:
    """The composer project of each container: fetched from containerd once, then kept up to date by its events."""

    def __init__(self, client: ContainerdClient) -> None:
        self._client = client
        self._known: OrderedDict[ContainerKey, str] = OrderedDict()

    def follow(self, event: model.Event) -> None:
        """Apply an event; a deleted container keeps its project, because its exit event can follow the deletion."""
        if isinstance(event, model.ContainerCreated):
            self._known.pop(event.key, None)
        elif isinstance(event, model.ContainerUpdated):
            self._learn(event.key, event.labels.get(COMPOSER_PROJECT_LABEL, ""))

    async def of(self, key: ContainerKey) -> str:
        """Return the name of a container's project; "" if it has none or its metadata is gone."""
        if key not in self._known:
            metadata = await self._client.container(key)
            if metadata is None:
                return ""
            self._learn(key, metadata.project)
        return self._known[key]

    def _learn(self, key: ContainerKey, project: str) -> None:
        self._known[key] = project
        self._known.move_to_end(key)
        if len(self._known) > _PROJECTS_KEPT:
            self._known.popitem(last=False)
