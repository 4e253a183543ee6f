"""Translation of gRPC's errors: one line that says which call failed, on which socket, and how."""

from __future__ import annotations

import grpc

from bridge.core.errors import TransientError
from bridge.telemetry.safe_text import one_line


class RpcError(TransientError):
    """A call failed; ``code`` is the gRPC status, for callers that handle some of them."""

    def __init__(self, message: str, code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.code = code


def from_rpc_error(error: grpc.RpcError, purpose: str, path: str) -> RpcError:
    """Translate the error of a call; ``purpose`` completes "containerd failed to ..."."""
    return from_status(*_status(error), purpose, path)


def from_status(code: grpc.StatusCode, details: str, purpose: str, path: str) -> RpcError:
    """Translate the status that a call ended with."""
    return RpcError(_error_message(code, one_line(details), purpose, path), code)


def unreadable_response(method: str, path: str) -> RpcError:
    """Return the error for a response that is missing or cannot be decoded."""
    return RpcError(f"containerd at {path}: unreadable response to {method}", grpc.StatusCode.DATA_LOSS)


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Return code and details; an RpcError without a code is a bug in gRPC and counts as UNKNOWN."""
    if isinstance(error, grpc.aio.AioRpcError | grpc.Call):
        return error.code(), error.details() or ""
    return grpc.StatusCode.UNKNOWN, str(error)


def _error_message(code: grpc.StatusCode, details: str, purpose: str, path: str) -> str:
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"cannot connect to containerd at {path} to {purpose}: {details}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:  # our deadline, or the one that containerd sets for its shims
        return f"containerd at {path} did not {purpose} in time: containerd or a shim is hung or busy ({details})"
    return f"containerd at {path} failed to {purpose}: {code.name}: {details}"
