"""Translation of gRPC's errors: one line that says which call failed, on which socket, and how."""

from __future__ import annotations

from bridge.containerd.http2 import StatusCode
from bridge.core.errors import TransientError
from bridge.telemetry.safe_text import one_line


class RpcError(TransientError):
    """A call failed; ``code`` is the gRPC status, for callers that handle some of them."""

    def __init__(self, message: str, code: StatusCode) -> None:
        super().__init__(message)
        self.code = code


def from_status(code: StatusCode, details: str, purpose: str, path: str) -> RpcError:
    """Translate the status that a call ended with."""
    return RpcError(_error_message(code, one_line(details), purpose, path), code)


def unreadable_response(method: str, path: str) -> RpcError:
    """Return the error for a response that is missing or cannot be decoded."""
    return RpcError(f"containerd at {path}: unreadable response to {method}", StatusCode.DATA_LOSS)


def _error_message(code: StatusCode, details: str, purpose: str, path: str) -> str:
    if code is StatusCode.UNAVAILABLE:
        return f"cannot connect to containerd at {path} to {purpose}: {details}"
    if code is StatusCode.DEADLINE_EXCEEDED:  # our deadline, or the one that containerd sets for its shims
        return f"containerd at {path} did not {purpose} in time: containerd or a shim is hung or busy ({details})"
    return f"containerd at {path} failed to {purpose}: {code.name}: {details}"
