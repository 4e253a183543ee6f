"""aiokafka's producer, extended with a bounded stop.

``AIOKafkaProducer.stop()`` waits until everything is delivered, which with a dead broker is never; an interrupted stop
leaves tasks that retry and may deliver old records hours later. ``abandon()`` ends all tasks of a producer.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

STOP_STEP_SECONDS = 0.5  # for each of the two steps of abandon()
_MAX_CANCELS = 10  # the sender forwards the first cancellations to the tasks that it awaits


class Producer(AIOKafkaProducer):  # type: ignore[misc] # aiokafka has no types
    """An idempotent producer with ``acks=all``, whose batches may be as large as a request."""

    def __init__(
        self, servers: list[str], *, compression: str | None, max_bytes: int, request_timeout: float, **options: Any
    ) -> None:
        super().__init__(
            bootstrap_servers=servers,
            enable_idempotence=True,
            acks="all",
            compression_type=compression,
            max_batch_size=max_bytes,
            max_request_size=max_bytes,
            request_timeout_ms=int(request_timeout * 1000),
            **options,
        )

    async def abandon(self) -> None:
        """Stop in a bounded time, without waiting for deliveries in flight."""
        for connection in list(self.client._conns.values()):
            if connection._writer is not None:  # otherwise unsent data would wait for the broker
                connection._writer.transport.abort()
        sender = self._sender.sender_task
        for _ in range(_MAX_CANCELS):
            if sender is None or sender.done():
                break
            sender.cancel()
            await asyncio.wait({sender}, timeout=STOP_STEP_SECONDS / _MAX_CANCELS)
        self._fail_batches()
        with contextlib.suppress(Exception):  # errors of abandoned deliveries
            await asyncio.wait_for(self.stop(), STOP_STEP_SECONDS)

    def _fail_batches(self) -> None:
        accumulator = self._message_accumulator
        batches = {*accumulator._pending_batches, *(each for queue in accumulator._batches.values() for each in queue)}
        accumulator._pending_batches |= batches  # fail_all() looks here; batches that wait for a retry are elsewhere
        accumulator.fail_all(KafkaConnectionError("abandoned"))
        for batch in batches:
            for future in (batch.future, batch._drain_waiter):
                if future.done() and not future.cancelled():
                    future.exception()  # retrieved, so that asyncio does not log it if no task awaits it
