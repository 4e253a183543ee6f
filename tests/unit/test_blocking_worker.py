from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import AsyncIterator

import pytest

from bridge.blocking_worker import BlockingWorker
from bridge.core.errors import TransientError

pytestmark = pytest.mark.real_time


class HangingCall:
    """A call that blocks until a test sets ``release``."""

    def __init__(self) -> None:
        self.started, self.release = threading.Event(), threading.Event()
        self.calls = 0

    def __call__(self) -> int:
        self.calls += 1
        self.started.set()
        self.release.wait(60)
        return self.calls


@pytest.fixture
async def hanging_call() -> AsyncIterator[HangingCall]:
    call = HangingCall()
    yield call
    call.release.set()


async def start_call(worker: BlockingWorker, call: HangingCall) -> asyncio.Task[int]:
    task = asyncio.create_task(worker.run(call))
    await asyncio.to_thread(call.started.wait, 60)
    return task


async def test_blocking_worker_runs_calls_in_order() -> None:
    worker, order = BlockingWorker("test"), list[int]()
    results = await asyncio.gather(*(worker.run(lambda number=number: order.append(number)) for number in range(100)))  # type: ignore[misc]
    assert (order, results) == (list(range(100)), [None] * 100)
    assert await worker.run(lambda: 5) == 5
    await worker.close()


async def test_blocking_worker_translates_only_os_errors() -> None:
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


async def test_error_of_canceled_caller_is_not_reported(hanging_call: HangingCall) -> None:
    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: reported.append(context))
    worker = BlockingWorker("test")

    def fail() -> int:
        hanging_call()
        raise BrokenPipeError

    caller = asyncio.create_task(worker.run(fail))
    await asyncio.to_thread(hanging_call.started.wait, 60)
    caller.cancel()
    await asyncio.wait([caller])
    hanging_call.release.set()
    await worker.close(60)
    del caller
    gc.collect()
    assert reported == []


async def test_blocking_worker_finishes_call_of_canceled_caller(hanging_call: HangingCall) -> None:
    worker = BlockingWorker("test")
    first = await start_call(worker, hanging_call)
    second = asyncio.create_task(worker.run(lambda: hanging_call.calls))
    await asyncio.sleep(0)
    for task in (first, second):
        task.cancel()
    hanging_call.release.set()
    assert await worker.run(lambda: hanging_call.calls) == 1
    assert (first.cancelled(), second.cancelled()) == (True, True)
    await worker.close()


async def test_exclusive_worker_queues_no_call_while_call_hangs(hanging_call: HangingCall) -> None:
    worker = BlockingWorker("test", exclusive=True)
    (await start_call(worker, hanging_call)).cancel()
    for _ in range(3):
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(worker.run(hanging_call), 0.01)
    hanging_call.release.set()
    assert await worker.run(hanging_call) == 2
    await worker.close()


async def test_blocking_worker_close_abandons_hanging_thread(hanging_call: HangingCall) -> None:
    worker = BlockingWorker("test")
    (await start_call(worker, hanging_call)).cancel()
    async with asyncio.timeout(30):
        await worker.close(0.01)
    assert await worker.run(lambda: "in a new thread") == "in a new thread"
    await worker.close()
