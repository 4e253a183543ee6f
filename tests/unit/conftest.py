"""Unit tests run on virtual time, unless they are marked with `real_time`."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Mapping

import pytest

from tests.virtual_time import REAL_TIME, VirtualClock, VirtualTimeLoop


def pytest_asyncio_loop_factories(item: pytest.Item) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Return the event loop of a test."""
    is_real = item.get_closest_marker(REAL_TIME) is not None
    return {REAL_TIME: asyncio.new_event_loop} if is_real else {"virtual_time": VirtualTimeLoop}


@pytest.fixture
def clock() -> VirtualClock:
    """A clock that follows the test's virtual time."""
    return VirtualClock()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """The ends of a pipe, to read from and to write to."""
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)
