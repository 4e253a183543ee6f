from __future__ import annotations

import asyncio

import pytest

from bridge.core.errors import FatalError, TransientError
from bridge.task_groups import task_group


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


async def test_task_group_is_cancelable() -> None:
    async def run() -> None:
        async with task_group() as tasks:
            tasks.create_task(asyncio.sleep(60))

    task = asyncio.create_task(run())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
