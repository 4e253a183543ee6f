"""The proxy's server, with limits on the memory and connections that clients can use, and a watchdog."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
from collections.abc import AsyncIterator

import grpc
import structlog

from bridge.clock import SystemClock
from bridge.containerd.proxy.relay import Relay
from bridge.containerd.proxy.socket import bind
from bridge.containerd.socket_probe import socket_path
from bridge.core.errors import FatalError
from bridge.core.ports import Clock
from bridge.task_groups import task_group

MAX_CALLS = 2_500  # at a time, for all clients
MAX_CONNECTION_CALLS = 2_000  # on one connection: more calls wait in the client, and leave room
MAX_CONNECTIONS = 64
MAX_REQUEST_BYTES = 16 * 1024  # containerd's ids and each component of a topic have at most 76 characters
STOP_TIMEOUT_SECONDS = 1.0
HANG_SECONDS = 60.0  # of the event loop, until the process exits
_RESTARTS_PER_HANG = 12  # of the watchdog's timer
_STDERR = 2
_NO_COMPRESSION = 1  # no compression: a small request could expand to a large one
_log = structlog.get_logger(__name__)


async def serve(containerd: str, listen: str, *, mode: int, group: int | None) -> None:
    """Relay calls until SIGTERM or SIGINT, also while containerd restarts; exit if the event loop hangs.

    Raises:
        FatalError: An address is invalid, or the proxy cannot listen at ``listen``.
    """
    source, path = _resolve_sockets(containerd, listen)
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    clock = SystemClock()
    relay = Relay(source, clock)
    server = create_server(relay)
    try:
        async with event_loop_watchdog(HANG_SECONDS, clock):
            bind(server, path, mode=mode, group=group)
            await server.start()
            _log.info("proxy_started", containerd=source, listen=path)
            await stopping.wait()
        _log.info("proxy_shutdown_started", denied_total=relay.denied_calls.count)
    finally:
        await server.stop(STOP_TIMEOUT_SECONDS)
        await relay.close()


def _resolve_sockets(containerd: str, listen: str) -> tuple[str, str]:
    source, path = socket_path(containerd), socket_path(listen)
    if os.path.realpath(source) == os.path.realpath(path):  # else the proxy would replace containerd's stale socket
        raise FatalError(f"{path} is containerd's socket; use another path for the proxy's")
    return source, path


def create_server(relay: Relay) -> grpc.aio.Server:
    """Return a server that does not listen yet."""
    options = [
        ("grpc.max_receive_message_length", MAX_REQUEST_BYTES),
        ("grpc.max_concurrent_streams", MAX_CONNECTION_CALLS),
        # Otherwise gRPC cancels some of the calls that arrive at the same time, as the bridge's exit waits do.
        ("grpc.server.max_pending_requests", MAX_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", MAX_CALLS),
        ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
        ("grpc.compression_enabled_algorithms_bitset", _NO_COMPRESSION),
    ]
    return grpc.aio.server(handlers=(relay,), options=options, maximum_concurrent_rpcs=MAX_CALLS)


@contextlib.asynccontextmanager
async def event_loop_watchdog(seconds: float, clock: Clock) -> AsyncIterator[None]:
    """While the block runs, exit with status 1 if the event loop does not run for ``seconds``.

    The supervisor (systemd, the kubelet) then starts another process. The proxy has no network, so nothing else can
    probe it. faulthandler's timer needs neither the event loop nor Python's global lock, so it also ends a process that
    hangs in native code. Before the exit, it writes the tracebacks of all threads to standard error.
    """

    def start_timer() -> None:  # in place of an earlier one
        faulthandler.dump_traceback_later(seconds, exit=True, file=_STDERR)

    async def restart_timer() -> None:
        while True:
            await clock.sleep(seconds / _RESTARTS_PER_HANG)
            start_timer()

    start_timer()
    async with task_group() as tasks:
        restarts = tasks.create_task(restart_timer())
        try:
            yield
        finally:
            restarts.cancel()
            faulthandler.cancel_dump_traceback_later()
