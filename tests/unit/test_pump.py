from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

import pytest

from bridge.core.encode import Coverage, Gap, Ledger
from bridge.core.errors import BridgeError, FatalError, TransientError
from bridge.core.events import Record
from bridge.core.model import Engine
from bridge.outbox.memory import MemoryOutbox
from bridge.pump import Pump
from tests.unit.watch.fakes import FakeClock


def records(count: int, epoch: int = 1) -> list[Record]:
    ledger = Ledger("node-1", Engine("engine-1", "2.4.2", "/run/c.sock", 812), epoch)
    frames: list[Record] = []
    while len(frames) < count:
        frames += ledger.snapshot(Gap("audit", None, None), Coverage([], [], False), [], [], 0)
    return frames[:count]


class FakeSink:
    """Takes what it is given, after as many errors as the test wants."""

    def __init__(self, *errors: BridgeError) -> None:
        self.errors = list(errors)
        self.taken: list[Record] = []
        self.closed = False

    async def start(self) -> None:
        """Ready at once."""

    async def publish(self, batch: Sequence[Record]) -> None:
        if self.errors:
            raise self.errors.pop(0)
        self.taken += batch

    async def close(self) -> None:
        self.closed = True


async def test_it_forgets_only_what_the_sink_has_taken() -> None:
    sink = FakeSink(TransientError("away"), TransientError("away"))
    outbox = MemoryOutbox(["sink"], FakeClock())
    some = records(5)
    await outbox.append(some)
    pump = Pump("sink", sink, outbox, FakeClock())
    running = asyncio.create_task(pump.run())
    await asyncio.wait_for(pump.drained(), 5)
    assert sink.taken == some
    assert sink.errors == []
    running.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await running
    await pump.close()
    assert sink.closed


async def test_a_fatal_error_ends_it_and_nothing_is_forgotten() -> None:
    outbox = MemoryOutbox(["sink"], FakeClock())
    await outbox.append(records(2))
    with pytest.raises(FatalError, match="closed"):
        await Pump("sink", FakeSink(FatalError("closed")), outbox, FakeClock()).run()
    assert outbox.depth("sink") == 2
