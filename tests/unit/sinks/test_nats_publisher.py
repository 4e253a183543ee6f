"""Test that the stream has each record once, and in order with atomic batches, however connections fail."""

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

from bridge.core.errors import RejectedRecordError, TransientError
from sinks.nats.connection import ServerAddress
from sinks.nats.errors import ApiResponseError
from sinks.nats.messages import OutgoingMessage
from sinks.nats.publisher import JetStreamPublisher, PublishProgress
from sinks.nats.streams import Stream
from sinks.target_memory import TargetMemory, TargetState
from tests.golden import Golden

AckDict = dict[str, Any]


def outgoing_message(number: int, size: int = 10) -> OutgoingMessage:
    return OutgoingMessage(f"id-{number}", (1, number), "events.x", b"x" * size, {"Nats-Msg-Id": f"id-{number}"})


@dataclass
class FakeJetStream:
    """Simulate JetStream as far as the publisher depends on the server."""

    atomic: bool = True
    max_batch: int = 1000
    ids: list[str] = field(default_factory=list)
    stored_ids: set[str] = field(default_factory=set)
    error_codes: Callable[[dict[str, str]], int] = lambda _: 0
    batches: dict[str, list[str]] = field(default_factory=dict)
    name: str = "S"

    def take(self, headers: dict[str, str]) -> AckDict | None:
        """Return the response to a message; None stands for an empty response."""
        if code := self.error_codes(headers):
            return self._error(code)
        if "Nats-Batch-Id" in headers:
            return self._take_batch(headers)
        if headers["Nats-Msg-Id"] in self.stored_ids:
            return {"stream": self.name, "seq": 1, "duplicate": True}
        if "Nats-Expected-Last-Msg-Id" in headers:
            return self._error(10070)
        return self._store([headers["Nats-Msg-Id"]])

    def _take_batch(self, headers: dict[str, str]) -> AckDict | None:
        if not self.atomic:
            return self._error(10174)
        batch = self.batches.setdefault(headers["Nats-Batch-Id"], [])
        batch.append(headers["Nats-Msg-Id"])
        if len(batch) != int(headers["Nats-Batch-Sequence"]):
            return self._error(10176)
        if len(batch) > self.max_batch:
            return self._error(10199)
        if "Nats-Batch-Commit" not in headers:
            return None
        return self._error(10201) if self.stored_ids & set(batch) else self._store(batch)

    def _store(self, ids: list[str]) -> AckDict:
        self.ids += ids
        self.stored_ids |= set(ids)
        return {"stream": self.name, "seq": len(self.ids)}

    def _error(self, code: int) -> AckDict:
        return {"error": {"code": 400, "err_code": code, "description": "no"}, "stream": self.name, "seq": 0}


class FakeConnection:
    """Fail after ``delivered`` messages, and withhold the acknowledgments of the last ``unacknowledged``."""

    address = ServerAddress("n1:4222", "n1")
    timeout = 60.0  # no test depends on a timeout
    max_payload = 1_000_000

    def __init__(self, server: FakeJetStream, delivered: int = 10**9, unacknowledged: int = 0) -> None:
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._server = server
        self._delivered = delivered
        self._unacknowledged = unacknowledged

    def allocate_reply_ids(self, _: int, listener: Callable[[int, Msg], None]) -> int:
        self._listener = listener
        return 0

    def raise_if_failed(self) -> None:
        if self.failed.done():
            raise TransientError(self.failed.result())

    async def publish(self, _: str, __: bytes, headers: dict[str, str], reply_id: int | None) -> None:
        await asyncio.sleep(0)
        if self.failed.done():
            return
        response = self._server.take(headers)
        self._delivered -= 1
        if self._delivered < self._unacknowledged:
            asyncio.get_running_loop().call_later(0.001, self._fail)  # fails before another message is sent
        elif reply_id is not None:
            data = msgspec.json.encode(response) if response else b""
            self._listener(reply_id, Msg(_client=None, data=data))  # type: ignore[arg-type]
        if self._delivered <= 0:
            self._fail()

    def _fail(self) -> None:
        if not self.failed.done():
            self.failed.set_result("the connection ended")


def make_publisher(
    connection: FakeConnection, progress: PublishProgress | None = None, *, atomic: bool = True, max_message: int = -1
) -> JetStreamPublisher:
    stream = Stream("S", atomic, max_message, supports_ttl=True, state=TargetState("", 1, 0))
    return JetStreamPublisher(connection, stream, progress or PublishProgress(), TargetMemory())  # type: ignore[arg-type]


endings = st.lists(st.tuples(st.integers(1, 60), st.integers(0, 30)), max_size=6)
rejections = st.lists(st.sampled_from([0, 0, 0, 10077]), max_size=60)


@given(st.booleans(), st.integers(0, 40), endings, rejections, st.booleans(), st.integers(1, 50))
async def test_nats_publisher_stores_each_record_once_in_order(
    atomic: bool, count: int, failures: list[tuple[int, int]], error_codes: list[int], restart: bool, max_batch: int
) -> None:
    """Connections fail, single messages are rejected, the process restarts, and batches are limited."""
    server = FakeJetStream(
        atomic=atomic, max_batch=max_batch, error_codes=lambda _: error_codes.pop() if error_codes else 0
    )
    items = [outgoing_message(number) for number in range(count)]
    progress = PublishProgress()
    for delivered, unacknowledged in failures:
        with contextlib.suppress(TransientError):
            await make_publisher(FakeConnection(server, delivered, unacknowledged), progress, atomic=atomic).publish(
                items
            )
        if restart:
            progress = PublishProgress()
    error_codes.clear()
    await make_publisher(FakeConnection(server), progress, atomic=atomic).publish(items)
    assert Counter(server.ids) == Counter(item.id for item in items)
    if atomic:
        assert server.ids == [item.id for item in items]


