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

from bridge.core.container_metadata import build_metadata
from bridge.core.container_state import DueExit, TaskQuery
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerEvent,
    ContainerKey,
    ContainerUpdated,
    ExitStatus,
    Metadata,
    Task,
    TaskCreated,
    TaskExited,
    TaskOOM,
    TaskPaused,
    TaskResumed,
    TaskStarted,
)
from bridge.core.errors import BridgeError, TransientError, UnreadableError
from bridge.core.ports import Clock, EngineClient
from bridge.core.reconcile import Listing
from bridge.core.record_encoder import Gap
from bridge.telemetry.rate_limit import RateLimiter
from bridge.watch.settings import WatchSettings
from bridge.watch.snapshot_requests import SnapshotRequest

CAPACITY = 8192  # events held with their metadata; more events wait in the stream's bounded buffer

_log = structlog.get_logger(__name__)
_NEEDS_METADATA_IF_UNKNOWN = frozenset({TaskCreated, TaskStarted, TaskExited, TaskPaused, TaskResumed, TaskOOM})
_NEEDS_METADATA = _NEEDS_METADATA_IF_UNKNOWN | {ContainerCreated, ContainerUpdated}
_FETCH_ATTEMPTS = 3


class EnrichedEvent(NamedTuple):
    """An event, and the container's metadata when the event arrived (None: the stored metadata is used)."""

    event: ContainerEvent
    metadata: Metadata | None


class AuditResult(NamedTuple):
    """Result of an audit: its gap and listing.

    ``forced``: publish a snapshot even if there is nothing to repair. ``request``: the requests that the snapshot
    fulfills. ``filter_fingerprint``: fingerprint of the new filters if the filters changed and the audit listed
    metadata under them; otherwise None.
    """

    gap: Gap
    listing: Listing
    forced: bool
    request: SnapshotRequest | None
    filter_fingerprint: str | None


class QueryResults(NamedTuple):
    """Results of task queries: a task, None for no task, or the error of a failed query.

    ``metadata`` belongs to containers that were unknown before.
    """

    results: list[tuple[TaskQuery, Task | BridgeError | None]]
    metadata: list[Metadata]
    audit: AuditResult | None = None


class StartsChecked(NamedTuple):
    """Results of start checks: a task, None if none was found, or the error of a failed call."""

    results: list[tuple[TaskQuery, Task | BridgeError | None]]


class TaskWaited(NamedTuple):
    """How a task exited, from Tasks.Wait."""

    key: ContainerKey
    pid: int
    exit_status: ExitStatus


class WatermarkAdvanced(NamedTuple):
    """All events before ``at`` (wall clock) are queued before this item."""

    at: int


class ExitsDue(NamedTuple):
    """Held exits to release after the events that were queued before this item."""

    exits: list[DueExit]


OtherItem: TypeAlias = QueryResults | StartsChecked | TaskWaited | WatermarkAdvanced | ExitsDue
QueueItem: TypeAlias = EnrichedEvent | OtherItem


class _PendingEvent(Struct):
    event: ContainerEvent
    fetch: asyncio.Task[Metadata | TransientError | None] | None


def _fetch_result(
    item: _PendingEvent | OtherItem,
) -> Metadata | TransientError | None:
    """Return the result of a finished fetch; None also if no fetch was needed."""
    if not isinstance(item, _PendingEvent) or item.fetch is None or not item.fetch.done() or item.fetch.cancelled():
        return None
    return item.fetch.result()


def _has_fetched(fetch: asyncio.Task[Metadata | TransientError | None]) -> bool:
    return fetch.done() and not fetch.cancelled() and not isinstance(fetch.result(), TransientError)


