"""Event queue: everything to be processed, in the order in which it was received.

Events wait in the queue for the metadata that they need (names, labels, pods). The fetches start as soon as the event
arrives and run concurrently, to catch containers that run for a millisecond only. Query results queue behind the
events that were received before them.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

import structlog
from msgspec import Struct

from bridge.core.encode import Gap
from bridge.core.errors import BridgeError, TransientError, UnreadableError
from bridge.core.identity import describe
from bridge.core.lives import Question
from bridge.core.model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    Metadata,
    Task,
    TaskCreated,
    TaskEnd,
    TaskExited,
    TaskOOM,
    TaskPaused,
    TaskResumed,
    TaskStarted,
)
from bridge.core.ports import Clock, Source
from bridge.core.reconcile import Listing
from bridge.telemetry.sparingly import Sparingly
from bridge.watch.requests import Asked
from bridge.watch.settings import WatchSettings

CAPACITY = 8192  # events held with their metadata; more events wait in the stream's bounded buffer

_log = structlog.get_logger(__name__)
_IF_UNKNOWN = frozenset({TaskCreated, TaskStarted, TaskExited, TaskPaused, TaskResumed, TaskOOM})
_NEEDY = _IF_UNKNOWN | {ContainerCreated, ContainerUpdated}
_ATTEMPTS = 3


class Sighting(NamedTuple):
    """An event, and the container's metadata when the event arrived (None: the stored metadata is used)."""

    event: ContainerEvent
    metadata: Metadata | None


class Audited(NamedTuple):
    """Result of an audit: its gap and listing.

    ``forced``: publish a snapshot even if there is nothing to repair. ``request``: the requests that the snapshot
    fulfills. ``filter_fingerprint``: the changed filters if metadata was listed under them; None if they are unchanged.
    """

    gap: Gap
    listing: Listing
    forced: bool
    asked: Asked | None
    scope: str | None


class Answers(NamedTuple):
    """Results of task queries: a task, None for no task, or the error of a failed query.

    ``metadata`` belongs to containers that were unknown before.
    """

    answers: list[tuple[Question, Task | BridgeError | None]]
    records: list[Metadata]
    audited: Audited | None = None


class Witnessed(NamedTuple):
    """How a task exited, from Tasks.Wait."""

    key: ContainerKey
    pid: int
    end: TaskEnd


class Proven(NamedTuple):
    """All events before ``at`` (wall clock) are queued before this item."""

    at: int


Item: TypeAlias = Sighting | Answers | Witnessed | Proven


class _Waiting(Struct):
    event: ContainerEvent
    lookup: asyncio.Task[Metadata | TransientError | None] | None


def _outcome(item: _Waiting | Answers | Witnessed | Proven) -> Metadata | TransientError | None:
    """Return the result of a finished fetch; None also if no fetch was needed."""
    if not isinstance(item, _Waiting) or item.lookup is None or not item.lookup.done() or item.lookup.cancelled():
        return None
    return item.lookup.result()


def _has_outcome(lookup: asyncio.Task[Metadata | TransientError | None]) -> bool:
    return lookup.done() and not lookup.cancelled() and not isinstance(lookup.result(), TransientError)


