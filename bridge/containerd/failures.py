"""gRPC's failures as ours: translated once, here, into one line that says what failed, where, and how."""

from __future__ import annotations

import grpc

from bridge.core.errors import TransientError
from bridge.telemetry.text import one_line


class RefusedError(TransientError):
    """A call failed with a status that may mean something to the caller, in ``code``."""

    def __init__(self, message: str, code: grpc.StatusCode) -> None:
        super().__init__(message)
        self.code = code


def refusal(error: grpc.RpcError, doing: str, path: str) -> RefusedError:
    """Translate the failure of a call; ``doing`` says what it was for, as in "containerd failed to ..."."""
    code, details = _status(error)
    return RefusedError(_sentence(code, one_line(details), doing, path), code)


def _status(error: grpc.RpcError) -> tuple[grpc.StatusCode, str]:
    """Return code and details; an RpcError that carries none is a bug of gRPC's and counts as UNKNOWN."""
    if isinstance(error, grpc.aio.AioRpcError | grpc.Call):
        return error.code(), error.details() or ""
    return grpc.StatusCode.UNKNOWN, str(error)


def _sentence(code: grpc.StatusCode, told: str, doing: str, path: str) -> str:
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"containerd at {path} cannot be reached to {doing}: {told}"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:  # ours, or the one that containerd gives its shims
        return f"containerd at {path} did not {doing} in time: it, or a shim, hangs or is busy ({told})"
    return f"containerd at {path} failed to {doing}: {code.name}: {told}"
