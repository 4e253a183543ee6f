"""Call a sink as the pump does: with retries."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

from bridge.core.errors import TransientError
from bridge.core.ports import Sink
from bridge.core.records import Record
from bridge.delivery.target_resets import DetectsReset


async def publish_until_accepted(sink: Sink, batch: Sequence[Record], *, seconds: float = 60) -> list[str]:
    """Publish until the sink has accepted the batch, and return the errors on the way."""
    return await retry_until_done(partial(sink.publish, batch), seconds=seconds)


async def retry_until_done(attempt: Callable[[], Awaitable[None]], *, seconds: float = 60) -> list[str]:
    """Retry until the attempt succeeds, and return the errors on the way."""
    errors = []
    async with asyncio.timeout(seconds):
        while True:
            try:
                await attempt()
            except TransientError as error:
                errors.append(str(error))
                await asyncio.sleep(0.05)
            else:
                return errors


async def check_until_reset(sink: DetectsReset) -> None:
    """Check the target until the sink has noticed that it lost records, and then once more."""
    async with asyncio.timeout(60):
        while not sink.resets:
            with contextlib.suppress(TransientError):  # while a server replaces the target
                await sink.check_target()
            await asyncio.sleep(0.05)
    await sink.check_target()
