"""Task groups that raise a single error, races, and timeouts for calls that may ignore cancellation."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any, TypeVar

from bridge.core.errors import BridgeError, TransientError
from bridge.core.ports import Clock

T = TypeVar("T")

CANCEL_GRACE_SECONDS = 0.5  # for the cleanup of a call that is canceled


@contextlib.asynccontextmanager
async def task_group() -> AsyncIterator[asyncio.TaskGroup]:
    """Run tasks in a group; if tasks fail, raise the most severe error instead of a group.

    A programming error is more severe than a fatal error, and a fatal error more than a transient one, because a retry
    helps only against transient errors. If the caller has been canceled, it must not retry either, so the cancellation
    replaces a transient error; ``asyncio.TaskGroup`` would raise the error.
    """
    before, failed_in_body = _cancellations(), False
    try:
        async with asyncio.TaskGroup() as tasks:
            try:
                yield tasks
            finally:
                failed_in_body = _has_canceled_caller(tasks)
    except BaseExceptionGroup as group:
        error = min(_leaves(group), key=_rank)
        if sys.version_info < (3, 13):  # later versions deliver the cancellation again
            if _has_canceled_caller(tasks) and not failed_in_body:
                _revoke_cancellation()  # of the group, which it revokes only if a task fails in the body
            if isinstance(error, TransientError) and _cancellations() > before:
                raise asyncio.CancelledError from error
        raise error from None


def _has_canceled_caller(group: asyncio.TaskGroup) -> bool:
    """Return whether a group has canceled its caller, because a task failed."""
    return bool(getattr(group, "_parent_cancel_requested", False))


def _cancellations() -> int:
    task = asyncio.current_task()
    return 0 if task is None else task.cancelling()


def _revoke_cancellation() -> None:
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


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


async def first_of(*awaitables: Awaitable[Any]) -> tuple[int, Any]:
    """Wait until one of several awaitables is done; return its index and its result, or raise its error.

    If several are done, the first of them counts. Coroutines become tasks, which are canceled and have ended when this
    function returns; futures and tasks are left alone. For a time limit, use ``Clock.timeout`` around the call.
    """
    waited = [asyncio.ensure_future(each) for each in awaitables]  # noqa: TID251 (they end in this function)
    own = [future for future, each in zip(waited, awaitables, strict=True) if future is not each]
    try:
        await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
        index = next(index for index, future in enumerate(waited) if future.done())
        return index, waited[index].result()
    finally:
        for task in own:
            task.cancel()
        await asyncio.gather(*own, return_exceptions=True)


async def completes_within(seconds: float | None, clock: Clock, call: Awaitable[object]) -> bool:
    """Return whether a call completes within ``seconds``; otherwise, cancel it."""
    with contextlib.suppress(TimeoutError):
        async with clock.timeout(seconds):
            await call
        return True
    return False


async def with_timeout(call: Callable[[], Awaitable[T]], seconds: float | None, clock: Clock) -> T:
    """Return the result of a call; abandon the call after ``seconds`` (None: never), even if it ignores cancellation.

    Raises:
        TransientError: The call took longer than ``seconds``.
    """
    task = asyncio.ensure_future(call())  # noqa: TID251 (a group would wait for a call that ignores cancellation)
    try:
        await completes_within(seconds, clock, asyncio.wait([task]))
    except asyncio.CancelledError:
        await _abandon(task, clock)
        raise
    if not task.done():
        await _abandon(task, clock)
        raise TransientError(f"no response within {seconds:g} s")
    return task.result()


async def _abandon(task: asyncio.Future[T], clock: Clock) -> None:
    """Cancel a task and wait briefly for its end; its result is ignored."""
    task.cancel()
    task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
    await completes_within(CANCEL_GRACE_SECONDS, clock, asyncio.wait([task]))
