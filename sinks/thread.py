"""A thread of one's own for writes that may block for as long as they like.

It is a daemon, because a thread stuck in a system call cannot be woken, and must not keep the process from ending.

Invariant: at most one job is in the thread's hands, however often waiting for one is given up.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import NamedTuple, TypeAlias

from bridge.core.errors import BridgeError

Translate: TypeAlias = Callable[[OSError], BridgeError]


class Worker:
    """Does jobs one after the other, in a thread that is started by the first.

    Args:
        name: What the thread is called.
        translate: Tells what an error of the operating system means.
    """

    def __init__(self, name: str, translate: Translate) -> None:
        self._name = name
        self._translate = translate
        self._jobs: SimpleQueue[_Job | None] | None = None
        self._doing: asyncio.Future[None] | None = None

    async def do(self, work: Callable[[], None]) -> None:
        """Have ``work`` done by the thread; one that nobody waits for any more is waited for first.

        Raises:
            BridgeError: It failed.
        """
        while self._doing and not self._doing.done():  # somebody gave this one up, the thread did not
            await asyncio.wait({self._doing})
        if self._jobs is None:
            self._jobs = SimpleQueue()
            threading.Thread(target=_work, args=(self._jobs, self._translate), name=self._name, daemon=True).start()
        loop = asyncio.get_running_loop()
        self._doing = loop.create_future()
        self._jobs.put(_Job(work, loop, self._doing))
        await asyncio.shield(self._doing)

    async def close(self, seconds: float) -> None:
        """Let the thread end; one that is stuck for longer is left to itself."""
        if self._doing:
            await asyncio.wait({self._doing}, timeout=seconds)
        if self._jobs:
            self._jobs.put(None)
            self._jobs = None


class _Job(NamedTuple):
    work: Callable[[], None]
    loop: asyncio.AbstractEventLoop
    done: asyncio.Future[None]


def _work(jobs: SimpleQueue[_Job | None], translate: Translate) -> None:
    while job := jobs.get():
        error: Exception | None = None
        try:
            job.work()
        except OSError as cause:
            error = translate(cause)
            error.__cause__ = cause
        except Exception as bug:  # noqa: BLE001 (it is told where somebody waits, instead of nowhere)
            error = bug
        tell(job.loop, job.done, error)


def tell(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None], error: Exception | None) -> None:
    """End ``future`` from another thread."""

    def end() -> None:
        if future.done():
            return
        if error:
            future.set_exception(error)
        else:
            future.set_result(None)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
        loop.call_soon_threadsafe(end)
