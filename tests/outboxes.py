"""Open outboxes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bridge.clock import SystemClock
from bridge.core.ports import Clock
from bridge.outbox.outbox import StoredOutbox
from bridge.outbox.sink_queue import Limits

WIDE_LIMITS = Limits(max_records=1_000_000, max_bytes=1 << 30, max_age=7 * 24 * 3600)
TIGHT_LIMITS = Limits(max_records=100, max_bytes=1 << 30, max_age=3600)


@asynccontextmanager
async def open_outbox(
    path: Path | None, *sinks: str, clock: Clock | None = None, limits: Limits = WIDE_LIMITS
) -> AsyncIterator[StoredOutbox]:
    """Have an outbox in a directory, or in memory, open during the context. Its only sink is "s" by default."""
    async with StoredOutbox(path, sinks or ["s"], clock or SystemClock(), limits) as outbox:
        await outbox.open()
        yield outbox
