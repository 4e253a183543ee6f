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

MOST = 64
LIFETIME = 60.0  # seconds
_LINE_BYTES = 4096
_HEADERS = 64

# What clients do wrong is their affair; aiohttp would log a traceback of it.
_silent = logging.Logger("whalebridge.http", logging.CRITICAL + 1)


class BoundedServer(web.Server):
    """A low-level server: each request goes to one handler."""

    def __init__(self, handler: Any) -> None:
        super().__init__(
            handler,
            handler_cancellation=True,
            logger=_silent,
            access_log=None,
            max_line_size=_LINE_BYTES,
            max_field_size=_LINE_BYTES,
            max_headers=_HEADERS,
            lingering_time=0,
        )
        self._open: dict[RequestHandler, tuple[asyncio.Transport, asyncio.TimerHandle]] = {}

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Let a connection in; the oldest makes room for it."""
        super().connection_made(handler, transport)
        timer = asyncio.get_running_loop().call_later(LIFETIME, transport.abort)
        self._open[handler] = transport, timer
        if len(self._open) > MOST:
            self._drop(next(iter(self._open)))

    def connection_lost(self, handler: RequestHandler, exc: BaseException | None = None) -> None:
        """Forget a connection."""
        super().connection_lost(handler, exc)
        self._drop(handler)

    def _drop(self, handler: RequestHandler) -> None:
        transport, timer = self._open.pop(handler, (None, None))
        if transport is not None and timer is not None:
            timer.cancel()
            transport.abort()
