"""Faults of the simulated containerd."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from bridge.core.containerd_model import ContainerKey
from tests.simulator.state import SimulatedRpcError

ALL = "*"


@dataclass
class Faults:
    """The active faults. Methods are named as in ``Tasks.List``; "*" matches every method, or every namespace."""

    errors: dict[tuple[str, str], SimulatedRpcError] = field(default_factory=dict)
    """By method and namespace: calls fail with this error."""
    hanging: dict[str, asyncio.Event] = field(default_factory=dict)
    """By method: calls hang until the event is set."""
    unreadable_responses: set[str] = field(default_factory=set)
    """Methods whose responses cannot be decoded."""
    hooks: dict[str, Callable[[], None]] = field(default_factory=dict)
    """By method: called when the response is ready but not sent yet, to provoke races."""
    hung_shims: set[ContainerKey] = field(default_factory=set)
    """Containers whose shims do not respond: containerd 1.6 lists their tasks as UNKNOWN, 2.4 omits them."""
    hung_records: set[ContainerKey] = field(default_factory=set)
    """Containers whose status CRI does not return."""
    unlisted_tasks: set[ContainerKey] = field(default_factory=set)
    """Containers whose tasks are missing from listings."""
    drop_published: bool = False
    """Whether published events are accepted but not delivered."""
    shim_timeout_seconds: float = 0.0
    """Time that containerd waits for each hung shim, one after the other; a real one waits 2 s."""

    def hang(self, method: str = ALL) -> None:
        """Make calls of a method hang until ``release``."""
        self.hanging[method] = asyncio.Event()

    def release(self) -> None:
        """Continue all hanging calls."""
        self.hung_records.clear()
        while self.hanging:
            self.hanging.popitem()[1].set()
