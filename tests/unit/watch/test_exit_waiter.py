"""Exit wait as a fallback for exit events."""

from __future__ import annotations

import asyncio

from bridge.watch.exit_waiter import ExitWaiter
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
