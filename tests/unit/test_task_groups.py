from __future__ import annotations

import asyncio
import contextlib
import sys

import pytest

from bridge.core.errors import FatalError, TransientError
from bridge.core.time import SECOND
from bridge.task_groups import CANCEL_GRACE_SECONDS, first_of, task_group, with_timeout
from tests.virtual_time import VirtualClock


async def fail(error: Exception) -> None:
    raise error


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([TransientError("t"), FatalError("f")], FatalError),
        ([FatalError("f"), TransientError("t"), KeyError("bug")], KeyError),
        ([TransientError("t")], TransientError),
    ],
)
async def test_task_group_raises_most_important_error(errors: list[Exception], expected: type[Exception]) -> None:
    async def all_fail() -> None:
        async with task_group() as tasks:
            for error in errors:
                tasks.create_task(fail(error))

    with pytest.raises(expected):
        await all_fail()


async def test_task_group_unwraps_nested_groups() -> None:
    async def nested() -> None:
        async with asyncio.TaskGroup() as inner:
            inner.create_task(fail(FatalError("deep")))

    async def outer() -> None:
        async with task_group() as tasks:
            tasks.create_task(nested())

    with pytest.raises(FatalError, match="deep"):
        await outer()


@pytest.mark.parametrize("failing", ["after", "before"])
@pytest.mark.parametrize("in_body", [False, True])
@pytest.mark.parametrize(
    ("error", "expected"), [(TransientError("t"), asyncio.CancelledError), (FatalError("f"), FatalError)]
)
async def test_task_group_is_cancelable_while_its_tasks_fail(
    *, error: Exception, expected: type[BaseException], in_body: bool, failing: str
) -> None:
    """A transient error would make the caller retry, although it was canceled. A task fails after it, or before."""
    started = asyncio.Event()

    async def fail_when_canceled() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise error

    async def retry() -> None:
        while True:
            with contextlib.suppress(TransientError):
                async with task_group() as tasks:
                    tasks.create_task(fail_when_canceled())
                    if failing == "before":
                        tasks.create_task(fail(error))
                    started.set()
                    if in_body:
                        await asyncio.Event().wait()
            await asyncio.sleep(0)
            return

    task = asyncio.create_task(retry())
    await started.wait()
    if failing == "before":
        await asyncio.sleep(0)  # the task fails, and the group begins to cancel the others
    task.cancel()
    with pytest.raises(expected):
        await task


@pytest.mark.parametrize("in_body", [False, True])
async def test_failed_task_group_leaves_no_cancellation(*, in_body: bool) -> None:
    """Otherwise, a group around it would take it for a cancellation of its caller."""

    async def run() -> None:
        async with task_group() as tasks:
            tasks.create_task(fail(TransientError("t")))
            if in_body:
                await asyncio.Event().wait()

    with pytest.raises(TransientError):
        await run()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="later versions deliver the cancellation again")
def test_asyncio_has_internal_that_task_group_uses() -> None:
    assert hasattr(asyncio.TaskGroup(), "_parent_cancel_requested"), "see bridge/task_groups.py"


async def test_task_group_is_cancelable() -> None:
    async def run() -> None:
        async with task_group() as tasks:
            tasks.create_task(asyncio.sleep(60))

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_first_of_returns_index_and_result_of_first_to_end(clock: VirtualClock) -> None:
    async def after(seconds: float) -> float:
        await clock.sleep(seconds)
        return seconds

    assert await first_of(after(3), after(1), after(2)) == (1, 1)
    assert await first_of(after(1), after(1)) == (0, 1)


async def test_first_of_cancels_coroutines_and_leaves_futures(clock: VirtualClock) -> None:
    future = asyncio.get_running_loop().create_future()
    ended = asyncio.Event()

    async def loser() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    assert await first_of(loser(), future, clock.sleep(1)) == (2, None)
    assert ended.is_set()
    assert not future.done()


async def test_first_of_raises_error_and_is_cancelable(clock: VirtualClock) -> None:
    with pytest.raises(FatalError, match="broken"):
        await first_of(clock.sleep(1), fail(FatalError("broken")))
    with pytest.raises(TimeoutError):
        async with clock.timeout(1):
            await first_of(clock.sleep(2), asyncio.Event().wait())


async def test_with_timeout_returns_result_or_raises(clock: VirtualClock) -> None:
    async def call() -> str:
        await clock.sleep(1)
        return "done"

    assert await with_timeout(call, 1.1, clock) == await with_timeout(call, None, clock) == "done"
    with pytest.raises(TransientError, match="no response"):
        await with_timeout(call, 0.9, clock)


async def test_with_timeout_abandons_call_that_ignores_cancellation(clock: VirtualClock) -> None:
    async def call() -> None:
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await clock.sleep(60)
                return

    before = clock.now().monotonic
    with pytest.raises(TransientError, match="no response"):
        await with_timeout(call, 2, clock)
    assert clock.now().monotonic - before == (2 + CANCEL_GRACE_SECONDS) * SECOND
