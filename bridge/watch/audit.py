"""The audit: lost events leave no trace, so now and then containerd's tasks are compared with the portfolio."""

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
EVENT_SECONDS = 2.0  # that an event may be on its way, as shims publish after the fact; it would be inferred else
OVERFLOW_PAUSE = 30 * _SECOND
_JITTER = 0.1  # the share of the snapshot interval by which nodes started together drift apart


class Auditor:
    """Audits at its interval, and on request; a periodic snapshot is an audit that is published in any case.

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
            TransientError: containerd did not even list its namespaces.
        """
        self._requests.resume()
        last, pause = self._clock.now().wall, self.settings.first_audit
        snapshot_at = self._clock.now().monotonic
        while True:
            left = self._until_snapshot(snapshot_at)
            asked = await self._requests.wait(max(0.0, min(pause, left)))
            reason: Reason = "audit" if asked is None else asked.reason
            if asked is None and self._until_snapshot(snapshot_at) <= 0:
                reason = "interval"
            if reason == "overflow":
                await self._spread_overflows()
            now = self._clock.now().wall
            await self._audit(Gap(reason, last, now), asked)
            last, pause = now, self.settings.audit_interval
            if reason != "audit":
                snapshot_at, self._spread = self._clock.now().monotonic, 1 - _JITTER * self._clock.random()

    async def _audit(self, gap: Gap, asked: Asked | None) -> None:
        """Ask for the task of each container that is not as the listing says; the intake takes the answers.

        Where an event explains in the meantime what is not as listed, there is no need to ask. Where the filters are
        others than before, the records are listed as well: they tell who is in scope.
        """
        settings, rescoping = self.settings, gap.reason == "filters_changed"
        listing = await (list_all if rescoping else list_tasks)(self._source, self._clock, settings)
        keys = suspects(self._tracker, listing)
        if keys and not rescoping:  # of those who were not watched before, no event is on its way
            await self._clock.sleep(EVENT_SECONDS)
            keys &= suspects(self._tracker, listing)
        questions = [self._tracker.question(key) for key in keys]
        records = await self._records(keys - listing.containers.keys())
        answers = await ask_all(self._source, [each.key for each in questions], self._gate)
        audited = Audited(gap, listing, gap.reason != "audit", asked, settings.scope if rescoping else None)
        self._intake.answer(Answers(list(zip(questions, answers, strict=True)), records, audited))

    async def _records(self, keys: Iterable[ContainerKey]) -> list[Metadata]:
        """Fetch the records of containers that nobody had heard of."""
        found = []
        for key in keys:
            entry = self._tracker.find(key)
            if entry is None or entry.metadata is None:
                with contextlib.suppress(BridgeError):  # it is told without its labels
                    found.append(await self._source.container(key))
        return [metadata for metadata in found if metadata is not None]

    async def _spread_overflows(self) -> None:
        """A sink that loses even the snapshot that follows a loss must not have it repeated without end."""
        rest = self._overflow_due - self._clock.now().monotonic
        if rest > 0:
            await self._clock.sleep(rest / _SECOND)
        self._overflow_due = self._clock.now().monotonic + OVERFLOW_PAUSE

    def _until_snapshot(self, last: int) -> float:
        """Return the seconds until the next periodic snapshot is due, by the interval as it is set now."""
        passed = (self._clock.now().monotonic - last) / _SECOND
        return self.settings.snapshot_interval * self._spread - passed
