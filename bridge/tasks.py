"""Tasks that stand and fall together, with one error to tell instead of a group; and calls that may hang."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import TypeVar

from bridge.core.errors import BridgeError, TransientError

T = TypeVar("T")

GRACE_SECONDS = 0.5  # what a call that is given up gets to clean up behind itself


@contextlib.asynccontextmanager
async def together() -> AsyncIterator[asyncio.TaskGroup]:
    """Run tasks in a group; when some fail, raise the one error that matters most.

    A programming error matters more than a fatal one, that more than a transient one: trying again helps the last
    only.
    """
    try:
        async with asyncio.TaskGroup() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        raise min(_leaves(group), key=_rank) from None


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error


def _rank(error: BaseException) -> int:
    if not isinstance(error, BridgeError):
        return 0
    return 2 if isinstance(error, TransientError) else 1


async def bounded(call: Callable[[], Awaitable[T]], seconds: float | None) -> T:
    """Return what a call returns, or give it up: also one that does not let itself be cancelled; None: never.

    Raises:
        TransientError: It took longer than ``seconds``.
    """
    task = asyncio.ensure_future(call())
    try:
        done, _ = await asyncio.wait([task], timeout=seconds)
    except asyncio.CancelledError:
        await _give_up(task)
        raise
    if not done:
        await _give_up(task)
        raise TransientError(f"no answer within {seconds:g} s")
    return task.result()


async def _give_up(task: asyncio.Future[T]) -> None:
    """Cancel a task and wait for its end, but not for long; nobody is interested in what it brings."""
    task.cancel()
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    await asyncio.wait([task], timeout=GRACE_SECONDS)
