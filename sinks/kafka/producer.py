"""aiokafka's producer, with an end that comes in time.

``AIOKafkaProducer.stop()`` waits until all is delivered, which with a dead broker is never; what it leaves behind goes
on trying, and may deliver old records hours later. Therefore this one can be abandoned: nothing of it goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError

END_SECONDS = 0.5  # for each of its two steps
_CANCELS = 10  # the sender passes the first ones on to what it waits for


class Producer(AIOKafkaProducer):  # type: ignore[misc] # aiokafka has no types
    """An idempotent producer whose batches may be as large as a request; acknowledged is what all replicas have."""

    def __init__(
        self, servers: list[str], *, compression: str | None, max_bytes: int, request_seconds: float, **options: Any
    ) -> None:
        super().__init__(
            bootstrap_servers=servers,
            enable_idempotence=True,
            acks="all",
            compression_type=compression,
            max_batch_size=max_bytes,
            max_request_size=max_bytes,
            request_timeout_ms=int(request_seconds * 1000),
            **options,
        )

    async def abandon(self) -> None:
        """End at once, whatever is under way, in a bounded time."""
        for connection in list(self.client._conns.values()):
            if connection._writer is not None:  # else what is not yet sent would wait for the broker to take it
                connection._writer.transport.abort()
        sender = self._sender.sender_task
        for _ in range(_CANCELS):
            if sender is None or sender.done():
                break
            sender.cancel()
            await asyncio.wait({sender}, timeout=END_SECONDS / _CANCELS)
        self._fail_batches()
        with contextlib.suppress(Exception):  # of whatever was under way: it is given up
            await asyncio.wait_for(self.stop(), END_SECONDS)

    def _fail_batches(self) -> None:
        accumulator = self._message_accumulator
        batches = {*accumulator._pending_batches, *(each for queue in accumulator._batches.values() for each in queue)}
        accumulator._pending_batches |= batches  # where aiokafka looks for them, also for what waits for its next try
        accumulator.fail_all(KafkaConnectionError("abandoned"))
        for batch in batches:
            for future in (batch.future, batch._drain_waiter):
                if future.done() and not future.cancelled():
                    future.exception()  # whoever waits has it as well; where nobody does, asyncio would log it
