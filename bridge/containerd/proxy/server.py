"""The proxy as a running server, with bounds on what its clients can make it hold."""

from __future__ import annotations

import asyncio
import os
import signal

import grpc
import structlog

from bridge.clock import SystemClock
from bridge.containerd.endpoint import socket_path
from bridge.containerd.proxy.listening import bind
from bridge.containerd.proxy.relay import Relay
from bridge.core.errors import FatalError

CALLS = 2_500  # at a time, of all clients: the bridge waits for 2,000 tasks
CONNECTIONS = 64
REQUEST_BYTES = 16 * 1024  # containerd's ids and our topics have 76 letters at the most
STOP_SECONDS = 1.0
_IDENTITY_ONLY = 1  # no compression: nobody here uses it, and it lets a small request become a large one
_log = structlog.get_logger(__name__)


async def serve(containerd: str, listen: str, *, mode: int, group: int | None) -> None:
    """Pass calls until SIGTERM or SIGINT; containerd may come and go.

    Raises:
        FatalError: An address is none, or ``listen`` cannot be used.
    """
    source, path = _two_sockets(containerd, listen)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    relay = Relay(source, SystemClock())
    server = make_server(relay)
    try:
        bind(server, path, mode=mode, group=group)
        await server.start()
        _log.info("proxy_started", containerd=source, listen=path)
        await stopping.wait()
        _log.info("proxy_shutdown_started", denied_total=relay.refusals.count)
    finally:
        await server.stop(STOP_SECONDS)
        await relay.close()


def _two_sockets(containerd: str, listen: str) -> tuple[str, str]:
    source, path = socket_path(containerd), socket_path(listen)
    if os.path.realpath(source) == os.path.realpath(path):  # the proxy would take containerd's place while it is away
        raise FatalError(f"{path} cannot be both containerd's socket and the proxy's: name another one to listen at")
    return source, path


def make_server(relay: Relay) -> grpc.aio.Server:
    """Return a server that listens nowhere yet."""
    options = [
        ("grpc.max_receive_message_length", REQUEST_BYTES),
        ("grpc.max_concurrent_streams", CALLS),
        # Else gRPC cancels some of those that come in one go, as a bridge's waiting calls do.
        ("grpc.server.max_pending_requests", CALLS),
        ("grpc.server.max_pending_requests_hard_limit", CALLS),
        ("grpc.max_allowed_incoming_connections", CONNECTIONS),
        ("grpc.compression_enabled_algorithms_bitset", _IDENTITY_ONLY),
    ]
    return grpc.aio.server(handlers=(relay,), options=options, maximum_concurrent_rpcs=CALLS)
