"""Tasks that stand and fall together, with one error to tell instead of a group."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator

from bridge.core.errors import BridgeError, TransientError


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
