"""aiohttp's server, within bounds: whoever is slow, idle or many does not become a burden.

One request a connection, so that an idle one is nobody's right: it ends after ``LIFETIME`` seconds, whatever it is
about; and where there are too many, the oldest goes.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

MAX_CONNECTIONS = 64
MAX_LIFETIME_SECONDS = 60.0  # seconds
_MAX_LINE_BYTES = 4096
_MAX_HEADERS = 64

# What clients do wrong is their affair; aiohttp would log a traceback of it.
_silent_logger = logging.Logger("whalebridge.http", logging.CRITICAL + 1)


class BoundedServer(web.Server):
    """A low-level server: each request goes to one handler."""

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
        """Let a connection in; the oldest makes room for it."""
        super().connection_made(handler, transport)
        timer = asyncio.get_running_loop().call_later(MAX_LIFETIME_SECONDS, transport.abort)
        self._open_connections[handler] = transport, timer
        if len(self._open_connections) > MAX_CONNECTIONS:
            self._abort(next(iter(self._open_connections)))

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self._abort(handler)

    def _abort(self, handler: RequestHandler) -> None:
        transport, timer = self._open_connections.pop(handler, (None, None))
        if transport is not None and timer is not None:
            timer.cancel()
            transport.abort()
