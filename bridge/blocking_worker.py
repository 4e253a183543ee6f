"""A thread for calls that block: the event loop never waits for a disk or a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from bridge.core.errors import BridgeError

T = TypeVar("T")
Translate: TypeAlias = Callable[[OSError], BridgeError]


class BlockingWorker:
    """Runs calls one after another, in order, in a thread that the first call starts.

    The thread is a daemon: a thread that is stuck in a system call cannot be woken, and must not keep the process from
    ending.

    Args:
        name: The thread's name.
        translate: Returns the error to raise for an error of the operating system.
        exclusive: Queue no call behind another one, also when the caller of that one was canceled: retries do not
            pile up behind a thread that is stuck.
    """

    def __init__(self, name: str, translate: Translate | None = None, *, exclusive: bool = False) -> None:
        self._name = name
        self._translate = translate
        self._exclusive = exclusive
        self._calls: SimpleQueue[Callable[[], None] | None] | None = None
        self._unfinished: set[asyncio.Future[Any]] = set()

    async def run(self, call: Callable[[], T]) -> T:
        """Return a call's result. A caller that is canceled does not stop the call.

        Raises:
            Exception: The error of the call.
        """
        while self._exclusive and self._unfinished:
            await asyncio.wait(self._unfinished)
        if self._calls is None:
            self._calls = SimpleQueue()
            start_thread(self._name, _work, self._calls)
        loop = asyncio.get_running_loop()
        done: asyncio.Future[T] = loop.create_future()
        self._unfinished.add(done)
        done.add_done_callback(self._forget)

        def job() -> None:
            result: T | None = None
            error: BaseException | None = None
            try:
                result = call()
            except OSError as raised:
                error = raised if self._translate is None else self._translate(raised)
                if error is not raised:
                    error.__cause__ = raised
            except BaseException as raised:  # noqa: BLE001 (raised again where the caller waits)
                error = raised
            resolve_future(loop, done, result, error)

        self._calls.put(job)
        return await asyncio.shield(done)

    def _forget(self, done: asyncio.Future[Any]) -> None:
        self._unfinished.discard(done)
        if not done.cancelled():
            done.exception()  # asyncio would report the error of a call whose caller was canceled

    async def close(self, seconds: float = 0) -> None:
        """End the thread after the calls so far, and wait for them for ``seconds``; a stuck thread is abandoned."""
        if self._unfinished:
            await asyncio.wait(self._unfinished, timeout=seconds)
        if self._calls is not None:
            self._calls.put(None)
            self._calls = None


def start_thread(name: str, target: Callable[..., object], *args: object) -> None:
    """Start a daemon thread that gets no signals: the main thread handles them, or blocks them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        threading.Thread(target=target, args=args, name=name, daemon=True).start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def resolve_future(
    loop: asyncio.AbstractEventLoop, future: asyncio.Future[Any], result: object, error: BaseException | None = None
) -> None:
    """Set the result of a future from another thread."""

    def resolve() -> None:
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)

    with contextlib.suppress(RuntimeError):  # the loop is closed: nothing waits any more
        loop.call_soon_threadsafe(resolve)


def _work(calls: SimpleQueue[Callable[[], None] | None]) -> None:
    while call := calls.get():
        call()
        del call  # otherwise it keeps its data in memory until the next call
