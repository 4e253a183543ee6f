"""Marks: events of our own whose return proves that a subscription works, as containerd gives no other sign."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.core.errors import TransientError
from bridge.core.model import Mark
from bridge.core.ports import Clock, Source


class Marks:
    """Publishes marks on one connection and waits for them to come back on its stream.

    While ``busy``, a mark's not being back is our own doing: events before it are not decided on yet.
    """

    def __init__(self, source: Source, clock: Clock, timeout: float, busy: Callable[[], bool]) -> None:
        self._busy = busy
        self._source = source
        self._clock = clock
        self._timeout = timeout
        self._nonce = f"{int(clock.random() * 2**64):016x}"
        self._number = 0
        self._awaited: asyncio.Future[None] | None = None
        self._arrivals = 0

    def arrived(self) -> None:
        """Take note that something arrived on the stream."""
        self._arrivals += 1

    def returned(self, mark: Mark) -> bool:
        """Take note of a mark that came back, all events before it being queued; False for another bridge's."""
        if mark == Mark(self._nonce, self._number) and self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)
        return mark.nonce == self._nonce

    async def prove(self) -> int:
        """Publish a mark and wait until it is back.

        Returns:
            The moment (wall clock) up to which the stream is proven: when the mark was sent.

        Raises:
            TransientError: It did not come back in time, and nothing else arrived meanwhile.
        """
        self._number += 1
        self._awaited = asyncio.get_running_loop().create_future()
        sent = self._clock.now().wall
        await self._source.mark(self._nonce, self._number)
        while not await self._back(self._awaited):
            pass
        return sent

    async def _back(self, awaited: asyncio.Future[None]) -> bool:
        """Wait for the mark; False where it may still come, since a backlog is being delivered before it."""
        before = self._arrivals
        done, _ = await asyncio.wait([awaited], timeout=self._timeout)
        if not done and self._arrivals == before and not self._busy():
            raise TransientError(f"containerd's event stream gave no sign of life for {self._timeout:g} s")
        return bool(done)
