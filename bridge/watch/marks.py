"""Marks: events of our own whose return proves that a subscription works, as containerd gives no other sign."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.core.errors import TransientError
from bridge.core.model import Mark
from bridge.core.ports import Clock, Source

_PATIENCE = 0.1  # seconds before a second mark is sent; 1 to 60 ms is what one takes
_SECOND = 1_000_000_000


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
        self._first = 0
        self._awaited: asyncio.Future[None] | None = None
        self._arrivals = 0
        self.proven: int | None = None  # the moment (monotonic) up to which the stream is proven

    def arrived(self) -> None:
        """Take note that something arrived on the stream."""
        self._arrivals += 1

    def returned(self, mark: Mark) -> bool:
        """Take note of a mark that came back, all events before it being queued; False for another bridge's."""
        if mark.nonce != self._nonce:
            return False
        if mark.number >= self._first and self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)
        return True

    async def prove(self) -> int:
        """Publish marks until one of them is back.

        More than one may be needed: a mark that overtakes the subscription on its way to containerd never comes back.

        Returns:
            The moment (wall clock) up to which the stream is proven: when the first mark was sent.

        Raises:
            TransientError: None came back in time, and nothing else arrived meanwhile.
        """
        self._first = self._number + 1
        self._awaited = asyncio.get_running_loop().create_future()
        sent, arrivals, patience = self._clock.now(), self._arrivals, _PATIENCE
        while not self._awaited.done():
            self._number += 1
            await self._source.mark(self._nonce, self._number)
            await asyncio.wait([self._awaited], timeout=patience)
            patience = min(2 * patience, self._timeout)
            if self._arrivals != arrivals or self._busy():
                arrivals = self._arrivals
            elif self._clock.now().monotonic - sent.monotonic > self._timeout * _SECOND:
                raise TransientError(
                    f"no events received from containerd for {self._timeout:g} s: the event stream has stalled"
                )
        self.proven = sent.monotonic
        return sent.wall
