"""Retries with backoff; the only module that uses tenacity.

Invariant: only a TransientError is retried. Every other exception, including cancellation, propagates immediately.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type

from bridge.core.errors import TransientError
from bridge.core.ports import Clock
from bridge.core.time import SECOND

T = TypeVar("T")

_MAX_DOUBLINGS = 30  # avoids a float overflow, which starts at 1024


class Backoff(NamedTuple):
    """Delays between attempts, in seconds: ``initial``, doubled after each failure, at most ``maximum``.

    Each delay is random, between half of this value and all of it, so that many bridges do not retry at the same time.
    An attempt that lasted for ``reset_after`` counts as a success: after it, delays start at ``initial`` again (like
    client-go's backoff).
    """

    initial: float = 0.1
    maximum: float = 30.0
    reset_after: float = 60.0

    def delay(self, failures: int, random_value: float) -> float:
        """Return the delay after consecutive ``failures`` (from 1); ``random_value`` is in the interval [0, 1)."""
        span: float = min(self.maximum, self.initial * 2.0 ** min(failures - 1, _MAX_DOUBLINGS))
        return span * (1 + random_value) / 2


_DEFAULT = Backoff()


class Failure(NamedTuple):
    """A failed attempt, as passed to ``before_sleep``.

    ``consecutive`` is the number of consecutive failures, including this one; ``delay`` are the seconds until the next
    attempt.
    """

    error: TransientError
    consecutive: int
    delay: float


async def retry_until_success(
    attempt: Callable[[], Awaitable[T]],
    *,
    clock: Clock,
    backoff: Backoff = _DEFAULT,
    before_sleep: Callable[[Failure], None] = lambda _: None,
) -> T:
    """Repeat ``attempt`` until it raises no TransientError, and return its result.

    ``before_sleep`` is called after each failure, for example to log it.
    """
    first: list[TransientError] = []
    failures, started = 0, clock.now().monotonic
    try:  # without tenacity, whose setup takes longer than most successful attempts
        return await attempt()
    except TransientError as error:
        first.append(error)

    async def timed() -> T:
        nonlocal started
        if first:
            raise first.pop()
        started = clock.now().monotonic
        return await attempt()

    def wait(_: RetryCallState) -> float:
        nonlocal failures  # unlike tenacity's counter, it restarts after an attempt that lasted long enough
        lasted = clock.now().monotonic - started
        failures = 1 if lasted >= backoff.reset_after * SECOND else failures + 1
        return backoff.delay(failures, clock.random())

    def report(state: RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        assert isinstance(error, TransientError)  # noqa: S101 (the only error that is retried)
        before_sleep(Failure(error, failures, state.upcoming_sleep))

    retrying = AsyncRetrying(
        retry=retry_if_exception_type(TransientError), wait=wait, sleep=clock.sleep, before_sleep=report
    )
    return await retrying(timed)
