"""A second witness of each exit: containerd is asked to wait for the task from its creation on.

containerd 2.4 loses exit events of containers that are removed the moment they end: the shim is shut down before it
has published them. Whoever waited for the task has its status all the same; and who comes too late for that learns at
least that it is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.core.errors import BridgeError
from bridge.core.model import ContainerKey, TaskEnd
from bridge.core.ports import Source

MOST = 2000  # waiting calls; each holds some 30 KiB. Beyond, a lost exit is told without its status.


class Endings:
    """Waits for the ends of tasks on one connection.

    Args:
        source: The containerd.
        report: Told of each end, with the pid that the task had when the waiting began.
    """

    def __init__(self, source: Source, report: Callable[[ContainerKey, int, TaskEnd], None]) -> None:
        self._source = source
        self._report = report
        self._waiting: dict[tuple[ContainerKey, int], asyncio.Task[None]] = {}
        self._closed = False

    def expect(self, key: ContainerKey, pid: int) -> None:
        """Begin to wait for a task's end, unless that is being done already or too many are waited for."""
        if self._closed or (key, pid) in self._waiting or len(self._waiting) >= MOST:
            return
        task = asyncio.create_task(self._wait(key, pid))
        self._waiting[key, pid] = task
        task.add_done_callback(lambda _: self._waiting.pop((key, pid), None))

    def close(self) -> None:
        """Wait for nothing any more; what is decided on after a connection's end must not hold calls on it."""
        self._closed = True
        for task in list(self._waiting.values()):
            task.cancel()

    async def _wait(self, key: ContainerKey, pid: int) -> None:
        try:
            end = await self._source.wait(key)
        except BridgeError:
            return  # it is a second witness only: the event, the delete event or the audit tells of the end, too
        self._report(key, pid, TaskEnd(None, None) if end is None else end)
