from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

import pytest

from bridge.core.time import SECOND
from tests.virtual_time import VirtualClock, VirtualTimeLoop


@pytest.fixture
def loop() -> Iterator[VirtualTimeLoop]:
    loop = VirtualTimeLoop()
    yield loop
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


async def test_virtual_time_passes_without_real_time(clock: VirtualClock) -> None:
    started_at, before = time.monotonic(), clock.now()
    await asyncio.gather(clock.sleep(86400), asyncio.sleep(3600))
    with pytest.raises(TimeoutError):
        async with clock.timeout(60):
            await asyncio.Event().wait()
    after = clock.now()
    assert after.monotonic - before.monotonic == after.wall - before.wall == (86400 + 60) * SECOND
    assert time.monotonic() - started_at < 60


def test_virtual_time_wakes_tasks_in_order_of_timers(loop: VirtualTimeLoop) -> None:
    woken: list[float] = []

    async def sleep(seconds: float) -> None:
        await asyncio.sleep(seconds)
        woken.append(loop.time())

    async def sleep_all() -> None:
        await asyncio.gather(*map(sleep, (3, 1, 2)))

    loop.run_until_complete(sleep_all())
    assert woken == [1, 2, 3]


def test_wait_for_thread_fails_in_virtual_time(loop: VirtualTimeLoop) -> None:
    with pytest.raises(RuntimeError, match="real_time"):
        loop.run_until_complete(asyncio.to_thread(time.sleep, 0.01))


def test_wait_without_timer_fails_in_virtual_time(loop: VirtualTimeLoop) -> None:
    waiting = loop.create_task(asyncio.Event().wait())
    with pytest.raises(RuntimeError, match="real_time"):
        loop.run_until_complete(waiting)
    waiting.cancel()
