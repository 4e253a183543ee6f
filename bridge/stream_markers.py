"""Marker events: their return verifies that a subscription works, because containerd does not confirm it.

containerd sends the events of a subscription in order, so the return of a marker shows also that every event from
before the marker has been received.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.core.containerd_model import Event, Instant, Marker
from bridge.core.errors import TransientError
from bridge.core.ports import Clock, EngineClient, EventStream
from bridge.core.time import SECOND
from bridge.task_groups import completes_within, task_group

_FIRST_RETRY_SECONDS = 0.1  # before a second marker is sent; a round trip takes 1 to 60 ms


class StreamMarkers:
    """Publish markers on one connection, and wait for their return on its stream.

    While ``busy``, a missing marker does not mean a stalled stream: the events before it are not processed yet.
    ``announcement`` returns the part of the nonce that a second bridge understands: letters and digits.
    """

    def __init__(
        self,
        client: EngineClient,
        clock: Clock,
        timeout: float,
        busy: Callable[[], bool] = lambda: False,
        announcement: Callable[[], str] = lambda: "",
    ) -> None:
        self._client = client
        self._clock = clock
        self._timeout = timeout
        self._busy = busy
        self._announcement = announcement
        self._nonce = f"{int(clock.random() * 2**64):016x}"
        self._number = 0
        self._awaited: dict[int, asyncio.Event] = {}  # by the number of the first marker of a round trip
        self._arrivals = 0

    def on_event_received(self) -> None:
        """Record that the stream delivered events, so it has not stalled."""
        self._arrivals += 1

    def receive(self, marker: Marker) -> bool:
        """Process a returned marker, after all events before it are queued; return False if it is foreign."""
        if not marker.nonce.startswith(self._nonce):
            return False
        for first, returned in self._awaited.items():
            if marker.number >= first:
                returned.set()
        return True

    async def round_trip(self) -> Instant:
        """Publish markers until one of them returns.

        A single marker may not be enough: a marker that reaches containerd before the subscription never returns.

        Returns:
            The time of the first marker: all events from before it have been received.

        Raises:
            TransientError: No marker returned in time, and no other event arrived.
        """
        first, returned = self._number + 1, asyncio.Event()
        sent, arrivals, retry_after = self._clock.now(), self._arrivals, _FIRST_RETRY_SECONDS
        self._awaited[first] = returned
        try:
            while not returned.is_set():
                self._number += 1
                await self._client.publish_marker(self._nonce + self._announcement(), self._number)
                await completes_within(retry_after, self._clock, returned.wait())
                retry_after = min(2 * retry_after, self._timeout)
                if self._arrivals != arrivals or self._busy():
                    arrivals = self._arrivals
                elif self._clock.now().monotonic - sent.monotonic > self._timeout * SECOND:
                    raise TransientError(
                        f"no events received from containerd at {self._client.path} for {self._timeout:g} s: "
                        "the event stream has stalled"
                    )
        finally:
            del self._awaited[first]
        return sent


async def read_to_marker(client: EngineClient, stream: EventStream, clock: Clock, seconds: float) -> list[Event]:
    """Read a stream until a marker that is published now returns; return all events received until then.

    Raises:
        TransientError: The stream ended, or no event arrived for ``seconds``.
    """
    markers, received = StreamMarkers(client, clock, seconds), list[Event]()

    async def read() -> None:
        while True:
            batch = await stream.batch()
            received.extend(batch)
            markers.on_event_received()
            for event in batch:
                if isinstance(event, Marker):
                    markers.receive(event)

    async with task_group() as tasks:
        reading = tasks.create_task(read())
        await markers.round_trip()
        reading.cancel()
    return received
