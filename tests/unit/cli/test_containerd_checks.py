from __future__ import annotations

from typing import cast

import grpc
import pytest

from bridge.cli import containerd_checks
from bridge.containerd.client import ContainerdClient
from bridge.containerd.rpc_errors import RpcError
from bridge.core.errors import BridgeError, TransientError


class Client:
    """A containerd client whose connection has succeeded."""

    path = "/run/containerd/containerd.sock"

    def __init__(self, health: bool | BridgeError) -> None:
        self._health = health

    async def health(self) -> bool:
        if isinstance(self._health, BridgeError):
            raise self._health
        return self._health


@pytest.mark.parametrize(
    ("health", "statuses"),
    [
        (True, []),
        (False, ["warning"]),
        (RpcError("unknown service", grpc.StatusCode.UNIMPLEMENTED), []),
        (TransientError("no response within 5 s"), ["error"]),  # hangs after the connection
    ],
)
async def test_health_check_reports_error_or_warning(health: bool | BridgeError, statuses: list[str]) -> None:
    results = await containerd_checks._check_health(cast("ContainerdClient", Client(health)))
    assert [result.status for result in results] == statuses
