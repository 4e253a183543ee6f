"""Model of a broker with one topic or stream, and the sink that publishes to it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from random import Random

from bridge.core.errors import FatalError, RejectedRecordError, TransientError
from bridge.core.ports import Clock
from bridge.core.records import Record

OVERSIZED = b'"app.oversized"'  # a record with this label is too large


class Broker:
    """A broker that stores records.

    ``ordered``: a batch is stored in order, or a beginning of it, as by Kafka's partition; otherwise any part of it in
    any order, as by a stream without atomic batches. The faults: it is ``down`` or ``misconfigured``, ``rejects``
    oversized records, and loses acknowledgements, changes its leader and hangs with ``fault_probability``.
    """

    def __init__(self, name: str, rng: Random, trace: Callable[[str], None], *, ordered: bool) -> None:
        self.name = name
        self.ordered = ordered
        self.stored: list[Record] = []
        self.rejected: set[tuple[int, int]] = set()
        self.down = self.misconfigured = self.rejects = False
        self.fault_probability = 0.0
        self.largest_batch = 0
        self._rng = rng
        self._trace = trace

    def draw(self, outcomes: Sequence[str]) -> str:
        """Return "stored", or with the probability of faults one of the outcomes."""
        return self._rng.choice(outcomes) if self._rng.random() < self.fault_probability else "stored"

    def latency(self) -> float:
        return self._rng.choice((0.0, 0.001, 0.02, 0.3))

    def store(self, batch: Sequence[Record], *, partly: bool = False) -> None:
        records = list(batch)
        if not self.ordered:
            self._rng.shuffle(records)
        if partly:
            del records[self._rng.randrange(len(records) + 1) :]
        self.stored += records
        for record in records:
            self._trace(f"{self.name} stores {record.id} {record.type} {record.subject}")

    def reject(self, batch: Sequence[Record]) -> None:
        """Reject oversized records.

        Raises:
            RejectedRecordError: There are some.
        """
        oversized = {(r.epoch, r.sequence) for r in batch if OVERSIZED in r.data and r.type != "lost"}
        if self.rejects and oversized:
            self.rejected |= oversized
            self._trace(f"{self.name} rejects {sorted(oversized)}")
            raise RejectedRecordError("too large", frozenset(oversized))


class BrokerSink:
    """A sink of one bridge process; after the process was killed, a batch in flight may still be stored."""

    def __init__(self, broker: Broker, clock: Clock, rng: Random) -> None:
        self._broker = broker
        self._clock = clock
        self._rng = rng
        self._in_flight: Sequence[Record] = ()
        self.killed = False

    async def start(self) -> None:
        await self._request()

    async def publish(self, batch: Sequence[Record]) -> None:
        broker = self._broker
        broker.largest_batch = max(broker.largest_batch, len(batch))
        await self._request()
        broker.reject(batch)
        outcome = broker.draw(("lost acknowledgement", "leader change", "hang before", "hang after"))
        if outcome != "stored":
            broker._trace(f"{broker.name}: {outcome}")
        if outcome == "leader change":
            broker.store(batch, partly=True)
            raise TransientError("not the leader")
        if outcome == "hang before":
            await asyncio.Event().wait()
        self._in_flight = batch
        await self._wait()
        self._in_flight = ()
        broker.store(batch)
        if outcome == "hang after":
            await asyncio.Event().wait()
        await self._wait()
        if outcome == "lost acknowledgement":
            raise TransientError("no acknowledgement")

    async def close(self) -> None:
        """Do nothing."""

    def kill(self) -> None:
        """End the process."""
        self.killed = True
        if self._in_flight and self._rng.random() < 0.5:
            self._broker.store(self._in_flight, partly=self._rng.random() < 0.5)

    async def _request(self) -> None:
        await self._wait()
        if self._broker.misconfigured:
            raise FatalError("not authorized")
        if self._broker.down:
            raise TransientError("connection refused")

    async def _wait(self) -> None:
        await self._clock.sleep(self._broker.latency())
        if self.killed:
            await asyncio.Event().wait()
