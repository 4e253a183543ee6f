"""The second witness of exits."""

from __future__ import annotations

import asyncio

from bridge.watch.exit_waiter import ExitWaiter
from tests.unit.watch.fakes import FakeEngineClient
from tests.unit.watch.test_watch import WEB


async def test_exit_waiter_starts_no_call_after_close() -> None:
    endings = ExitWaiter(FakeEngineClient(), lambda *_: None)
    endings.wait_for_exit(WEB, 10)
    endings.close()
    endings.wait_for_exit(WEB, 11)
    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
