"""The second witness of exits."""

from __future__ import annotations

import asyncio

from bridge.watch.endings import Endings
from tests.unit.watch.fakes import FakeSource
from tests.unit.watch.test_watch import WEB


async def test_after_the_end_of_a_connection_no_call_is_begun_on_it() -> None:
    endings = Endings(FakeSource(), lambda *_: None)
    endings.expect(WEB, 10)
    endings.close()
    endings.expect(WEB, 11)
    for _ in range(5):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}
