"""What the stand-in for containerd can be made to suffer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from bridge.core.containerd_model import ContainerKey
from tests.simulator.state import SimulatedRpcError

ALL = "*"


@dataclass
class Faults:
    """What goes wrong. Methods are named as in ``Tasks.List``; "*" stands for every method, or every namespace."""

    errors: dict[tuple[str, str], SimulatedRpcError] = field(default_factory=dict)
    """By method and namespace: answered with this error."""
    hanging: dict[str, asyncio.Event] = field(default_factory=dict)
    """By method: not answered until the event is set."""
    garbled: set[str] = field(default_factory=set)
    """Methods whose answers nobody can read."""
    hooks: dict[str, Callable[[], None]] = field(default_factory=dict)
    """By method: called when the answer is made and not yet sent, which is where races are."""
    hung_shims: set[ContainerKey] = field(default_factory=set)
    """Shims that do not answer: containerd 1.6 tells UNKNOWN, 2.4 leaves the row out."""
    unlisted_tasks: set[ContainerKey] = field(default_factory=set)
    """Tasks that are not listed, for no reason at all."""
    drop_published: bool = False
    """Whether events are taken and told to nobody."""
    shim_timeout_seconds: float = 0.0
    """How long containerd waits for each hung shim, one after the other; a real one takes 2 s."""

    def hang(self, method: str = ALL) -> None:
        """Let a method hang until ``release``."""
        self.hanging[method] = asyncio.Event()

    def release(self) -> None:
        """Let everything that hangs go on."""
        while self.hanging:
            self.hanging.popitem()[1].set()
