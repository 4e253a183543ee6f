from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from bridge.clock import SystemClock
from bridge.core.errors import FatalError, TransientError
from bridge.core.time import SECOND, to_seconds
from bridge.retry import Backoff, Failure, retry_until_success
from tests.virtual_time import VirtualClock


def failing(times: int, error: Exception | None = None) -> Callable[[], Awaitable[str]]:
    """Return an attempt that fails ``times`` times and then succeeds."""
    failures_left = times

    async def attempt() -> str:
        nonlocal failures_left
        failures_left -= 1
        if failures_left >= 0:
            raise error or TransientError("unavailable")
        return "done"

    return attempt


async def test_retry_returns_first_success_without_delay() -> None:
    clock = VirtualClock()
    assert await retry_until_success(failing(0), clock=clock) == "done"
    assert clock.slept == []


async def test_retry_delays_double_up_to_maximum() -> None:
    clock = VirtualClock(chance=0)
    assert await retry_until_success(failing(2000), clock=clock, backoff=Backoff(initial=0.2, maximum=2)) == "done"
    assert clock.slept[:6] == pytest.approx([0.1, 0.2, 0.4, 0.8, 1, 1])
    assert set(clock.slept[4:]) == {1}
    assert len(clock.slept) == 2000


@pytest.mark.parametrize(("chance", "delay"), [(0, 1), (0.5, 1.5), (0.999, 1.999)])
def test_retry_delay_is_drawn_from_upper_half(chance: float, delay: float) -> None:
    assert Backoff(initial=2, maximum=2).delay(7, chance) == pytest.approx(delay, abs=0.001)


@pytest.mark.parametrize("error", [FatalError("forbidden"), ValueError("a bug")])
async def test_retry_raises_other_errors_immediately(error: Exception) -> None:
    clock = VirtualClock()
    with pytest.raises(type(error)) as caught:
        await retry_until_success(failing(1, error), clock=clock)
    assert caught.value is error
    assert clock.slept == []


async def test_retry_stops_at_fatal_error_after_transient_errors() -> None:
    errors = [TransientError("1"), TransientError("2"), FatalError("3")]

    async def attempt() -> None:
        raise errors.pop(0)

    with pytest.raises(FatalError, match="3"):
        await retry_until_success(attempt, clock=VirtualClock())


async def test_retry_attempt_is_cancelable() -> None:
    started = asyncio.Event()

    async def attempt() -> None:
        started.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(retry_until_success(attempt, clock=VirtualClock()))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()


async def test_retry_delay_is_cancelable() -> None:
    clock = VirtualClock()
    before = clock.now()
    with pytest.raises(TimeoutError):
        async with clock.timeout(0.03):
            await retry_until_success(failing(9), clock=clock, backoff=Backoff(initial=0.1))
    assert to_seconds(clock.now().monotonic - before.monotonic) == pytest.approx(0.03)


async def test_retry_reports_each_failure_before_delay() -> None:
    clock = VirtualClock(chance=0)
    failures: list[tuple[Failure, int]] = []
    error = TransientError("unavailable")
    await retry_until_success(
        failing(2, error),
        clock=clock,
        backoff=Backoff(initial=2, maximum=8),
        before_sleep=lambda failure: failures.append((failure, len(clock.slept))),
    )
    assert failures == [(Failure(error, 1, 1.0), 0), (Failure(error, 2, 2.0), 1)]


async def test_retry_delays_reset_after_long_successful_attempt() -> None:
    clock = VirtualClock(chance=0)
    session_seconds = [0, 0, 59, 60, 0]

    async def session() -> str:
        if not session_seconds:
            return "done"
        clock.advance(session_seconds.pop(0))
        raise TransientError("broken")

    consecutive_counts: list[int] = []
    await retry_until_success(
        session,
        clock=clock,
        backoff=Backoff(initial=2, maximum=100, reset_after=60),
        before_sleep=lambda failure: consecutive_counts.append(failure.consecutive),
    )
    assert consecutive_counts == [1, 2, 3, 1, 2]
    assert clock.slept == [1, 2, 4, 1, 2]


async def test_retry_accepts_function_returning_awaitable() -> None:
    result = asyncio.get_running_loop().create_future()
    result.set_result("done")
    assert await retry_until_success(lambda: result, clock=VirtualClock()) == "done"


async def test_system_clock_is_monotonic_and_sleeps() -> None:
    clock = SystemClock()
    before = clock.now()
    await clock.sleep(0)
    after = clock.now()
    assert after.monotonic >= before.monotonic
    assert after.wall > 1_700_000_000 * SECOND
    assert all(0 <= clock.random() < 1 for _ in range(100))
    assert len({clock.random() for _ in range(100)}) > 1
