"""Waits for the exits of tasks, as a fallback for lost exit events.

One ``Tasks.Wait`` call is kept open for each task, from the creation of the task. containerd 2.4 loses the exit event
of a container that is removed as soon as it exits: the shim is shut down before it publishes the event. Some shims send
no events at all. A pending ``Tasks.Wait`` returns the exit status nevertheless; a call that comes too late reports at
least that the task is gone.

A call names the container only: for an older task, it would return the exit of the next one. So a call is made for a
task that containerd has just reported, and a wait ends when its result is processed, not when the call returns.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable

from bridge.core.containerd_model import ContainerKey, ExitStatus
from bridge.core.errors import BridgeError
from bridge.core.ports import Clock, WaitCalls
from bridge.core.schedule import Schedule
from bridge.core.time import SECOND, to_seconds
from bridge.retry import Backoff
from bridge.task_groups import completes_within

RETRIES = Backoff(initial=2.0, maximum=300.0, reset_after=300.0)  # seconds; the audit interval is the maximum


class ExitWaits:
    """The waits of one connection.

    Args:
        calls: The calls to containerd; closed with the waits.
        report: Called with the container, pid and exit status of each task that has exited, and of each that is gone.
            ``remove`` or ``repeat`` must follow when that is processed.
        is_replaced: Whether another task is known to have taken the place of a container's task with this pid.
    """

    def __init__(
        self,
        calls: WaitCalls,
        clock: Clock,
        report: Callable[[ContainerKey, int, ExitStatus], None],
        is_replaced: Callable[[ContainerKey, int], bool],
    ) -> None:
        self._calls = calls
        self._clock = clock
        self._report = report
        self._is_replaced = is_replaced
        self._waits: dict[tuple[ContainerKey, int], _Wait] = {}  # until their results are processed
        self._counts: Counter[ContainerKey] = Counter()
        self._repeats: Schedule[tuple[ContainerKey, int]] = Schedule()
        self._changed = asyncio.Event()
        self._closed = False

    def add(self, key: ContainerKey, pid: int) -> None:
        """Wait for a task's exit, unless that is waited for already."""
        if not self._closed and (key, pid) not in self._waits:
            self._waits[key, pid] = _Wait(self, key, pid)
            self._counts[key] += 1
            self._call(key, pid)

    def has_any(self, key: ContainerKey) -> bool:
        """Return whether the exit of a container's task, whichever it is, is waited for."""
        return key in self._counts

    def remove(self, key: ContainerKey, pid: int) -> None:
        """End a wait: its result is processed, or unwanted."""
        del self._waits[key, pid]
        self._counts[key] -= 1
        if not self._counts[key]:
            del self._counts[key]

    def repeat(self, key: ContainerKey, pid: int) -> None:
        """Call again later, with growing delays: the call has failed, or returned the exit of an earlier task."""
        wait, now = self._waits[key, pid], self._now()
        wait.failures = 1 if now - wait.started_at >= RETRIES.reset_after * SECOND else wait.failures + 1
        delay = RETRIES.delay(wait.failures, self._clock.random())
        self._repeats.add((key, pid), now + round(delay * SECOND))
        self._changed.set()

    async def repeat_calls(self) -> None:
        """Make the calls that are to be repeated, without end."""
        while True:
            due = self._repeats.next_due()
            seconds = None if due is None else to_seconds(max(0, due - self._now()))
            await completes_within(seconds, self._clock, self._changed.wait())
            self._changed.clear()
            for key, pid in self._repeats.pop_due(self._now()):
                if self._is_replaced(key, pid):
                    self.remove(key, pid)
                else:
                    self._call(key, pid)

    def close(self) -> None:
        """End all calls, and report no more results."""
        self._closed = True
        self._calls.close()

    def _call(self, key: ContainerKey, pid: int) -> None:
        wait = self._waits[key, pid]
        wait.started_at = self._now()
        self._calls.start(key, wait.end)

    def _now(self) -> int:
        return self._clock.now().monotonic

    def end(self, wait: _Wait, result: ExitStatus | BridgeError | None) -> None:
        """Process the end of a call."""
        if isinstance(result, BridgeError):  # the exit event, the delete event or the audit reports the exit as well
            self.repeat(wait.key, wait.pid)
        else:
            self._report(wait.key, wait.pid, ExitStatus(None, None) if result is None else result)


class _Wait:
    __slots__ = ("_waits", "failures", "key", "pid", "started_at")

    def __init__(self, waits: ExitWaits, key: ContainerKey, pid: int) -> None:
        self._waits = waits
        self.key = key
        self.pid = pid
        self.failures = 0
        self.started_at = 0  # monotonic

    def end(self, result: ExitStatus | BridgeError | None) -> None:
        self._waits.end(self, result)
