from __future__ import annotations

from typing import cast

import pytest

from bridge.cli import containerd_checks
from bridge.containerd.client import ContainerdClient
from bridge.containerd.http2 import StatusCode
from bridge.containerd.rpc_errors import RpcError
from bridge.core.containerd_model import ContainerKey
from bridge.core.errors import BridgeError, TransientError, UnreadableError


class Client:
    """A containerd client whose connection has succeeded."""

    path = "/run/containerd/containerd.sock"

    def __init__(self, health: bool | BridgeError, exited: list[ContainerKey] | BridgeError | None = None) -> None:
        self._health = health
        self.exited = exited

    async def exited_containers(self, _seconds: float) -> list[ContainerKey] | None:
        if isinstance(self.exited, BridgeError):
            raise self.exited
        return self.exited

    async def health(self) -> bool:
        if isinstance(self._health, BridgeError):
            raise self._health
        return self._health


@pytest.mark.parametrize(
    ("health", "statuses"),
    [
        (True, []),
        (False, ["warning"]),
        (RpcError("unknown service", StatusCode.UNIMPLEMENTED), []),
        (TransientError("no response within 5 s"), ["error"]),  # hangs after the connection
    ],
)
async def test_health_check_reports_error_or_warning(health: bool | BridgeError, statuses: list[str]) -> None:
    results = await containerd_checks._check_health(cast("ContainerdClient", Client(health)))
    assert [result.status for result in results] == statuses


@pytest.mark.parametrize(
    ("exited", "uses_cri", "watched", "expected"),
    [
        ([], True, True, "ok: CRI responds: 0 exited containers"),
        ([ContainerKey("k8s.io", "web")], True, True, "ok: CRI responds: 1 exited containers"),
        ([], False, True, "ok: CRI is not used: containerd.cri is off"),
        (None, True, True, ""),
        ([], True, False, ""),
        (UnreadableError("PERMISSION_DENIED"), True, True, "warning: CRI does not respond: PERMISSION_DENIED"),
    ],
)
async def test_cri_check_reports_what_cri_adds(
    exited: list[ContainerKey] | BridgeError | None, uses_cri: bool, watched: bool, expected: str
) -> None:
    client = cast("ContainerdClient", Client(health=True, exited=exited))
    results = await containerd_checks._check_cri(client, lambda _: watched, uses_cri=uses_cri)
    texts = [f"{each.status}: {each.message.partition(';')[0]}" for each in results]
    assert texts == ([expected] if expected else [])
