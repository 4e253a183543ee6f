"""Provide a simulated containerd and clients connected to the simulator."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.containerd.client import ContainerdClient, Timeouts
from bridge.core.label_rules import LabelRules
from tests.simulator.containerd import SimulatedContainerd


@pytest.fixture
async def containerd(tmp_path: Path) -> AsyncIterator[SimulatedContainerd]:
    async with SimulatedContainerd(tmp_path / "c.sock") as containerd:
        yield containerd


@pytest.fixture
async def client(containerd: SimulatedContainerd) -> AsyncIterator[ContainerdClient]:
    async with ContainerdClient(containerd.address, LabelRules.keep_all()) as client:
        yield client


@pytest.fixture
async def short_timeout_client(containerd: SimulatedContainerd) -> AsyncIterator[ContainerdClient]:
    """Provide a client with short timeouts."""
    timeouts = Timeouts(connect=10, call=0.3, listing=0.3)
    async with ContainerdClient(containerd.address, LabelRules.keep_all(), timeouts=timeouts) as client:
        yield client
