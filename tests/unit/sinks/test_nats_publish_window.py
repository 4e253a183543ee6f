"""Test the publish window on a connection whose acknowledgments each test provides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import nats.errors
import pytest
from nats.aio.msg import Msg

from bridge.core.errors import TransientError
from sinks.nats import publisher
from sinks.nats.connection import ServerAddress
from sinks.nats.messages import PublishRequest
from sinks.nats.publisher import PublishWindow, always_continue, continue_unless_rejected
from tests.golden import Golden

STORED = b'{"stream":"S","seq":1}'
REJECTED = b'{"error":{"code":400,"err_code":10077,"description":"full"},"stream":"S","seq":0}'


class FakeConnection:
    """Record sent messages; tests call ``acknowledge``."""

    address = ServerAddress("n1:4222", "n1")

    def __init__(self, timeout: float = 60) -> None:
        self.timeout = timeout
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.sent: list[int | None] = []
        self.error: Exception | None = None
        self.stuck: asyncio.Event | None = None
        self._next_reply_id = 100

    def allocate_reply_ids(self, count: int, listener: Callable[[int, Msg], None]) -> int:
        self._listener = listener
        self._next_reply_id += count
        return self._next_reply_id - count

    def raise_if_failed(self) -> None:
        if self.failed.done():
            raise TransientError(self.failed.result())

    async def publish(self, _: str, __: bytes, ___: object, reply_id: int | None) -> None:
        if self.error:
            raise self.error
        while self.stuck:  # nats-py also ignores a cancellation
            try:
                await self.stuck.wait()
            except asyncio.CancelledError:
                return
        self.sent.append(reply_id)

    def acknowledge(self, reply_id: int | None, data: bytes = STORED) -> None:
        assert reply_id is not None
        self._listener(reply_id, Msg(_client=None, data=data))  # type: ignore[arg-type]


def messages(count: int, size: int = 1, *, wants_ack: bool = True) -> list[PublishRequest]:
    return [PublishRequest("s", b"x" * size, None, wants_ack) for _ in range(count)]


def start_window(
    connection: FakeConnection,
    requests: list[PublishRequest],
    should_continue: Callable[..., bool] = continue_unless_rejected,
) -> asyncio.Task[object]:
    return asyncio.ensure_future(PublishWindow(connection, requests, should_continue).run())  # type: ignore[arg-type]


async def run_pending_tasks() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_publish_window_accepts_acknowledgments_in_any_order() -> None:
    connection = FakeConnection()
    running = start_window(connection, messages(3))
    await run_pending_tasks()
    for number in reversed(connection.sent):
        assert not running.done()
        connection.acknowledge(number)
    assert sorted(await running) == [0, 1, 2]  # type: ignore[call-overload]


async def test_publish_window_ignores_earlier_acknowledgments() -> None:
    """A stale acknowledgment must not count for another record."""
    connection = FakeConnection()
    first = start_window(connection, messages(5))
    await run_pending_tasks()
    earlier = list(connection.sent)
    connection.acknowledge(earlier[0], REJECTED)
    await first
    connection.sent.clear()
    second = start_window(connection, messages(2))
    await run_pending_tasks()
    for number in [*earlier, 10**6, -1]:
        connection.acknowledge(number)
    connection.acknowledge(connection.sent[0])
    connection.acknowledge(connection.sent[0])  # twice
    await run_pending_tasks()
    assert not second.done()
    connection.acknowledge(connection.sent[1])
    assert sorted(await second) == [0, 1]  # type: ignore[call-overload]


async def test_publish_window_ends_at_first_rejection_unless_continued() -> None:
    connection = FakeConnection()
    running = start_window(connection, messages(3))
    await run_pending_tasks()
    connection.acknowledge(connection.sent[1], REJECTED)
    assert list(await running) == [1]  # type: ignore[call-overload]
    connection.sent.clear()
    running = start_window(connection, messages(2), always_continue)
    await run_pending_tasks()
    connection.acknowledge(connection.sent[0], REJECTED)
    connection.acknowledge(connection.sent[1])
    assert sorted(await running) == [0, 1]  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("count", "size", "window"), [(10, 1, 3), (10, publisher.MAX_IN_FLIGHT_BYTES // 3, 3), (3, 10**8, 1)]
)
async def test_publish_window_limits_messages_in_flight(
    count: int, size: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == 1:
        monkeypatch.setattr(publisher, "MAX_IN_FLIGHT", window)
    connection = FakeConnection()
    running = start_window(connection, messages(count, size))
    for done in range(count):
        await run_pending_tasks()
        assert len(connection.sent) == min(count, done + window)
        connection.acknowledge(connection.sent[done])
    await running


async def test_publish_window_completes_when_no_acknowledgment_wanted() -> None:
    connection = FakeConnection()
    await start_window(connection, messages(5, wants_ack=False))
    assert connection.sent == [None] * 5
    await start_window(connection, [])


async def test_publish_window_raises_when_connection_fails() -> None:
    connection = FakeConnection()
    running = start_window(connection, messages(3))
    await run_pending_tasks()
    connection.failed.set_result("the server ended the connection")
    with pytest.raises(TransientError, match="the server ended the connection"):
        await running


async def test_publish_window_raises_when_sending_fails(golden: Golden) -> None:
    connection = FakeConnection()
    connection.error = nats.errors.OutboundBufferLimitError()
    with golden.error("nats_errors", "sending fails", TransientError, "n1:4222", "outbound buffer limit exceeded"):
        await start_window(connection, messages(3))
    connection.failed.set_result("the connection was closed")
    with pytest.raises(TransientError, match="the connection was closed"):
        await start_window(connection, messages(3))


async def test_publish_window_times_out_without_acknowledgment(golden: Golden) -> None:
    connection = FakeConnection(timeout=0.01)
    with golden.error("nats_errors", "no acknowledgment", TransientError, "n1:4222", "0.01 s"):
        await start_window(connection, messages(3))


@pytest.mark.parametrize("cancel", [True, False])
async def test_publish_window_leaves_no_task_when_sending_hangs(cancel: bool) -> None:
    connection = FakeConnection(timeout=60 if cancel else 0.01)
    connection.stuck = asyncio.Event()
    running = start_window(connection, messages(3))
    await run_pending_tasks()
    if cancel:
        running.cancel()
    with pytest.raises((TransientError, asyncio.CancelledError)):
        await running
    await run_pending_tasks()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert connection.sent == []
