"""Calls of ``Tasks.Wait``, which return when a task exits: thousands of them, on one connection of their own.

Through the proxy, all of them share one call of its own method, because each call costs it 50 KiB.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Generic, Protocol, TypeAlias, TypeVar

from google.protobuf.message import DecodeError

from bridge.containerd import decode
from bridge.containerd.http2 import Call, GrpcConnection, Metadata, Status, StatusCode
from bridge.containerd.methods import NAMESPACE_HEADER, WAIT, WAITS, is_valid_key
from bridge.containerd.protos.tasks_pb2 import WaitRequest
from bridge.containerd.protos.waits_pb2 import WaitsRequest, WaitsResponse
from bridge.containerd.rpc_errors import from_status, unreadable_response
from bridge.core.containerd_model import ContainerKey, ExitStatus
from bridge.core.errors import BridgeError

_Wait = TypeVar("_Wait")
_Wait_contra = TypeVar("_Wait_contra", contravariant=True)
OnEnd: TypeAlias = Callable[[ExitStatus | BridgeError | None], None]

# Results are only needed if exit events are lost: collecting them saves one wake-up for each exit.
_READ_INTERVAL = 0.1
_WAITS_PER_MESSAGE = 64  # with the longest names, 10 KiB of the 16 KiB that the proxy accepts
_UNKNOWN_METHOD = frozenset({StatusCode.UNIMPLEMENTED, StatusCode.PERMISSION_DENIED})  # of containerd; of older proxies


class ContainerdWaitCalls:
    """Implements ``bridge.core.ports.WaitCalls``; connects at the first call, and again if the connection has ended.

    ``proxied``: the socket is that of whalebridge's proxy.
    """

    def __init__(self, path: str, *, proxied: bool = False) -> None:
        self._path = path
        self._proxied = proxied
        self._connection: GrpcConnection | None = None
        self._shared: _SharedCall | None = None  # of the connection
        self._closed = False

    def start(self, key: ContainerKey, on_end: OnEnd) -> None:
        """Wait for the exit of a container's task; ``on_end`` gets what ``bridge.core.ports.WaitCalls`` describes."""
        if self._closed:
            return
        if not is_valid_key(key):
            on_end(None)
            return
        connection = self._get_connection()
        if self._shared is not None:
            self._shared.add(key, on_end)
            return
        start_wait(connection, key, self, on_end)

    def close(self) -> None:
        """End all calls without a result; idempotent."""
        self._closed = True
        if self._connection is not None:
            self._connection.abort()

    def _get_connection(self) -> GrpcConnection:
        if self._connection is None or self._connection.closed:
            self._connection = connect(self._path)
            if self._proxied:
                self._shared = _SharedCall(self, self._connection)
                self._connection.start(self._shared, WAITS.path, b"", ends=False)
        return self._connection

    def end(self, on_end: OnEnd, status: Status, response: bytes | None) -> None:
        """Pass on the result of a call."""
        if not self._closed:
            on_end(self._result(status, response))

    def _result(self, status: Status, response: bytes | None) -> ExitStatus | BridgeError | None:
        if status.code is StatusCode.NOT_FOUND:
            return None
        if status.code is not StatusCode.OK:
            return from_status(*status, WAIT.purpose, self._path)
        if response is not None:
            with suppress(DecodeError):
                exit_ = WAIT.response_type.FromString(response)
                return ExitStatus(exit_.exit_status, decode.nanoseconds(exit_.exited_at))
        return unreadable_response(WAIT.path, self._path)

    def end_shared(self, call: _SharedCall, status: Status) -> None:
        """End all waits of a shared call; if the method does not exist, call ``Tasks.Wait`` for each of them."""
        self._shared = None
        if not call.begun and status.code in _UNKNOWN_METHOD:
            self._proxied = False
            for number, key in call.unsent.items():
                self.start(key, call.ends[number])
            return
        if self._connection is not None:
            self._connection.abort()  # the next wait connects again
        for on_end in call.ends.values():
            self.end(on_end, status, None)


class _SharedCall(Call):
    """The call of all waits through the proxy: a stream of waits in any number, and of their results in any order.

    ``begun``: the proxy knows the method. ``ends``: the waits by number. ``unsent``: those that were not sent yet.
    """

    __slots__ = ("_calls", "_connection", "_number", "_sending", "begun", "ends", "unsent")

    def __init__(self, calls: ContainerdWaitCalls, connection: GrpcConnection) -> None:
        super().__init__()
        self.begun = False
        self.ends: dict[int, OnEnd] = {}
        self.unsent: dict[int, ContainerKey] = {}
        self._calls = calls
        self._connection = connection
        self._number = 0
        self._sending = False

    def add(self, key: ContainerKey, on_end: OnEnd) -> None:
        """Wait for the exit of a container's task. Waits that are added together share a message."""
        self._number += 1
        self.ends[self._number] = on_end
        self.unsent[self._number] = key
        if self.begun and not self._sending:
            self._sending = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._sending = False
        if self._connection.closed:
            return
        waits = iter(self.unsent.items())
        while some := list(islice(waits, _WAITS_PER_MESSAGE)):
            request = WaitsRequest()
            for number, key in some:
                request.waits.add(number=number, namespace=key.namespace, container_id=key.id)
            self._connection.send(self, request.SerializeToString())
        self.unsent.clear()

    def receive_metadata(self, metadata: Metadata) -> None:  # noqa: ARG002
        self.begun = True
        self._send()

    def receive_message(self, message: bytes) -> None:
        try:
            response = WaitsResponse.FromString(message)
        except DecodeError:
            self._connection.abort()
            return
        for end in response.ends:
            if (on_end := self.ends.pop(end.number, None)) is not None:
                status = Status(_status_code(end.code), end.details)
                self._calls.end(on_end, status, end.response)

    def end(self, status: Status) -> None:
        self._calls.end_shared(self, status)


def _status_code(code: int) -> StatusCode:
    try:
        return StatusCode(code)
    except ValueError:
        return StatusCode.UNKNOWN


# --- single calls, also those of the proxy ---


class Waiter(Protocol[_Wait_contra]):
    """Makes calls of ``Tasks.Wait``, each for a wait of its own."""

    def end(self, wait: _Wait_contra, status: Status, response: bytes | None, /) -> None:
        """Process the end of a call, with its response if there is one."""


def connect(path: str) -> GrpcConnection:
    """Return a connection for calls of ``Tasks.Wait``."""
    return GrpcConnection(path, lambda size: _READ_INTERVAL if size else 0)


def start_wait(connection: GrpcConnection, key: ContainerKey, waiter: Waiter[_Wait], wait: _Wait) -> None:
    """Wait for the exit of a container's task; ``waiter`` gets the end of the call, with ``wait``."""
    request = WaitRequest(container_id=key.id).SerializeToString()
    connection.start(_WaitCall(waiter, wait), WAIT.path, request, ((NAMESPACE_HEADER, key.namespace),))


class _WaitCall(Call, Generic[_Wait]):
    """One of thousands: it has no more than what the result needs."""

    __slots__ = ("_response", "_wait", "_waiter")

    def __init__(self, waiter: Waiter[_Wait], wait: _Wait) -> None:
        super().__init__()
        self._waiter = waiter
        self._wait = wait
        self._response: bytes | None = None

    def receive_message(self, message: bytes) -> None:
        self._response = message

    def end(self, status: Status) -> None:
        self._waiter.end(self._wait, status, self._response)
