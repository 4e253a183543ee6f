"""The HTTP endpoint: which path tells what, and the control socket's POST /snapshot."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import structlog
from aiohttp import web

from bridge.telemetry.http import documents, page
from bridge.telemetry.http.connections import BoundedServer
from bridge.telemetry.http.metrics import Metrics
from bridge.telemetry.status import Bridge, evaluate

SNAPSHOT_SECONDS = 30.0
_JSON = "application/json"
_BACKLOG = 64
_SOCKET_MODE = 0o600
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d+)?")
_log = structlog.get_logger(__name__)

Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Endpoint:
    """Serves one bridge on any number of sockets.

    Args:
        bridge: The running bridge.
    """

    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge
        self._metrics = Metrics(bridge)
        self._servers: list[tuple[asyncio.Server, BoundedServer]] = []
        self._routes: dict[str, tuple[str, Handler]] = {
            "/": ("GET", self._page),
            "/livez": ("GET", self._livez),
            "/readyz": ("GET", self._readyz),
            "/metrics": ("GET", self._metrics_response),
            "/containers": ("GET", self._containers),
        }
        self._local_routes = {**self._routes, "/snapshot": ("POST", self._snapshot)}

    async def listen(self, host: str, port: int) -> list[str]:
        """Listen on TCP; return the addresses.

        Raises:
            OSError: That is not possible.
        """
        bounded = BoundedServer(partial(self._handle, local=False))
        loop = asyncio.get_running_loop()
        server = await loop.create_server(bounded, host, port, backlog=_BACKLOG)
        self._servers.append((server, bounded))
        return [_address(each) for each in server.sockets]

    async def listen_unix(self, path: Path) -> None:
        """Listen on a unix socket, which only its owner can connect to; one that is there is replaced.

        Raises:
            OSError: That is not possible.
        """
        bounded = BoundedServer(partial(self._handle, local=True))
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(bounded, sock=_private_socket(path), backlog=_BACKLOG)
        self._servers.append((server, bounded))

    async def close(self) -> None:
        """Let go of everything; who waits for an answer gets none."""
        servers, self._servers = self._servers, []
        for server, bounded in servers:
            server.close()
            await bounded.shutdown(0)

    # --- what every request goes through ---

    async def _handle(self, request: web.BaseRequest, *, local: bool) -> web.StreamResponse:
        response = await self._respond(request, local=local)
        if not response.prepared:
            _harden(response)
        return response

    async def _respond(self, request: web.BaseRequest, *, local: bool) -> web.StreamResponse:
        if not local and not _has_allowed_host(request):
            return _text(421, "request this by IP address or as localhost")
        routes = self._local_routes if local else self._routes
        method, answer = routes.get(request.path, ("", None))
        if answer is None:
            return _text(404, f"not found; available paths: {' '.join(routes)}")
        if request.method != method and (request.method, method) != ("HEAD", "GET"):
            return _text(405, f"method not allowed; use {method}", Allow=method)
        try:
            return await answer(request)
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 (aiohttp would keep a mistake of ours to itself; here the log gets it)
            _log.exception("http_request_failed", path=request.path)
            return _text(500, "internal error; see the log of whalebridge")

    # --- paths ---

    async def _livez(self, _: web.BaseRequest) -> web.Response:
        return _text(200, "ok")

    async def _readyz(self, _: web.BaseRequest) -> web.Response:
        status = self._bridge.status()
        return _json(documents.readiness(status), 200 if evaluate(status).ready else 503)

    async def _metrics_response(self, request: web.BaseRequest) -> web.Response:
        body, content_type = self._metrics.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _containers(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": _JSON})
        _harden(response)
        await response.prepare(request)
        for piece in documents.containers_document(self._bridge.status(), self._bridge.running_containers()):
            await response.write(piece)
            await asyncio.sleep(0)  # the watch comes first
        await response.write_eof()
        return response

    async def _page(self, _: web.BaseRequest) -> web.Response:
        text = page.render(self._bridge.status(), self._bridge.running_containers(), time.time_ns())
        return web.Response(text=text, content_type="text/html", headers={"Content-Security-Policy": page.POLICY})

    async def _snapshot(self, _: web.BaseRequest) -> web.Response:
        if not self._bridge.status().synced:
            return _json({"error": "containerd is not connected; see /readyz"}, 503)
        try:
            async with asyncio.timeout(SNAPSHOT_SECONDS):
                taken = await self._bridge.snapshot()
        except TimeoutError:
            return _json({"error": f"snapshot timed out after {SNAPSHOT_SECONDS:g} s; it stays queued"}, 504)
        return _json({"id": taken.id, "containers": taken.containers})


def _harden(response: web.StreamResponse) -> None:
    response.force_close()
    response.headers["Server"] = "whalebridge"
    response.headers.setdefault("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.headers["Referrer-Policy"] = "no-referrer"
    response.headers["Cache-Control"] = "no-store"


def _text(status: int, text: str, **headers: str) -> web.Response:
    return web.Response(status=status, text=f"{text}\n", headers=headers)


def _json(document: Any, status: int = 200) -> web.Response:
    return web.Response(body=msgspec.json.encode(document) + b"\n", status=status, content_type=_JSON)


def _has_allowed_host(request: web.BaseRequest) -> bool:
    """Whether a page of some other site, whose name leads here, is not behind a request (DNS rebinding).

    Whoever listens on more than this host has names that nobody here knows.
    """
    own = request.transport.get_extra_info("sockname") if request.transport else None
    if own is None or not ipaddress.ip_address(own[0]).is_loopback:
        return True
    found = _HOST.fullmatch(request.headers.get("Host", "localhost"))
    if found is None:
        return False
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(found[1].strip("[]"))
        return True
    return found[1].lower() == "localhost"


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _private_socket(path: Path) -> socket.socket:
    """Make a unix socket in a directory, whose path may be longer than the kernel lets a socket's be.

    It gets its name when it is as it shall be; so nobody else can ever connect, and there is no moment without one.
    """
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    made = socket.socket(socket.AF_UNIX)
    new = f"{path.name}.new"
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(new, dir_fd=folder)
        made.bind(f"/proc/self/fd/{folder}/{new}")
        os.chmod(f"/proc/self/fd/{folder}/{new}", _SOCKET_MODE)
        os.rename(new, path.name, src_dir_fd=folder, dst_dir_fd=folder)
    except OSError:
        made.close()
        raise
    finally:
        os.close(folder)
    return made
