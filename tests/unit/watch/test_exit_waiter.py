"""Exit wait as a fallback for exit events."""

from __future__ import annotations

import asyncio

from bridge.core.containerd_model import ContainerKey, ExitStatus
from bridge.core.errors import TransientError
from bridge.watch.exit_waiter import ExitWaiter
from tests.eventually import eventually_async
from tests.unit.watch.fakes import FakeClock, FakeEngineClient
from tests.unit.watch.test_watch import WEB


async def test_exit_waiter_starts_no_call_after_close() -> None:
    exit_waiter = ExitWaiter(FakeEngineClient(), FakeClock(), lambda *_: None)
    exit_waiter.wait_for_exit(WEB, 10)
    exit_waiter.close()
    exit_waiter.wait_for_exit(WEB, 11)
    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_exit_waiter_repeats_failed_call_with_growing_delay() -> None:
    class FailingClient(FakeEngineClient):
        async def wait_for_exit(self, _: ContainerKey) -> ExitStatus | None:
            self.calls["wait"] += 1
            if self.calls["wait"] <= 4:
                raise TransientError("the shim does not respond")
            return ExitStatus(3, 8)

    clock, exits = FakeClock(), list[tuple[ContainerKey, int, ExitStatus]]()
    ExitWaiter(FailingClient(), clock, lambda *exited: exits.append(exited)).wait_for_exit(WEB, 10)
    await eventually_async(lambda: exits)
    assert exits == [(WEB, 10, ExitStatus(3, 8))]
    assert 15 <= clock.nanoseconds / 1e9 <= 30
