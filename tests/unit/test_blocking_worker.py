from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from bridge.blocking_worker import BlockingWorker
from bridge.core.errors import TransientError


class Stuck:
    """A call that blocks until it is released."""

    def __init__(self) -> None:
        self.started, self.release = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        self.started.set()
        self.release.wait(60)
        return self.calls


@pytest.fixture
async def stuck() -> AsyncIterator[Stuck]:
    call = Stuck()
    yield call
    call.release.set()


async def started(worker: BlockingWorker, call: Stuck) -> asyncio.Task[int]:
    task = asyncio.create_task(worker.run(call))
    await asyncio.to_thread(call.started.wait, 60)
    return task


async def test_calls_run_in_order_and_return_their_results() -> None:
    worker, order = BlockingWorker("test"), list[int]()
    results = await asyncio.gather(*(worker.run(lambda number=number: order.append(number)) for number in range(100)))  # type: ignore[misc]
    assert (order, results) == (list(range(100)), [None] * 100)
    assert await worker.run(lambda: 5) == 5
    await worker.close()


async def test_system_errors_are_translated_and_others_raised() -> None:
    worker = BlockingWorker("test", lambda error: TransientError(f"translated: {error}"))
    with pytest.raises(TransientError, match="translated: ") as caught:
        await worker.run(lambda: open("/nothing/here"))  # noqa: SIM115
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(ZeroDivisionError):
        await worker.run(lambda: 1 / 0)
    await worker.close()
    plain = BlockingWorker("test")
    with pytest.raises(FileNotFoundError):
        await plain.run(lambda: open("/nothing/here"))  # noqa: SIM115
    await plain.close()


async def test_cancelled_caller_does_not_stop_the_call(stuck: Stuck) -> None:
    worker = BlockingWorker("test")
    first = await started(worker, stuck)
    second = asyncio.create_task(worker.run(lambda: stuck.calls))
    await asyncio.sleep(0)
    for task in (first, second):
        task.cancel()
    stuck.release.set()
    assert await worker.run(lambda: stuck.calls) == 1
    assert (first.cancelled(), second.cancelled()) == (True, True)
    await worker.close()


async def test_exclusive_worker_queues_nothing_behind_a_stuck_call(stuck: Stuck) -> None:
    worker = BlockingWorker("test", exclusive=True)
    (await started(worker, stuck)).cancel()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.run(stuck), 0.01)
    stuck.release.set()
    assert await worker.run(stuck) == 2
    await worker.close()


async def test_close_abandons_a_stuck_thread(stuck: Stuck) -> None:
    worker = BlockingWorker("test")
    (await started(worker, stuck)).cancel()
    async with asyncio.timeout(30):
        await worker.close(0.01)
    assert await worker.run(lambda: "in a new thread") == "in a new thread"
    await worker.close()