class Intake:
    """Hold received items until they are processed, also from one connection to the next.

    ``settings`` may be replaced at any time.
    """

    def __init__(self, settings: WatchSettings, clock: Clock) -> None:
        self.settings = settings
        self.received = 0
        self.taken = 0
        self._sparingly = Sparingly(clock)
        self._source: Source | None = None
        self._gate = asyncio.Semaphore(settings.lookups)
        self._queue: deque[_Waiting | Answers | Witnessed | Proven] = deque()
        self._known: set[ContainerKey] = set()
        self._changed = asyncio.Event()
        self._room = asyncio.Event()

    def connect(self, source: Source) -> None:
        """Continue with a new connection: repeat fetches that failed or did not finish on the old one."""
        self._source = source
        self._known.clear()
        results = [item for item in self._queue if isinstance(item, Answers)]
        for item in results:  # they refer to the state of the old connection
            self._queue.remove(item)
        self.taken += len(results)
        for pending in self._queue:
            if isinstance(pending, _Waiting) and pending.lookup is not None and not _has_outcome(pending.lookup):
                pending.lookup.cancel()
                pending.lookup = self._start(pending.event)

    def know(self, keys: Iterable[ContainerKey]) -> None:
        """Note that the metadata of these containers is known from a listing."""
        self._known.update(keys)

    @property
    def full(self) -> bool:
        """Return whether the queue is full, so that further events wait in the stream's buffer."""
        return len(self._queue) >= CAPACITY

    def put(self, events: list[ContainerEvent]) -> None:
        """Queue events, and start to fetch the metadata that they need."""
        for event in events:
            self._queue.append(_Waiting(event, self._start(event) if self._needs_record(event) else None))
        self.received += len(events)
        self._changed.set()

    async def admit(self, events: list[ContainerEvent]) -> None:
        """Queue events, and wait while the queue is full."""
        self.put(events)
        while self.full:
            self._room.clear()
            await self._room.wait()

    def answer(self, answers: Answers | Witnessed | Proven) -> None:
        """Queue another item behind the events received before it."""
        self._queue.append(answers)
        self.received += 1
        self._changed.set()

    def nudge(self) -> None:
        """Make ``wait`` return even if no item is ready."""
        self._changed.set()

    async def look_ups_done(self, seconds: float) -> None:
        """Wait until all fetches are finished, for at most ``seconds``."""
        fetches = [item.lookup for item in self._queue if isinstance(item, _Waiting) and item.lookup is not None]
        if fetches:
            await asyncio.wait(fetches, timeout=seconds)

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until the oldest item is ready or ``wake`` is called, for at most ``seconds``.

        Raises:
            TransientError: The fetch for the oldest event failed; the event stays queued for the next connection.
        """
        self._changed.clear()
        if not self._head_complete():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
        if self._queue and isinstance(failure := _outcome(self._queue[0]), TransientError):
            raise failure

    def take(self) -> list[Item]:
        """Remove and return the ready items, oldest first, up to the first that is not ready."""
        items: list[Item] = []
        queue = self._queue
        while queue:
            head = queue[0]
            if not isinstance(head, _Waiting):
                items.append(head)
            elif head.lookup is None:
                items.append(Sighting(head.event, None))
            elif not head.lookup.done() or isinstance(metadata := _outcome(head), TransientError):
                break
            else:
                items.append(Sighting(head.event, metadata))
            queue.popleft()
        self.taken += len(items)
        self._room.set()
        return items

    def give_up(self) -> list[Sighting]:
        """Remove and return all events without waiting; unfinished fetches are canceled."""
        for item in self._queue:
            if isinstance(item, _Waiting) and item.lookup is not None and not _has_outcome(item.lookup):
                item.lookup.cancel()
                item.lookup = None
        return [item for item in self.take() if isinstance(item, Sighting)]

    def _head_complete(self) -> bool:
        if not self._queue:
            return False
        head = self._queue[0]
        return not isinstance(head, _Waiting) or head.lookup is None or head.lookup.done()

    def _needs_record(self, event: ContainerEvent) -> bool:
        if event.key in self._known and type(event) in _IF_UNKNOWN:
            return False
        if isinstance(event, ContainerDeleted):
            self._known.discard(event.key)
        needs = type(event) in _NEEDY
        if needs:
            self._known.add(event.key)
        return needs

    def _start(self, event: ContainerEvent) -> asyncio.Task[Metadata | TransientError | None]:
        assert self._source is not None  # noqa: S101 (connect comes first)
        fetch = asyncio.create_task(self._look_up(self._source, event))
        fetch.add_done_callback(lambda _: self._changed.set())
        return fetch

    async def _look_up(self, source: Source, event: ContainerEvent) -> Metadata | TransientError | None:
        """Fetch a container's metadata; if the container is gone, derive the metadata from the event if possible."""
        failure = TransientError("")
        for _ in range(_ATTEMPTS):
            try:
                async with self._gate:
                    metadata = await source.container(event.key)
            except TransientError as error:
                failure = error
            except UnreadableError as error:
                self._complain(event.key, error)
                return self._from_event(event)
            else:
                recreated = metadata is not None and (metadata.created_at or 0) > event.at
                return self._from_event(event) if metadata is None or recreated else metadata
        return failure

    def _complain(self, key: ContainerKey, error: UnreadableError) -> None:
        text = str(error)
        self._sparingly.say(
            _log.warning, text, "container_metadata_unavailable", namespace=key.namespace, id=key.id, error=text
        )

    def _from_event(self, event: ContainerEvent) -> Metadata | None:
        if isinstance(event, ContainerUpdated):
            rules, container_filter = self.settings.rules, self.settings.in_scope
            return describe(event.key, event.labels, rules, container_filter, image=event.image, updated_at=event.at)
        if isinstance(event, ContainerCreated):
            return describe(event.key, None, self.settings.rules, image=event.image, runtime=event.runtime)
        return None
