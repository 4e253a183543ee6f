"""Requests for a snapshot, from whoever may ask for one."""

from __future__ import annotations

import asyncio
import contextlib

from bridge.core.events import Reason


class Requests:
    """At most one request waits; the first reason stands."""

    def __init__(self) -> None:
        self._reason: Reason | None = None
        self._asked = asyncio.Event()

    def ask(self, reason: Reason) -> None:
        """Ask for a snapshot soon."""
        self._reason = self._reason or reason
        self._asked.set()

    async def wait(self, seconds: float) -> Reason | None:
        """Wait for a request; None when ``seconds`` are over first."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._asked.wait()
        reason, self._reason = self._reason, None
        self._asked.clear()
        return reason
