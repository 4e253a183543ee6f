"""Core NATS: publishes records to the current subscribers. Nothing is acknowledged or stored."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bridge.core.errors import RefusedRecordError
from sinks.nats.exchange import Exchange, Message, always

if TYPE_CHECKING:
    from sinks.nats.link import Link
    from sinks.nats.messages import Item


class CoreWriter:
    """Publishes over one connection."""

    def __init__(self, link: Link) -> None:
        self._link = link

    async def store(self, items: Sequence[Item]) -> None:
        """Publish messages in order; return when the server has read them.

        Raises:
            RejectedRecordError: Some messages are too large.
            TransientError: The connection failed and must be closed.
        """
        limit = self._link.max_payload
        too_large = frozenset(item.position for item in items if len(item.data) + item.header_size > limit)
        if too_large:
            where = f"NATS at {self._link.place.server}"
            raise RefusedRecordError(
                f"record is too large for {where}: the limit is {limit} bytes with headers (max_payload)", too_large
            )
        messages = [Message(item.subject, item.data, item.headers or None, answered=False) for item in items]
        await Exchange(self._link, messages, always).run()
        await self._link.flush()
