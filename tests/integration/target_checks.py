"""Check a sink's target as the pump does."""

from __future__ import annotations

import asyncio
import contextlib

from bridge.core.errors import TransientError
from bridge.delivery.target_resets import DetectsReset


async def check_until_reset(sink: DetectsReset) -> None:
    """Check the target until the sink has noticed that it lost records, and then once more."""
    async with asyncio.timeout(60):
        while not sink.resets:
            with contextlib.suppress(TransientError):  # while a server replaces the target
                await sink.check_target()
            await asyncio.sleep(0.05)
    await sink.check_target()
