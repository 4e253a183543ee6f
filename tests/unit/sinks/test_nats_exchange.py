"""Exchanges over a link whose answers the tests give."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import nats.errors
import pytest
from nats.aio.msg import Msg

from bridge.core.errors import TransientError
from sinks.nats import exchange
from sinks.nats.connection import Place
from sinks.nats.exchange import Exchange, Message, always, unless_refused
from tests.golden import Golden

STORED = b'{"stream":"S","seq":1}'
REFUSED = b'{"error":{"code":400,"err_code":10077,"description":"full"},"stream":"S","seq":0}'


class FakeLink:
    """Keeps what is sent; a test answers."""

    place = Place("n1:4222", "n1")

    def __init__(self, timeout: float = 60) -> None:
        self.timeout = timeout
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.sent: list[int | None] = []
        self.error: Exception | None = None
        self.stuck: asyncio.Event | None = None
        self._numbers = 100

    def claim(self, count: int, listener: Callable[[int, Msg], None]) -> int:
        self._listener = listener
        self._numbers += count
        return self._numbers - count

    def check(self) -> None:
        if self.failed.done():
            raise TransientError(self.failed.result())

    async def send(self, _: str, __: bytes, ___: object, number: int | None) -> None:
        if self.error:
            raise self.error
        while self.stuck:  # as nats-py does: a cancellation is swallowed
            try:
                await self.stuck.wait()
            except asyncio.CancelledError:
                return
        self.sent.append(number)

    def answer(self, number: int | None, data: bytes = STORED) -> None:
        assert number is not None
        self._listener(number, Msg(_client=None, data=data))  # type: ignore[arg-type]


def messages(count: int, size: int = 1, *, answered: bool = True) -> list[Message]:
    return [Message("s", b"x" * size, None, answered) for _ in range(count)]


def begun(link: FakeLink, what: list[Message], goes_on: Callable[..., bool] = unless_refused) -> asyncio.Task[object]:
    return asyncio.ensure_future(Exchange(link, what, goes_on).run())  # type: ignore[arg-type]


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_answers_may_come_in_any_order() -> None:
    link = FakeLink()
    running = begun(link, messages(3))
    await settle()
    for number in reversed(link.sent):
        assert not running.done()
        link.answer(number)
    assert sorted(await running) == [0, 1, 2]  # type: ignore[call-overload]


async def test_answers_to_an_earlier_exchange_mean_nothing_to_this_one() -> None:
    """Else records would be taken for stored that are not."""
    link = FakeLink()
    first = begun(link, messages(5))
    await settle()
    earlier = list(link.sent)
    link.answer(earlier[0], REFUSED)
    await first
    link.sent.clear()
    second = begun(link, messages(2))
    await settle()
    for number in [*earlier, 10**6, -1]:
        link.answer(number)
    link.answer(link.sent[0])
    link.answer(link.sent[0])  # twice
    await settle()
    assert not second.done()
    link.answer(link.sent[1])
    assert sorted(await second) == [0, 1]  # type: ignore[call-overload]


async def test_the_first_refusal_ends_it_unless_it_may_go_on() -> None:
    link = FakeLink()
    running = begun(link, messages(3))
    await settle()
    link.answer(link.sent[1], REFUSED)
    assert list(await running) == [1]  # type: ignore[call-overload]
    link.sent.clear()
    running = begun(link, messages(2), always)
    await settle()
    link.answer(link.sent[0], REFUSED)
    link.answer(link.sent[1])
    assert sorted(await running) == [0, 1]  # type: ignore[call-overload]


@pytest.mark.parametrize(("count", "size", "window"), [(10, 1, 3), (10, exchange.WINDOW_BYTES // 3, 3), (3, 10**8, 1)])
async def test_no_more_is_under_way_than_the_window_lets(
    count: int, size: int, window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if size == 1:
        monkeypatch.setattr(exchange, "WINDOW", window)
    link = FakeLink()
    running = begun(link, messages(count, size))
    for done in range(count):
        await settle()
        assert len(link.sent) == min(count, done + window)
        link.answer(link.sent[done])
    await running


async def test_what_is_not_answered_is_done_when_it_is_sent() -> None:
    link = FakeLink()
    await begun(link, messages(5, answered=False))
    assert link.sent == [None] * 5
    await begun(link, [])


async def test_a_link_that_fails_ends_it_at_once() -> None:
    link = FakeLink()
    running = begun(link, messages(3))
    await settle()
    link.failed.set_result("the server ended the connection")
    with pytest.raises(TransientError, match="the server ended the connection"):
        await running


async def test_an_error_of_sending_is_told(golden: Golden) -> None:
    link = FakeLink()
    link.error = nats.errors.OutboundBufferLimitError()
    with golden.error("nats_errors", "sending fails", TransientError, "n1:4222", "outbound buffer limit exceeded"):
        await begun(link, messages(3))
    link.failed.set_result("it was closed")
    with pytest.raises(TransientError, match="it was closed"):
        await begun(link, messages(3))


async def test_silence_is_bounded(golden: Golden) -> None:
    link = FakeLink(timeout=0.01)
    with golden.error("nats_errors", "no acknowledgement", TransientError, "n1:4222", "0.01 s"):
        await begun(link, messages(3))


@pytest.mark.parametrize("cancel", [True, False])
async def test_nothing_is_left_behind_where_sending_is_stuck(cancel: bool) -> None:
    link = FakeLink(timeout=60 if cancel else 0.01)
    link.stuck = asyncio.Event()
    running = begun(link, messages(3))
    await settle()
    if cancel:
        running.cancel()
    with pytest.raises((TransientError, asyncio.CancelledError)):
        await running
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert link.sent == []
