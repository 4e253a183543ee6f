"""Marker events: their return verifies that a subscription works, because containerd does not confirm it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.core.containerd_model import Marker
from bridge.core.errors import TransientError
from bridge.core.ports import Clock, EngineClient
from bridge.core.time import SECOND

_FIRST_RETRY_SECONDS = 0.1  # before a second marker is sent; a round trip takes 1 to 60 ms


class StreamMarkers:
    """Publish markers on one connection, and wait for their return on its stream.

    While ``busy``, a missing marker does not mean a stalled stream: the events before it are not processed yet.
    ``announcement`` returns the part of the nonce that other bridges understand: letters and digits.
    """

    def __init__(
        self,
        client: EngineClient,
        clock: Clock,
        timeout: float,
        busy: Callable[[], bool],
        announcement: Callable[[], str] = lambda: "",
    ) -> None:
        self._busy = busy
        self._announcement = announcement
        self._client = client
        self._clock = clock
        self._timeout = timeout
        self._nonce = f"{int(clock.random() * 2**64):016x}"
        self._number = 0
        self._first_number = 0
        self._awaited_return: asyncio.Future[None] | None = None
        self._arrivals = 0
        self.watermark_monotonic: int | None = None  # the watermark on the monotonic clock

    def on_event_received(self) -> None:
        """Record that the stream delivered events, so it has not stalled."""
        self._arrivals += 1

    def receive(self, marker: Marker) -> bool:
        """Process a returned marker, after all events before it are queued; return False if it is foreign."""
        if not marker.nonce.startswith(self._nonce):
            return False
        if marker.number >= self._first_number and self._awaited_return is not None and not self._awaited_return.done():
            self._awaited_return.set_result(None)
        return True

    async def round_trip(self) -> int:
        """Publish markers until one of them returns.

        A single marker may not be enough: a marker that reaches containerd before the subscription never returns.

        Returns:
            The watermark (wall clock): the time of the first marker, before which all events have been received.

        Raises:
            TransientError: No marker returned in time, and no other event arrived.
        """
        self._first_number = self._number + 1
        self._awaited_return = asyncio.get_running_loop().create_future()
        sent, arrivals, retry_after = self._clock.now(), self._arrivals, _FIRST_RETRY_SECONDS
        while not self._awaited_return.done():
            self._number += 1
            await self._client.publish_marker(self._nonce + self._announcement(), self._number)
            await asyncio.wait([self._awaited_return], timeout=retry_after)
            retry_after = min(2 * retry_after, self._timeout)
            if self._arrivals != arrivals or self._busy():
                arrivals = self._arrivals
            elif self._clock.now().monotonic - sent.monotonic > self._timeout * SECOND:
                raise TransientError(
                    f"no events received from containerd for {self._timeout:g} s: the event stream has stalled"
                )
        self.watermark_monotonic = sent.monotonic
        return sent.wall
