"""Event queue: everything to be processed, in the order in which it was received.

Events wait in the queue for the metadata that they need (names, labels, pods). The fetches start as soon as the event
arrives and run concurrently, to catch containers that run for a millisecond only. What must happen after the events
received so far, such as processing the result of a query, is queued behind them as a call.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

import structlog
from msgspec import Struct

from bridge.core.container_metadata import build_metadata
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    Metadata,
    TaskCreated,
    TaskExited,
    TaskOOM,
    TaskPaused,
    TaskResumed,
    TaskStarted,
)
from bridge.core.errors import TransientError, UnreadableError
from bridge.core.ports import Clock
from bridge.task_groups import completes_within
from bridge.telemetry.rate_limit import RateLimiter
from bridge.watch.settings import WatchSettings

CAPACITY = 8192  # events held with their metadata; more events wait in the stream's bounded buffer

_log = structlog.get_logger(__name__)
_NEEDS_METADATA_IF_UNKNOWN = frozenset({TaskCreated, TaskStarted, TaskExited, TaskPaused, TaskResumed, TaskOOM})
_NEEDS_METADATA = _NEEDS_METADATA_IF_UNKNOWN | {ContainerCreated, ContainerUpdated}
_FETCH_ATTEMPTS = 3


class QueuedEvent(Struct):
    """An event, and the container's metadata when the event arrived (None: the stored metadata is used).

    It is ready unless ``fetch`` is running, or has failed for the last time, with ``failure``.
    """

    event: ContainerEvent
    metadata: Metadata | None = None
    fetch: asyncio.Task[None] | None = None
    failure: TransientError | None = None


class QueuedCall(NamedTuple):
    """A call to make after the events that were received before it; ``keep``: also on the next connection."""

    call: Callable[[], None]
    keep: bool


class EventQueue:
    """Hold received events and calls until they are processed; events survive a reconnect.

    ``fetch`` returns the current metadata of a container, or fails, as ``EngineClient.container``; ``settings`` returns
    the current settings.
    """

    def __init__(
        self,
        fetch: Callable[[ContainerKey], Awaitable[Metadata | None]],
        clock: Clock,
        settings: Callable[[], WatchSettings],
    ) -> None:
        self._fetch_metadata = fetch
        self._clock = clock
        self._settings = settings
        self._rate_limiter = RateLimiter(clock)
        self._fetch_semaphore = asyncio.Semaphore(settings().max_fetches)
        self._tasks: asyncio.TaskGroup  # for the fetches
        self._queue: deque[QueuedEvent | QueuedCall] = deque()
        self._known_keys: set[ContainerKey] = set()
        self._changed = asyncio.Event()
        self._not_full = asyncio.Event()

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Run the fetches in ``tasks`` from now on; call before anything else."""
        self._tasks = tasks

    def reconnect(self) -> None:
        """Continue with a new connection: repeat fetches that failed or did not finish on the old one."""
        self._known_keys.clear()
        self._queue = deque(item for item in self._queue if isinstance(item, QueuedEvent) or item.keep)
        for event in self._cancel_fetches():
            self._start_fetch(event)

    def mark_known(self, keys: Iterable[ContainerKey]) -> None:
        """Note that the metadata of these containers is known from a listing."""
        self._known_keys.update(keys)

    @property
    def full(self) -> bool:
        """Return whether the queue is full, so that further events wait in the stream's buffer."""
        return len(self._queue) >= CAPACITY

    def put_nowait(self, events: list[ContainerEvent]) -> None:
        """Queue events, and start to fetch the metadata that they need."""
        for event in events:
            item = QueuedEvent(event)
            self._queue.append(item)
            if self._needs_metadata(event):
                self._start_fetch(item)
        self._changed.set()

    async def put(self, events: list[ContainerEvent]) -> None:
        """Queue events, and wait while the queue is full."""
        self.put_nowait(events)
        while self.full:
            self._not_full.clear()
            await self._not_full.wait()

    def put_call(self, call: Callable[[], None], *, keep: bool = False) -> None:
        """Make a call after the events received so far are processed.

        If the connection ends before, the call is dropped unless ``keep``: what a query has found on the old connection
        may be wrong by then.
        """
        self._queue.append(QueuedCall(call, keep))
        self._changed.set()

    async def wait_processed(self) -> None:
        """Wait until everything queued so far is processed."""
        processed = asyncio.Event()
        self.put_call(processed.set)
        await processed.wait()

    def wake(self) -> None:
        """Make ``wait`` return even if no item is ready."""
        self._changed.set()

    async def drain_fetches(self, seconds: float) -> None:
        """Wait until all fetches are finished, for at most ``seconds``."""
        with contextlib.suppress(TimeoutError):
            async with self._clock.timeout(seconds):
                for item in list(self._queue):
                    if isinstance(item, QueuedEvent) and item.fetch is not None:
                        await asyncio.wait([item.fetch])

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until the oldest item is ready or ``wake`` is called, for at most ``seconds``.

        Raises:
            TransientError: The fetch for the oldest event failed; the event stays queued for the next connection.
        """
        if not self._head_ready():
            await completes_within(seconds, self._clock, self._changed.wait())
        self._changed.clear()
        head = self._queue[0] if self._queue else None
        if isinstance(head, QueuedEvent) and head.failure is not None:
            raise head.failure

    def pop_ready(self) -> list[QueuedEvent | QueuedCall]:
        """Remove and return the ready items, oldest first, up to the first that is not ready."""
        items: list[QueuedEvent | QueuedCall] = []
        while self._head_ready():
            items.append(self._queue.popleft())
        self._not_full.set()
        return items

    def abandon(self) -> list[QueuedEvent]:
        """Remove and return all events without waiting; unfinished fetches are canceled."""
        self._cancel_fetches()
        return [item for item in self.pop_ready() if isinstance(item, QueuedEvent)]

    def _head_ready(self) -> bool:
        head = self._queue[0] if self._queue else None
        return head is not None and (isinstance(head, QueuedCall) or (head.fetch is None and head.failure is None))

    def _cancel_fetches(self) -> list[QueuedEvent]:
        """Make all events ready; return those whose metadata has not been fetched although it is needed."""
        unfetched = [
            item
            for item in self._queue
            if isinstance(item, QueuedEvent) and (item.fetch is not None or item.failure is not None)
        ]
        for item in unfetched:
            if item.fetch is not None:
                item.fetch.cancel()
            item.fetch = item.failure = None
        return unfetched

    def _needs_metadata(self, event: ContainerEvent) -> bool:
        if event.key in self._known_keys and type(event) in _NEEDS_METADATA_IF_UNKNOWN:
            return False
        if isinstance(event, ContainerDeleted):
            self._known_keys.discard(event.key)
        needs = type(event) in _NEEDS_METADATA
        if needs:
            self._known_keys.add(event.key)
        return needs

    def _start_fetch(self, item: QueuedEvent) -> None:
        item.fetch = self._tasks.create_task(self._fetch(item))

    async def _fetch(self, item: QueuedEvent) -> None:
        """Fetch a container's metadata; if the container is gone, derive the metadata from the event if possible."""
        event, failure = item.event, None
        for _ in range(_FETCH_ATTEMPTS):
            try:
                async with self._fetch_semaphore:
                    metadata = await self._fetch_metadata(event.key)
            except TransientError as error:
                failure = error
            except UnreadableError as error:
                self._log_failure(event.key, error)
                item.metadata, failure = self._metadata_from_event(event), None
                break
            else:
                use_event = metadata is None or self._is_recreated(metadata, event)
                item.metadata = self._metadata_from_event(event) if use_event else metadata
                failure = None
                break
        item.fetch, item.failure = None, failure
        self._changed.set()

    def _is_recreated(self, metadata: Metadata, event: ContainerEvent) -> bool:
        """Return whether the container was created after the event; false if the clock was set back since then."""
        return event.at < (metadata.created_at or 0) <= self._clock.now().wall

    def _log_failure(self, key: ContainerKey, error: UnreadableError) -> None:
        text = str(error)
        self._rate_limiter.log(
            _log.warning, text, "container_metadata_unavailable", namespace=key.namespace, id=key.id, error=text
        )

    def _metadata_from_event(self, event: ContainerEvent) -> Metadata | None:
        rules, container_filter = self._settings().label_rules, self._settings().container_filter
        if isinstance(event, ContainerUpdated):
            return build_metadata(
                event.key, event.labels, rules, container_filter, image=event.image, updated_at=event.at
            )
        if isinstance(event, ContainerCreated):
            return build_metadata(event.key, None, rules, image=event.image, runtime=event.runtime)
        return None
