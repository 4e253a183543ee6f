"""aiohttp's server with limits on the number and the lifetime of connections.

Slow, idle or numerous clients therefore use a bounded amount of memory. Each connection serves one request and is
closed after ``MAX_LIFETIME_SECONDS`` in any case; above ``MAX_CONNECTIONS``, the oldest connection is closed.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

MAX_CONNECTIONS = 64
MAX_LIFETIME_SECONDS = 60.0
_CLOSE_SECONDS = 1.0  # 0 would be no limit for aiohttp
_MAX_LINE_BYTES = 4096
_MAX_HEADERS = 64

# aiohttp would log a traceback for each invalid request.
_silent_logger = logging.Logger("whalebridge.http", logging.CRITICAL + 1)


class BoundedServer(web.Server):
    """A low-level server that passes all requests to one handler."""

    def __init__(self, handler: Any) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            logger=_silent_logger,
            access_log=None,
            max_line_size=_MAX_LINE_BYTES,
            max_field_size=_MAX_LINE_BYTES,
            max_headers=_MAX_HEADERS,
            lingering_time=0,
        )
        self._open_connections: dict[RequestHandler, tuple[asyncio.Transport, asyncio.TimerHandle]] = {}

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Add a connection; close the oldest one if there are too many."""
        super().connection_made(handler, transport)
        timer = asyncio.get_running_loop().call_later(MAX_LIFETIME_SECONDS, transport.abort)
        self._open_connections[handler] = transport, timer
        if len(self._open_connections) > MAX_CONNECTIONS:
            self._abort(next(iter(self._open_connections)))

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Remove a connection."""
        super().connection_lost(handler, exc)
        self._abort(handler)

    async def close(self) -> None:
        """Abort all connections: aiohttp alone would wait for the requests of those that have sent none."""
        for handler in [*self._open_connections]:
            self._abort(handler)
        await self.shutdown(_CLOSE_SECONDS)

    def _abort(self, handler: RequestHandler) -> None:
        transport, timer = self._open_connections.pop(handler, (None, None))
        if transport is not None and timer is not None:
            timer.cancel()
            transport.abort()
