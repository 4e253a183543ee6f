"""Audit: compare containerd's tasks with the tracked state at intervals, because lost events leave no trace."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

from bridge.core.encode import Gap
from bridge.core.errors import BridgeError
from bridge.core.events import Reason
from bridge.core.model import ContainerKey, Metadata
from bridge.core.ports import Clock, Source
from bridge.core.reconcile import suspects
from bridge.core.tracker import Tracker
from bridge.watch.intake import Answers, Audited, Intake
from bridge.watch.listing import ask_all, list_all, list_tasks
from bridge.watch.requests import Asked, Requests
from bridge.watch.settings import WatchSettings

_SECOND = 1_000_000_000
EVENT_SECONDS = 2.0  # wait for an event in flight, because shims publish after they change state
OVERFLOW_PAUSE = 30 * _SECOND
_JITTER = 0.1  # fraction of the snapshot interval, so that nodes started together drift apart


class Auditor:
    """Audit at intervals and on request; a periodic snapshot is an audit that is published in any case.

    ``settings`` may be replaced at any time.
    """

    def __init__(
        self,
        source: Source,
        clock: Clock,
        settings: WatchSettings,
        tracker: Tracker,
        intake: Intake,
        requests: Requests,
        gate: asyncio.Semaphore,
    ) -> None:
        self._source = source
        self._clock = clock
        self.settings = settings
        self._tracker = tracker
        self._intake = intake
        self._requests = requests
        self._gate = gate
        self._spread = 1 - _JITTER * clock.random()
        self._overflow_due = 0

    async def run(self) -> None:
        """Audit until the connection ends.

        Raises:
            TransientError: containerd could not list its namespaces.
        """
        self._requests.resume()
        last, pause = self._clock.now().wall, self.settings.first_audit
        snapshot_at = self._clock.now().monotonic
        while True:
            left = self._until_snapshot(snapshot_at)
            request = await self._requests.wait(max(0.0, min(pause, left)))
            reason: Reason = "audit" if request is None else request.reason
            if request is None and self._until_snapshot(snapshot_at) <= 0:
                reason = "interval"
            if reason == "overflow":
                await self._spread_overflows()
            now = self._clock.now().wall
            await self._audit(Gap(reason, last, now), request)
            last, pause = now, self.settings.audit_interval
            if reason != "audit":
                snapshot_at, self._spread = self._clock.now().monotonic, 1 - _JITTER * self._clock.random()

    async def _audit(self, gap: Gap, asked: Asked | None) -> None:
        """Query the task of each container that does not match the listing; the results go to the event queue.

        A mismatch that an event explains in the meantime needs no query. If the filters have changed, the metadata is
        listed as well, because it determines the scope.
        """
        settings, filters_changed = self.settings, gap.reason == "filters_changed"
        listing = await (list_all if filters_changed else list_tasks)(self._source, self._clock, settings)
        keys = suspects(self._tracker, listing)
        if keys and not filters_changed:  # newly watched containers have no events in flight
            await self._clock.sleep(EVENT_SECONDS)
            keys &= suspects(self._tracker, listing)
        queries = [self._tracker.question(key) for key in keys]
        metadata = await self._records(keys - listing.containers.keys())
        results = await ask_all(self._source, [query.key for query in queries], self._gate)
        audited = Audited(gap, listing, gap.reason != "audit", asked, settings.scope if filters_changed else None)
        self._intake.answer(Answers(list(zip(queries, results, strict=True)), metadata, audited))

    async def _records(self, keys: Iterable[ContainerKey]) -> list[Metadata]:
        """Fetch the metadata of unknown containers."""
        found = []
        for key in keys:
            entry = self._tracker.find(key)
            if entry is None or entry.metadata is None:
                with contextlib.suppress(BridgeError):  # published without labels
                    found.append(await self._source.container(key))
        return [metadata for metadata in found if metadata is not None]

    async def _spread_overflows(self) -> None:
        """Wait between snapshots for overflows: a sink that loses even these must not cause one after the other."""
        rest = self._overflow_due - self._clock.now().monotonic
        if rest > 0:
            await self._clock.sleep(rest / _SECOND)
        self._overflow_due = self._clock.now().monotonic + OVERFLOW_PAUSE

    def _until_snapshot(self, last: int) -> float:
        """Return the seconds until the next periodic snapshot, according to the current interval."""
        passed = (self._clock.now().monotonic - last) / _SECOND
        return self.settings.snapshot_interval * self._spread - passed
