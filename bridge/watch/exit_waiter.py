"""Fallback for lost exit events: keeps one ``Tasks.Wait`` call open per task, from the creation of the task.

containerd 2.4 loses the exit event of a container that is removed as soon as it exits: the shim is shut down before it
publishes the event. Some shims send no events at all. A pending Tasks.Wait returns the exit status nevertheless; a call
that comes too late reports at least that the task is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.core.containerd_model import ContainerKey, ExitStatus
from bridge.core.errors import BridgeError
from bridge.core.ports import Clock, EngineClient
from bridge.retry import Backoff, retry_until_success

MAX_WAITS = 2000  # concurrent calls of about 30 KiB each; an exit without one and without an event is left to the audit
RETRIES = Backoff(initial=2.0, maximum=300.0, reset_after=300.0)  # seconds; the audit interval is the maximum


class ExitWaiter:
    """Wait for the exits of tasks on one connection.

    Args:
        client: The client of the containerd.
        clock: For the pauses after failed calls.
        on_exit: Called for each exit, with the pid that the task had when the wait began.
    """

    def __init__(
        self, client: EngineClient, clock: Clock, on_exit: Callable[[ContainerKey, int, ExitStatus], None]
    ) -> None:
        self._client = client
        self._clock = clock
        self._on_exit = on_exit
        self._waits: dict[tuple[ContainerKey, int], asyncio.Task[None]] = {}
        self._closed = False

    def wait_for_exit(self, key: ContainerKey, pid: int) -> None:
        """Wait for a task's exit in the background, unless a wait is pending already or the limit is reached."""
        if self._closed or (key, pid) in self._waits or len(self._waits) >= MAX_WAITS:
            return
        task = asyncio.create_task(self._wait(key, pid))
        self._waits[key, pid] = task
        task.add_done_callback(lambda _: self._waits.pop((key, pid), None))

    def close(self) -> None:
        """Cancel all waits and start no more: items processed after a connection's end must not start calls on it."""
        self._closed = True
        for task in list(self._waits.values()):
            task.cancel()

    async def _wait(self, key: ContainerKey, pid: int) -> None:
        try:
            exit_status = await retry_until_success(
                lambda: self._client.wait_for_exit(key), clock=self._clock, backoff=RETRIES
            )
        except BridgeError:
            return  # only a fallback: the exit event, the delete event or the audit reports the exit as well
        self._on_exit(key, pid, ExitStatus(None, None) if exit_status is None else exit_status)
