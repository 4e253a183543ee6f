"""Calls of ``Tasks.Wait``, which return when a task exits: thousands of them, on one connection of their own."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TypeAlias

from google.protobuf.message import DecodeError
from grpc import StatusCode

from bridge.containerd import decode
from bridge.containerd.http2 import Call, GrpcConnection, Status
from bridge.containerd.methods import NAMESPACE_HEADER, WAIT, is_valid_key
from bridge.containerd.protos.tasks_pb2 import WaitRequest
from bridge.containerd.rpc_errors import from_status, unreadable_response
from bridge.core.containerd_model import ContainerKey, ExitStatus
from bridge.core.errors import BridgeError

OnEnd: TypeAlias = Callable[[ExitStatus | BridgeError | None], None]

# Results are only needed if exit events are lost: collecting them saves one wake-up for each exit.
_READ_INTERVAL = 0.1


class ContainerdWaitCalls:
    """Implements ``bridge.core.ports.WaitCalls``; connects at the first call, and again if the connection has ended."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._connection: GrpcConnection | None = None
        self._closed = False

    def start(self, key: ContainerKey, on_end: OnEnd) -> None:
        """Wait for the exit of a container's task; ``on_end`` gets what ``bridge.core.ports.WaitCalls`` describes."""
        if self._closed:
            return
        if not is_valid_key(key):
            on_end(None)
            return
        if self._connection is None or self._connection.closed:
            self._connection = GrpcConnection(self._path, lambda size: _READ_INTERVAL if size else 0)
        request = WaitRequest(container_id=key.id).SerializeToString()
        self._connection.start(_WaitCall(self, on_end), WAIT.path, request, ((NAMESPACE_HEADER, key.namespace),))

    def close(self) -> None:
        """End all calls without a result; idempotent."""
        self._closed = True
        if self._connection is not None:
            self._connection.abort()

    def end(self, call: _WaitCall, status: Status) -> None:
        """Pass on the result of a call."""
        if not self._closed:
            call.on_end(self._result(status, call.response))

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


class _WaitCall(Call):
    """One of thousands: it has no more than what the result needs."""

    __slots__ = ("_calls", "on_end", "response")

    def __init__(self, calls: ContainerdWaitCalls, on_end: OnEnd) -> None:
        super().__init__()
        self._calls = calls
        self.on_end = on_end
        self.response: bytes | None = None

    def receive_message(self, message: bytes) -> None:
        self.response = message

    def end(self, status: Status) -> None:
        self._calls.end(self, status)
