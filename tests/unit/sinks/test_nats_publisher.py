"""Whatever ends connections and whenever, the stream has each record once, and with atomic batches in order."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.msg import Msg

from bridge.core.errors import RefusedRecordError, TransientError
from sinks.nats.connection import Place
from sinks.nats.failures import AnsweredError
from sinks.nats.messages import Item
from sinks.nats.publisher import Progress, Writer
from sinks.nats.streams import Stream
from tests.golden import Golden

Answer = dict[str, Any]


def item(number: int, size: int = 10) -> Item:
    return Item(f"id-{number}", (1, number), "events.x", b"x" * size, {"Nats-Msg-Id": f"id-{number}"})


@dataclass
class Server:
    """JetStream, as far as the writer can tell."""

    atomic: bool = True
    most: int = 1000
    ids: list[str] = field(default_factory=list)
    known: set[str] = field(default_factory=set)
    refuse: Callable[[dict[str, str]], int] = lambda _: 0
    batches: dict[str, list[str]] = field(default_factory=dict)
    name: str = "S"

    def take(self, headers: dict[str, str]) -> Answer | None:
        """Return the answer to a message; None is the empty one."""
        if code := self.refuse(headers):
            return self._error(code)
        if "Nats-Batch-Id" in headers:
            return self._take_batch(headers)
        if headers["Nats-Msg-Id"] in self.known:
            return {"stream": self.name, "seq": 1, "duplicate": True}
        if "Nats-Expected-Last-Msg-Id" in headers:
            return self._error(10070)
        return self._store([headers["Nats-Msg-Id"]])

    def _take_batch(self, headers: dict[str, str]) -> Answer | None:
        if not self.atomic:
            return self._error(10174)
        batch = self.batches.setdefault(headers["Nats-Batch-Id"], [])
        batch.append(headers["Nats-Msg-Id"])
        if len(batch) != int(headers["Nats-Batch-Sequence"]):
            return self._error(10176)
        if len(batch) > self.most:
            return self._error(10199)
        if "Nats-Batch-Commit" not in headers:
            return None
        return self._error(10201) if self.known & set(batch) else self._store(batch)

    def _store(self, ids: list[str]) -> Answer:
        self.ids += ids
        self.known |= set(ids)
        return {"stream": self.name, "seq": len(self.ids)}

    def _error(self, code: int) -> Answer:
        return {"error": {"code": 400, "err_code": code, "description": "no"}, "stream": self.name, "seq": 0}


class FakeLink:
    """Ends after so many messages have arrived; the answers to the last few of them do not come back."""

    place = Place("n1:4222", "n1")
    timeout = 60.0  # nobody is to be given up for being slow
    max_payload = 1_000_000

    def __init__(self, server: Server, arrive: int = 10**9, unanswered: int = 0) -> None:
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._server = server
        self._arrive = arrive
        self._unanswered = unanswered

    def claim(self, _: int, listener: Callable[[int, Msg], None]) -> int:
        self._listener = listener
        return 0

    def check(self) -> None:
        if self.failed.done():
            raise TransientError(self.failed.result())

    async def send(self, _: str, __: bytes, headers: dict[str, str], number: int | None) -> None:
        await asyncio.sleep(0)
        if self.failed.done():
            return
        answer = self._server.take(headers)
        self._arrive -= 1
        if self._arrive < self._unanswered:
            asyncio.get_running_loop().call_later(0.001, self._fail)  # nothing more may be sent
        elif number is not None:
            data = msgspec.json.encode(answer) if answer else b""
            self._listener(number, Msg(_client=None, data=data))  # type: ignore[arg-type]
        if self._arrive <= 0:
            self._fail()

    def _fail(self) -> None:
        if not self.failed.done():
            self.failed.set_result("the connection ended")


def writer(link: FakeLink, progress: Progress | None = None, *, atomic: bool = True, max_message: int = -1) -> Writer:
    return Writer(link, Stream("S", atomic, max_message, expiring=True), progress or Progress())  # type: ignore[arg-type]


endings = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 30)), max_size=6)
refusals = st.lists(st.sampled_from([0, 0, 0, 10077]), max_size=60)


@given(st.booleans(), st.integers(0, 40), endings, refusals, st.booleans(), st.integers(1, 50))
async def test_each_record_is_stored_once_and_batches_keep_the_order(
    atomic: bool, count: int, failures: list[tuple[int, int]], refused: list[int], restart: bool, most: int
) -> None:
    """Connections end, single messages are refused, the process is started anew, batches are limited."""
    server = Server(atomic=atomic, most=most, refuse=lambda _: refused.pop() if refused else 0)
    items = [item(number) for number in range(count)]
    progress = Progress()
    for arrive, unanswered in failures:
        with contextlib.suppress(TransientError):
            await writer(FakeLink(server, arrive, unanswered), progress, atomic=atomic).store(items)
        if restart:
            progress = Progress()
    refused.clear()
    await writer(FakeLink(server), progress, atomic=atomic).store(items)
    assert Counter(server.ids) == Counter(each.id for each in items)
    if atomic:
        assert server.ids == [each.id for each in items]


@given(st.sets(st.integers(0, 29)), st.integers(0, 29))
async def test_holes_of_any_form_are_filled(stored: set[int], end: int) -> None:
    """They are there where the stream did not allow batches before."""
    server = Server()
    for number in stored:
        server.take(item(number).headers)
    items = [item(number) for number in range(end + 1)]
    await writer(FakeLink(server)).store(items)
    missing = [each.id for each in items if each.position[1] not in stored]
    assert server.ids[len(stored) :] == missing


async def test_what_was_acknowledged_before_a_failure_is_not_sent_again() -> None:
    server = Server(atomic=False)
    progress = Progress()
    items = [item(number) for number in range(100)]
    with pytest.raises(TransientError):
        await writer(FakeLink(server, arrive=70), progress, atomic=False).store(items)
    assert len(server.ids) == 70
    seen: list[str] = []
    server.refuse = lambda headers: seen.append(headers["Nats-Msg-Id"]) or 0  # type: ignore[func-returns-value]
    await writer(FakeLink(server), progress, atomic=False).store(items)
    assert seen == [each.id for each in items[70:]]


async def test_batches_shrink_where_connections_end_and_grow_again() -> None:
    server, progress = Server(), Progress()
    items = [item(number) for number in range(900)]
    for _ in range(4):
        with pytest.raises(TransientError):
            await writer(FakeLink(server, arrive=100), progress).store(items)
    assert (progress.batch, server.ids) == (62, [])
    await writer(FakeLink(server), progress).store(items)
    assert server.ids == [each.id for each in items]
    assert progress.batch == 992


@pytest.mark.parametrize(("code", "lasting"), [(10174, False), (10177, True)])
async def test_a_server_that_takes_no_batches_after_all(code: int, lasting: bool) -> None:
    """The stream allows them no more, or the server is 2.12.0, which takes no message ids in them."""
    server, progress = Server(refuse=lambda headers: code if "Nats-Batch-Id" in headers else 0), Progress()
    items = [item(number) for number in range(5)]
    await writer(FakeLink(server), progress).store(items)
    assert server.ids == [each.id for each in items]
    assert progress.atomic is not lasting


async def test_a_record_that_is_refused_for_what_it_is_is_named(golden: Golden) -> None:
    server = Server(atomic=False, refuse=lambda headers: 10054 if headers["Nats-Msg-Id"] == "id-2" else 0)
    with golden.error("nats_errors", "record rejected", RefusedRecordError, "n1:4222", "S") as caught:
        await writer(FakeLink(server), atomic=False).store([item(number) for number in range(5)])
    assert caught.value.positions == {(1, 2)}


async def test_a_record_that_is_too_large_is_never_sent(golden: Golden) -> None:
    server = Server()
    for link, limit in ((FakeLink(server), 1000), (FakeLink(server), -1)):
        with golden.error("nats_errors", f"record too large, {limit}", RefusedRecordError, "1000"):
            await writer(link, max_message=limit).store([item(1), item(2, size=1_000_001)])
    long = item(3)._replace(headers={"Nats-Msg-Id": "x", "ce-subject": "x" * 66_000})
    with pytest.raises(RefusedRecordError):
        await writer(FakeLink(server)).store([long])
    assert server.ids == []


@pytest.mark.parametrize("code", [10176, 10210, 10158, 10077])
async def test_a_batch_that_is_refused_is_worth_another_try(code: int, golden: Golden) -> None:
    server = Server(refuse=lambda headers: code if "Nats-Batch-Commit" in headers else 0)
    with golden.error("nats_errors", f"batch rejected, {code}", AnsweredError, code):
        await writer(FakeLink(server)).store([item(1), item(2)])
    server.refuse = lambda _: 0
    await writer(FakeLink(server)).store([item(1), item(2)])
    assert server.ids == ["id-1", "id-2"]


async def test_records_of_a_batch_that_is_still_under_way_are_waited_for(golden: Golden) -> None:
    server = Server(refuse=lambda headers: 10201 if "Nats-Batch-Commit" in headers else 0)
    with golden.error("nats_errors", "batch still under way", AnsweredError, "n1:4222"):
        await writer(FakeLink(server)).store([item(1), item(2)])


@pytest.mark.parametrize("atomic", [True, False])
async def test_an_acknowledgement_of_another_stream_is_none(atomic: bool, golden: Golden) -> None:
    server, progress = Server(name="OTHER"), Progress()
    with golden.error("nats_errors", "another stream acknowledges", AnsweredError, "OTHER", "n1:4222"):
        await writer(FakeLink(server), progress, atomic=atomic).store([item(1), item(2)])
    assert progress.stored == set()


async def test_nothing_is_no_work() -> None:
    await writer(FakeLink(Server())).store([])
