"""Trying again: the one place that knows tenacity.

Only a TransientError is worth another try. Everything else passes through at once, cancellation included.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from bridge.core.errors import TransientError
from bridge.core.ports import Clock
from bridge.core.time import SECOND

T = TypeVar("T")

_DOUBLINGS = 30  # more of them change nothing, and a float ends at 1023


class Backoff(NamedTuple):
    """How long to wait, in seconds: about ``first``, twice as long each time, ``most`` at the most.

    Each delay is drawn from the upper half of its span, so that many bridges do not come back at the same moment. An
    attempt that lasted for ``steady`` had worked: after it the delays begin anew.
    """

    first: float = 0.1
    most: float = 30.0
    steady: float = 60.0

    def delay(self, failures: int, chance: float) -> float:
        """Return the delay after ``failures`` (from 1) in a row; ``chance`` is a number of the interval [0, 1)."""
        span: float = min(self.most, self.first * 2.0 ** min(failures - 1, _DOUBLINGS))
        return span * (1 + chance) / 2


_USUAL = Backoff()


class Failure(NamedTuple):
    """One attempt that failed, as told before the wait for the next."""

    error: TransientError
    in_a_row: int
    """How many there were, this one included."""
    delay: float
    """How many seconds will pass before the next attempt."""


async def forever(
    attempt: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    backoff: Backoff = _USUAL,
    before_sleep: Callable[[Failure], None] = lambda _: None,
) -> T:
    """Repeat ``attempt`` until it raises no TransientError; return what it returns.

    ``before_sleep`` is called after each failure, and decides whether that is worth a line in the log.
    """
    series = _Series(backoff, clock)
    series.began = clock.now().monotonic
    try:  # without tenacity, whose setting up takes longer than most attempts that work
        return await attempt()
    except TransientError as error:
        first: list[TransientError] = [error]

    async def timed() -> T:
        if first:
            raise first.pop()
        series.began = clock.now().monotonic
        return await attempt()

    def tell(state: RetryCallState) -> None:
        before_sleep(Failure(_error(state), series.failures, state.upcoming_sleep))

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(TransientError), wait=series.wait, sleep=clock.sleep, before_sleep=tell
    )
    return await retrying(timed)


class _Series:
    """Counts the failures in a row; tenacity's own count knows nothing of attempts that had worked for long."""

    def __init__(self, backoff: Backoff, clock: Clock) -> None:
        self._backoff = backoff
        self._clock = clock
        self.began = 0
        self.failures = 0

    def wait(self, _: RetryCallState) -> float:
        lasted = self._clock.now().monotonic - self.began
        self.failures = 1 if lasted >= self._backoff.steady * SECOND else self.failures + 1
        return self._backoff.delay(self.failures, self._clock.random())


def _error(state: RetryCallState) -> TransientError:
    error = state.outcome.exception() if state.outcome else None
    assert isinstance(error, TransientError)  # noqa: S101 (nothing else is retried)
    return error
