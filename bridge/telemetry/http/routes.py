"""The paths that the HTTP endpoint and the control socket serve.

aiohttp and prometheus_client are imported here only, because they take 0.1 s and 10 MiB.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeAlias

import msgspec
import structlog
from aiohttp import web

from bridge.core.ports import Clock
from bridge.telemetry.http import json_documents, status_page
from bridge.telemetry.http.bounded_server import BoundedServer
from bridge.telemetry.http.metrics import Metrics
from bridge.telemetry.status import BridgeInspector, evaluate

SNAPSHOT_SECONDS = 30.0
_JSON = "application/json"
_PATHS_WITH_CONTAINERS = ("/", "/containers")
_HOST = re.compile(r"(\[[^\]]*\]|[^:]*)(?::\d+)?")
_log = structlog.get_logger(__name__)

Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class Routes:
    """Responds to the requests of all sockets; ``containers``: whether TCP serves the paths that name containers."""

    def __init__(self, bridge: BridgeInspector, clock: Clock, *, containers: bool) -> None:
        self._bridge = bridge
        self._clock = clock
        self._names_containers = containers
        self._metrics = Metrics(bridge)
        self._routes: dict[str, tuple[str, Handler]] = {
            "/": ("GET", self._page),
            "/livez": ("GET", self._livez),
            "/readyz": ("GET", self._readyz),
            "/metrics": ("GET", self._metrics_response),
            "/containers": ("GET", self._containers),
        }
        self._local_routes = {**self._routes, "/snapshot": ("POST", self._snapshot)}

    def server(self, *, local: bool) -> BoundedServer:
        """Return a server for the connections of one socket; ``local``: of the control socket."""
        return BoundedServer(partial(self._handle, local=local))

    # --- all requests ---

    async def _handle(self, request: web.BaseRequest, *, local: bool) -> web.StreamResponse:
        response = await self._respond(request, local=local)
        if not response.prepared:
            _harden(response)
        return response

    async def _respond(self, request: web.BaseRequest, *, local: bool) -> web.StreamResponse:
        if not local and not _has_allowed_host(request):
            return _text(421, "use an IP address or localhost in the URL")
        routes = self._local_routes if local else self._routes
        method, handler = routes.get(request.path, ("", None))
        if handler is None:
            return _text(404, f"not found; available paths: {' '.join(routes)}")
        if not (local or self._names_containers) and request.path in _PATHS_WITH_CONTAINERS:
            return _text(403, "http.containers is false; use control.sock in state_dir, or whalebridge list")
        if request.method != method and (request.method, method) != ("HEAD", "GET"):
            return _text(405, f"method not allowed; use {method}", Allow=method)
        try:
            return await handler(request)
        except ConnectionError:
            raise
        except Exception:  # noqa: BLE001 (aiohttp's own log of such errors is disabled)
            _log.exception("http_request_failed", path=request.path)
            return _text(500, "internal error; see the log of whalebridge")

    # --- paths ---

    async def _livez(self, _: web.BaseRequest) -> web.Response:
        return _text(200, "ok")

    async def _readyz(self, _: web.BaseRequest) -> web.Response:
        status = self._bridge.status()
        return _json(json_documents.readiness(status), 200 if evaluate(status).ready else 503)

    async def _metrics_response(self, request: web.BaseRequest) -> web.Response:
        body, content_type = self._metrics.render(request.headers.get("Accept", ""))
        return web.Response(body=body, headers={"Content-Type": content_type})

    async def _containers(self, request: web.BaseRequest) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": _JSON})
        _harden(response)
        await response.prepare(request)
        for chunk in json_documents.containers_document(self._bridge.status(), self._bridge.running_containers()):
            await response.write(chunk)
            await self._clock.sleep(0)  # lets the watch run in between
        await response.write_eof()
        return response

    async def _page(self, _: web.BaseRequest) -> web.Response:
        now = self._clock.now().wall
        text = status_page.render(self._bridge.status(), self._bridge.running_containers(), now)
        return web.Response(
            text=text, content_type="text/html", headers={"Content-Security-Policy": status_page.POLICY}
        )

    async def _snapshot(self, _: web.BaseRequest) -> web.Response:
        status = self._bridge.status()
        if not status.synced:
            return _json({"error": f"{'; '.join(evaluate(status).reasons)}; see /readyz"}, 503)
        try:
            async with self._clock.timeout(SNAPSHOT_SECONDS):
                id_, containers = await self._bridge.snapshot()
        except TimeoutError:
            return _json({"error": f"snapshot timed out after {SNAPSHOT_SECONDS:g} s; it stays queued"}, 504)
        return _json({"id": id_, "containers": containers})


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
    """Return whether the Host header is an IP address or localhost, which excludes DNS rebinding by other sites.

    Any host name is allowed unless the server's address is a loopback address, because the names of the other addresses
    are unknown.
    """
    own_address = request.transport.get_extra_info("sockname") if request.transport else None
    if own_address is None or not ipaddress.ip_address(own_address[0]).is_loopback:
        return True
    host = _HOST.fullmatch(request.headers.get("Host", "localhost"))
    if host is None:
        return False
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host[1].strip("[]"))
        return True
    return host[1].lower() == "localhost"