class EventQueue:
    """Hold received items until they are processed; the items survive a reconnect.

    ``settings`` may be replaced at any time.
    """

    def __init__(self, settings: WatchSettings, clock: Clock) -> None:
        self.settings = settings
        self.put_count = 0
        self.popped_count = 0
        self._rate_limiter = RateLimiter(clock)
        self._client: EngineClient | None = None
        self._fetch_semaphore = asyncio.Semaphore(settings.max_fetches)
        self._queue: deque[_PendingEvent | OtherItem] = deque()
        self._known_keys: set[ContainerKey] = set()
        self._changed = asyncio.Event()
        self._not_full = asyncio.Event()

    def connect(self, client: EngineClient) -> None:
        """Continue with a new connection: repeat fetches that failed or did not finish on the old one."""
        self._client = client
        self._known_keys.clear()
        results = [item for item in self._queue if isinstance(item, (QueryResults, StartsChecked))]
        for item in results:  # they refer to the state of the old connection
            self._queue.remove(item)
        self.popped_count += len(results)
        for pending in self._queue:
            if isinstance(pending, _PendingEvent) and pending.fetch is not None and not _has_fetched(pending.fetch):
                pending.fetch.cancel()
                pending.fetch = self._start_fetch(pending.event)

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
            self._queue.append(_PendingEvent(event, self._start_fetch(event) if self._needs_metadata(event) else None))
        self.put_count += len(events)
        self._changed.set()

    async def put(self, events: list[ContainerEvent]) -> None:
        """Queue events, and wait while the queue is full."""
        self.put_nowait(events)
        while self.full:
            self._not_full.clear()
            await self._not_full.wait()

    def put_item(self, item: OtherItem) -> None:
        """Queue another item behind the events received before it."""
        self._queue.append(item)
        self.put_count += 1
        self._changed.set()

    def wake(self) -> None:
        """Make ``wait`` return even if no item is ready."""
        self._changed.set()

    async def drain_fetches(self, seconds: float) -> None:
        """Wait until all fetches are finished, for at most ``seconds``."""
        fetches = [item.fetch for item in self._queue if isinstance(item, _PendingEvent) and item.fetch is not None]
        if fetches:
            await asyncio.wait(fetches, timeout=seconds)

    async def wait(self, seconds: float | None = None) -> None:
        """Wait until the oldest item is ready or ``wake`` is called, for at most ``seconds``.

        Raises:
            TransientError: The fetch for the oldest event failed; the event stays queued for the next connection.
        """
        self._changed.clear()
        if not self._head_ready():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._changed.wait()
        if self._queue and isinstance(failure := _fetch_result(self._queue[0]), TransientError):
            raise failure

    def pop_ready(self) -> list[QueueItem]:
        """Remove and return the ready items, oldest first, up to the first that is not ready."""
        items: list[QueueItem] = []
        queue = self._queue
        while queue:
            head = queue[0]
            if not isinstance(head, _PendingEvent):
                items.append(head)
            elif head.fetch is None:
                items.append(EnrichedEvent(head.event, None))
            elif not head.fetch.done() or isinstance(metadata := _fetch_result(head), TransientError):
                break
            else:
                items.append(EnrichedEvent(head.event, metadata))
            queue.popleft()
        self.popped_count += len(items)
        self._not_full.set()
        return items

    def abandon(self) -> list[EnrichedEvent]:
        """Remove and return all events without waiting; unfinished fetches are canceled."""
        for item in self._queue:
            if isinstance(item, _PendingEvent) and item.fetch is not None and not _has_fetched(item.fetch):
                item.fetch.cancel()
                item.fetch = None
        return [item for item in self.pop_ready() if isinstance(item, EnrichedEvent)]

    def _head_ready(self) -> bool:
        if not self._queue:
            return False
        head = self._queue[0]
        return not isinstance(head, _PendingEvent) or head.fetch is None or head.fetch.done()

    def _needs_metadata(self, event: ContainerEvent) -> bool:
        if event.key in self._known_keys and type(event) in _NEEDS_METADATA_IF_UNKNOWN:
            return False
        if isinstance(event, ContainerDeleted):
            self._known_keys.discard(event.key)
        needs = type(event) in _NEEDS_METADATA
        if needs:
            self._known_keys.add(event.key)
        return needs

    def _start_fetch(self, event: ContainerEvent) -> asyncio.Task[Metadata | TransientError | None]:
        assert self._client is not None  # noqa: S101 (connect comes first)
        fetch = asyncio.create_task(self._fetch(self._client, event))
        fetch.add_done_callback(lambda _: self._changed.set())
        return fetch

    async def _fetch(self, client: EngineClient, event: ContainerEvent) -> Metadata | TransientError | None:
        """Fetch a container's metadata; if the container is gone, derive the metadata from the event if possible."""
        failure = TransientError("")
        for _ in range(_FETCH_ATTEMPTS):
            try:
                async with self._fetch_semaphore:
                    metadata = await client.container(event.key)
            except TransientError as error:
                failure = error
            except UnreadableError as error:
                self._log_failure(event.key, error)
                return self._metadata_from_event(event)
            else:
                recreated = metadata is not None and (metadata.created_at or 0) > event.at
                return self._metadata_from_event(event) if metadata is None or recreated else metadata
        return failure

    def _log_failure(self, key: ContainerKey, error: UnreadableError) -> None:
        text = str(error)
        self._rate_limiter.log(
            _log.warning, text, "container_metadata_unavailable", namespace=key.namespace, id=key.id, error=text
        )

    def _metadata_from_event(self, event: ContainerEvent) -> Metadata | None:
        if isinstance(event, ContainerUpdated):
            rules, container_filter = self.settings.label_rules, self.settings.container_filter
            return build_metadata(
                event.key, event.labels, rules, container_filter, image=event.image, updated_at=event.at
            )
        if isinstance(event, ContainerCreated):
            return build_metadata(event.key, None, self.settings.label_rules, image=event.image, runtime=event.runtime)
        return None
