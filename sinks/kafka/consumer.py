"""Letting go of aiokafka's consumer, in a bounded time and in full."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from aiokafka import AIOKafkaConsumer

END_SECONDS = 1.0  # for each of two steps


async def end(consumer: AIOKafkaConsumer) -> None:
    """End a consumer, whatever it is about."""
    await _bounded(consumer.stop())
    # Where a fetch was under way, aiokafka trips over its own cancellation, and leaves the client to itself.
    await _bounded(consumer._client.close())


async def _bounded(ending: Coroutine[Any, Any, None]) -> None:
    task = asyncio.ensure_future(ending)
    await asyncio.wait({task}, timeout=END_SECONDS)
    if not task.done():
        task.cancel()
    elif not task.cancelled():
        task.exception()  # it is given up: nobody wants to know
