"""Test that the stream has each record once, and in order with atomic batches, however connections fail."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import nats.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.msg import Msg

from bridge.core.errors import RejectedRecordError, TransientError
from bridge.core.time import SECOND
from config.sinks.nats import NatsSettings
from sinks.nats import publisher
from sinks.nats.connection import ServerAddress
from sinks.nats.errors import ApiResponseError
from sinks.nats.messages import IN_PROCESS_SECONDS, MessageIds, OutgoingMessage, PublishRequest
from sinks.nats.publisher import (
    JetStreamPublisher,
    PublishProgress,
    PublishWindow,
    always_continue,
    continue_unless_rejected,
)
from sinks.nats.state_table import StateBucket
from sinks.nats.streams import Stream
from sinks.target_memory import TargetMemory, TargetState
from tests.golden import Golden
from tests.sample_records import records
from tests.virtual_time import VirtualClock

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
    in_process: set[str] = field(default_factory=set)
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
        if headers["Nats-Msg-Id"] in self.in_process:
            return self._error(10158)
        assert "Nats-Expected-Last-Msg-Id" not in headers, "a mismatch stops a replicated stream"
        if "Nats-Rollup" in headers:
            return self._error(10111)
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
        for id_ in batch:  # the first one decides
            if id_ in self.stored_ids | self.in_process:
                return self._error(10201 if id_ in self.stored_ids else 10158)
        return self._store(batch)

    def _store(self, ids: list[str]) -> AckDict:
        self.ids += ids
        self.stored_ids |= set(ids)
        return {"stream": self.name, "seq": len(self.ids)}

    def _error(self, code: int) -> AckDict:
        return {"error": {"code": 400, "err_code": code, "description": "no"}, "stream": self.name, "seq": 0}


class FakeConnection:
    """Fail after ``delivered`` messages, and withhold the acknowledgments of the last ``unacknowledged``."""

    address = ServerAddress("n1:4222", "n1")
    clock = VirtualClock()
    timeout = 60.0  # no test depends on a timeout
    max_payload = 1_000_000

    def __init__(self, server: FakeJetStream, delivered: int = 10**9, unacknowledged: int = 0) -> None:
        self.message_ids = MessageIds()
        self.failed: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._server = server
        self._delivered = delivered
        self._unacknowledged = unacknowledged

    def allocate_reply_ids(self, _: int, listener: Callable[[int, Msg], None]) -> int:
        self._listener = listener
        return 0

    async def api_request(self, *_: object) -> dict[str, Any]:
        return {}

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


@pytest.mark.parametrize("code", [10176, 10210, 10077])
async def test_nats_batch_is_retriable_after_rejected_commit(code: int, golden: Golden) -> None:
    server = FakeJetStream(error_codes=lambda headers: code if "Nats-Batch-Commit" in headers else 0)
    with golden.error("nats_errors", f"batch rejected, {code}", ApiResponseError, code):
        await make_publisher(FakeConnection(server)).publish([outgoing_message(1), outgoing_message(2)])
    server.error_codes = lambda _: 0
    await make_publisher(FakeConnection(server)).publish([outgoing_message(1), outgoing_message(2)])
    assert server.ids == ["id-1", "id-2"]


@pytest.mark.parametrize("code", [10201, 10158])
async def test_nats_publisher_raises_when_batch_is_in_progress(code: int, golden: Golden) -> None:
    server = FakeJetStream(error_codes=lambda headers: code if "Nats-Batch-Commit" in headers else 0)
    with golden.error("nats_errors", "batch in progress", ApiResponseError, "n1:4222"):
        await make_publisher(FakeConnection(server)).publish([outgoing_message(1), outgoing_message(2)])


@pytest.mark.parametrize("atomic", [True, False])
@pytest.mark.parametrize("seconds", [IN_PROCESS_SECONDS - 1, IN_PROCESS_SECONDS + 1, 10**6])
async def test_nats_message_gets_another_id_when_servers_drop_it(
    seconds: float, atomic: bool, clock: VirtualClock
) -> None:
    """Two ids stay in process for some time, or as long as a server remembers them."""
    server, progress = FakeJetStream(atomic=atomic, in_process={"id-2", "id-4"}), PublishProgress()
    items = [outgoing_message(number) for number in range(6)]
    connection = FakeConnection(server)
    attempts, began = 0, clock.now().monotonic
    while progress.stored < {item.id for item in items}:
        attempts += 1
        if clock.now().monotonic - began > seconds * SECOND:
            server.in_process.clear()
        with contextlib.suppress(ApiResponseError):
            await make_publisher(connection, progress, atomic=atomic).publish(items)
        await clock.sleep(5)
    suffix = "" if seconds < IN_PROCESS_SECONDS else "~"
    expected = [f"id-{number}{suffix if number in (2, 4) else ''}" for number in range(6)]
    assert (server.ids if atomic else sorted(server.ids)) == expected
    assert attempts <= IN_PROCESS_SECONDS / 5 + 2


async def test_kv_bucket_entry_gets_another_id_when_servers_drop_it(clock: VirtualClock) -> None:
    server = FakeJetStream(error_codes=lambda headers: 0 if headers["Nats-Msg-Id"].endswith("~") else 10158)
    settings = NatsSettings.model_validate({"servers": ["n1"], "subject_prefix": "events"})
    bucket, connection = StateBucket(settings, "bucket", clock), FakeConnection(server)
    while not server.ids:
        with contextlib.suppress(ApiResponseError):
            await bucket.apply(connection, records(2))  # type: ignore[arg-type]
        await clock.sleep(5)
    assert len(server.ids) == 2


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


STORED = b'{"stream":"S","seq":1}'
REJECTED = b'{"error":{"code":400,"err_code":10077,"description":"full"},"stream":"S","seq":0}'


class AcknowledgingConnection:
    """Record sent messages; tests call ``acknowledge``."""

    address = ServerAddress("n1:4222", "n1")
    clock = VirtualClock()

    def __init__(self, timeout: float = 60) -> None:
        self.message_ids = MessageIds()
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


def requests(count: int, size: int = 1, *, wants_ack: bool = True) -> list[PublishRequest]:
    return [PublishRequest("s", b"x" * size, None, wants_ack) for _ in range(count)]


def start_window(
    connection: AcknowledgingConnection,
    messages: list[PublishRequest],
    should_continue: Callable[..., bool] = continue_unless_rejected,
) -> asyncio.Task[object]:
    return asyncio.ensure_future(PublishWindow(connection, messages, should_continue).run())  # type: ignore[arg-type]


async def run_pending_tasks() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_publish_window_accepts_acknowledgments_in_any_order() -> None:
    connection = AcknowledgingConnection()
    running = start_window(connection, requests(3))
    await run_pending_tasks()
    for number in reversed(connection.sent):
        assert not running.done()
        connection.acknowledge(number)
    assert sorted(await running) == [0, 1, 2]  # type: ignore[call-overload]


async def test_publish_window_ignores_earlier_acknowledgments() -> None:
    """A stale acknowledgment must not count for another record."""
    connection = AcknowledgingConnection()
    first = start_window(connection, requests(5))
    await run_pending_tasks()
    earlier = list(connection.sent)
    connection.acknowledge(earlier[0], REJECTED)
    await first
    connection.sent.clear()
    second = start_window(connection, requests(2))
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
    connection = AcknowledgingConnection()
    running = start_window(connection, requests(3))
    await run_pending_tasks()
    connection.acknowledge(connection.sent[1], REJECTED)
    assert list(await running) == [1]  # type: ignore[call-overload]
    connection.sent.clear()
    running = start_window(connection, requests(2), always_continue)
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
    connection = AcknowledgingConnection()
    running = start_window(connection, requests(count, size))
    for done in range(count):
        await run_pending_tasks()
        assert len(connection.sent) == min(count, done + window)
        connection.acknowledge(connection.sent[done])
    await running


async def test_publish_window_completes_when_no_acknowledgment_wanted() -> None:
    connection = AcknowledgingConnection()
    await start_window(connection, requests(5, wants_ack=False))
    assert connection.sent == [None] * 5
    await start_window(connection, [])


async def test_publish_window_raises_when_connection_fails() -> None:
    connection = AcknowledgingConnection()
    running = start_window(connection, requests(3))
    await run_pending_tasks()
    connection.failed.set_result("the server ended the connection")
    with pytest.raises(TransientError, match="the server ended the connection"):
        await running


async def test_publish_window_raises_when_sending_fails(golden: Golden) -> None:
    connection = AcknowledgingConnection()
    connection.error = nats.errors.OutboundBufferLimitError()
    with golden.error("nats_errors", "sending fails", TransientError, "n1:4222", "outbound buffer limit exceeded"):
        await start_window(connection, requests(3))
    connection.failed.set_result("the connection was closed")
    with pytest.raises(TransientError, match="the connection was closed"):
        await start_window(connection, requests(3))


async def test_publish_window_times_out_without_acknowledgment(golden: Golden) -> None:
    connection = AcknowledgingConnection(timeout=0.01)
    with golden.error("nats_errors", "no acknowledgment", TransientError, "n1:4222", "0.01 s"):
        await start_window(connection, requests(3))


@pytest.mark.parametrize("cancel", [True, False])
async def test_publish_window_leaves_no_task_when_sending_hangs(cancel: bool) -> None:
    connection = AcknowledgingConnection(timeout=60 if cancel else 0.01)
    connection.stuck = asyncio.Event()
    running = start_window(connection, requests(3))
    await run_pending_tasks()
    if cancel:
        running.cancel()
    with pytest.raises((TransientError, asyncio.CancelledError)):
        await running
    await run_pending_tasks()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert connection.sent == []
