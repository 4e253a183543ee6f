"""Open outboxes on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from bridge.core.ports import Clock
from bridge.outbox.limits import Limits
from bridge.outbox.sqlite import SqliteOutbox


async def open_sqlite_outbox(
    path: Path, sinks: Iterable[str], clock: Clock, limits: Limits, *, on_loss: Callable[[], None] = lambda: None
) -> SqliteOutbox:
    """Create an outbox and open it; if that fails, close it."""
    outbox = SqliteOutbox(path, sinks, clock, limits, on_loss=on_loss)
    try:
        await outbox.open(ignore_lock)
    except BaseException:
        await outbox.close()
        raise
    return outbox


async def ignore_lock(_: Path) -> None:
    """Do nothing when the directory is locked."""