@given(st.sets(st.integers(0, 29)), st.integers(0, 29))
async def test_nats_publisher_stores_missing_records_among_stored(stored: set[int], end: int) -> None:
    """Records are already stored if the stream did not allow batches before."""
    server = FakeJetStream()
    for number in stored:
        server.take(outgoing_message(number).headers)
    items = [outgoing_message(number) for number in range(end + 1)]
    await make_publisher(FakeConnection(server)).publish(items)
    missing = [item.id for item in items if item.position[1] not in stored]
    assert server.ids[len(stored) :] == missing


async def test_nats_publisher_does_not_resend_acknowledged_records() -> None:
    server = FakeJetStream(atomic=False)
    progress = PublishProgress()
    items = [outgoing_message(number) for number in range(100)]
    with pytest.raises(TransientError):
        await make_publisher(FakeConnection(server, delivered=70), progress, atomic=False).publish(items)
    assert len(server.ids) == 70
    sent_ids: list[str] = []
    server.error_codes = lambda headers: sent_ids.append(headers["Nats-Msg-Id"]) or 0  # type: ignore[func-returns-value]
    await make_publisher(FakeConnection(server), progress, atomic=False).publish(items)
    assert sent_ids == [item.id for item in items[70:]]


async def test_nats_batch_size_shrinks_on_disconnect_and_recovers() -> None:
    server, progress = FakeJetStream(), PublishProgress()
    items = [outgoing_message(number) for number in range(900)]
    for _ in range(4):
        with pytest.raises(TransientError):
            await make_publisher(FakeConnection(server, delivered=100), progress).publish(items)
    assert (progress.batch_size, server.ids) == (62, [])
    await make_publisher(FakeConnection(server), progress).publish(items)
    assert server.ids == [item.id for item in items]
    assert progress.batch_size == 992


@pytest.mark.parametrize(("code", "permanent"), [(10174, False), (10177, True)])
async def test_nats_publisher_falls_back_when_batches_are_rejected(code: int, permanent: bool) -> None:
    """The stream no longer allows batches, or server 2.12.0 rejects message ids in batches."""
    server, progress = (
        FakeJetStream(error_codes=lambda headers: code if "Nats-Batch-Id" in headers else 0),
        PublishProgress(),
    )
    items = [outgoing_message(number) for number in range(5)]
    await make_publisher(FakeConnection(server), progress).publish(items)
    assert server.ids == [item.id for item in items]
    assert progress.atomic is not permanent


async def test_nats_publisher_raises_position_of_rejected_record(golden: Golden) -> None:
    server = FakeJetStream(atomic=False, error_codes=lambda headers: 10054 if headers["Nats-Msg-Id"] == "id-2" else 0)
    with golden.error("nats_errors", "record rejected", RejectedRecordError, "n1:4222", "S") as caught:
        await make_publisher(FakeConnection(server), atomic=False).publish(
            [outgoing_message(number) for number in range(5)]
        )
    assert caught.value.positions == {(1, 2)}


async def test_nats_publisher_never_sends_oversized_record(golden: Golden) -> None:
    server = FakeJetStream()
    for connection, limit in ((FakeConnection(server), 1000), (FakeConnection(server), -1)):
        with golden.error("nats_errors", f"record too large, {limit}", RejectedRecordError, "1000"):
            await make_publisher(connection, max_message=limit).publish(
                [outgoing_message(1), outgoing_message(2, size=1_000_001)]
            )
    long_header_message = outgoing_message(3)._replace(headers={"Nats-Msg-Id": "x", "ce-subject": "x" * 66_000})
    with pytest.raises(RejectedRecordError):
        await make_publisher(FakeConnection(server)).publish([long_header_message])
    assert server.ids == []


@pytest.mark.parametrize("code", [10176, 10210, 10158, 10077])
async def test_nats_batch_is_retriable_after_rejected_commit(code: int, golden: Golden) -> None:
    server = FakeJetStream(error_codes=lambda headers: code if "Nats-Batch-Commit" in headers else 0)
    with golden.error("nats_errors", f"batch rejected, {code}", ApiResponseError, code):
        await make_publisher(FakeConnection(server)).publish([outgoing_message(1), outgoing_message(2)])
    server.error_codes = lambda _: 0
    await make_publisher(FakeConnection(server)).publish([outgoing_message(1), outgoing_message(2)])
    assert server.ids == ["id-1", "id-2"]


async def test_nats_publisher_raises_when_batch_is_in_progress(golden: Golden) -> None:
    server = FakeJetStream(error_codes=lambda headers: 10201 if "Nats-Batch-Commit" in headers else 0)
    with golden.error("nats_errors", "batch in progress", ApiResponseError, "n1:4222"):
        await make_publisher(FakeConnection(server)).publish([outgoing_message(1), outgoing_message(2)])


@pytest.mark.parametrize("atomic", [True, False])
async def test_nats_publisher_rejects_acknowledgment_of_other_stream(atomic: bool, golden: Golden) -> None:
    server, progress = FakeJetStream(name="OTHER"), PublishProgress()
    with golden.error("nats_errors", "acknowledgment of another stream", ApiResponseError, "OTHER", "n1:4222"):
        await make_publisher(FakeConnection(server), progress, atomic=atomic).publish(
            [outgoing_message(1), outgoing_message(2)]
        )
    assert progress.stored == set()


async def test_nats_publisher_accepts_empty_list() -> None:
    await make_publisher(FakeConnection(FakeJetStream())).publish([])
