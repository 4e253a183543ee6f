"""Test the HTTP/2 client against scripted bytes: split frames, every way to end, invalid data, hung and dead peers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sized
from pathlib import Path

import pytest
from hpack import Decoder
from hypothesis import given
from hypothesis import strategies as st

from bridge.containerd import http2
from bridge.containerd.http2 import WINDOW_BYTES, GrpcConnection, GrpcProtocol, Status, StatusCode
from tests.unit.containerd import http2_peer as peer_side
from tests.unit.containerd.http2_peer import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PING,
    PREFACE,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Peer,
    RecordedCall,
    block,
    data,
    frame,
    frames,
    goaway,
    message,
    messages,
    reset,
    response_headers,
    settings,
    trailers,
    trailers_only,
    window_update,
)

MIB = 1024 * 1024
OK = Status(StatusCode.OK, "")


def started(
    calls: int = 1, request: bytes = b"request", first: bytes = settings()
) -> tuple[GrpcProtocol, list[RecordedCall]]:
    """Return a connection with calls on the streams 1, 3, 5, and so on, after the peer has sent its first bytes."""
    protocol = GrpcProtocol()
    protocol.receive(first)
    recorded = [RecordedCall() for _ in range(calls)]
    for call in recorded:
        protocol.start(call, "/service/Method", request)
    return protocol, recorded


def responded(*content: bytes) -> RecordedCall:
    """Return a call after its peer has sent these bytes, at once."""
    protocol, (call,) = started()
    protocol.receive(b"".join(content))
    return call


def sent_frames(protocol: GrpcProtocol, type_: int | None = None) -> list[peer_side.Frame]:
    return [each for each in frames(protocol.data_to_send()) if type_ in (None, each.type)]


class TestRequests:
    def test_connection_begins_with_preface_and_settings(self) -> None:
        sent = GrpcProtocol().data_to_send()
        assert sent.startswith(PREFACE)
        assert [each.type for each in frames(sent)] == [SETTINGS, WINDOW_UPDATE]

    def test_request_has_grpc_headers_and_one_message(self) -> None:
        protocol = GrpcProtocol()
        protocol.start(RecordedCall(), "/service/Method", b"request", (("key", "value"),))
        headers, body = sent_frames(protocol)[-2:]
        assert (headers.type, headers.flags & END_STREAM, headers.stream) == (HEADERS, 0, 1)
        assert peer_side.decode_block(headers.payload, Decoder()) == {
            ":method": "POST",
            ":scheme": "http",
            ":path": "/service/Method",
            ":authority": "localhost",
            "content-type": "application/grpc",
            "te": "trailers",
            "key": "value",
        }
        assert body == (DATA, END_STREAM, 1, message(b"request"))

    def test_requests_follow_peers_header_table_size(self) -> None:
        protocol, _ = started(2, first=settings(header_table_size=0))
        decoder = Decoder()
        decoder.max_allowed_table_size = 0  # a block that does not confirm it is an error now
        blocks = [peer_side.decode_block(each.payload, decoder) for each in sent_frames(protocol, HEADERS)]
        assert [each[":path"] for each in blocks] == ["/service/Method"] * 2

    def test_headers_of_request_depend_on_no_other_request(self) -> None:
        protocol = GrpcProtocol()
        protocol.receive(settings())
        for value in ("one", "two", "one"):
            protocol.start(RecordedCall(), "/service/Method", b"", (("key", value),))
        blocks = [peer_side.decode_block(each.payload, Decoder()) for each in sent_frames(protocol, HEADERS)]
        assert [each["key"] for each in blocks] == ["one", "two", "one"]

    def test_request_has_headers_for_peer_without_dynamic_table(self) -> None:
        protocol, _ = started(2)
        peer = Decoder()
        peer.max_allowed_table_size = 0
        for each in sent_frames(protocol, HEADERS):
            assert peer_side.decode_block(each.payload, peer)[":path"] == "/service/Method"

    def test_request_waits_for_flow_control_of_call(self) -> None:
        protocol = GrpcProtocol()
        protocol.receive(settings(initial_window_size=5))
        protocol.start(RecordedCall(), "/service/Method", b"request")
        assert [each.payload for each in sent_frames(protocol, DATA)] == [message(b"request")[:5]]
        protocol.receive(window_update(1, 3) + window_update(1, 100))
        parts = sent_frames(protocol, DATA)
        assert b"".join(each.payload for each in parts) == message(b"request")[5:]
        assert parts[-1].flags == END_STREAM

    def test_requests_wait_for_flow_control_of_connection(self) -> None:
        protocol, _ = started(2, b"x" * 40_000)
        assert sum(len(each.payload) for each in sent_frames(protocol, DATA)) == 65_535
        protocol.receive(window_update(0, MIB))
        assert sum(len(each.payload) for each in sent_frames(protocol, DATA)) == 2 * 40_005 - 65_535

    def test_thousands_of_requests_wait_for_connection(self) -> None:
        protocol, _ = started(3_000, b"x" * 95)
        sent = sent_frames(protocol, DATA)
        assert sum(len(each.payload) for each in sent) == 65_535
        protocol.receive(window_update(0, MIB))
        sent += sent_frames(protocol, DATA)
        assert [each.stream for each in sent if each.flags & END_STREAM] == list(range(1, 6_000, 2))

    def test_starts_do_not_look_at_requests_that_wait(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Thousands of calls start at once, and the window of the connection is enough for some hundreds."""
        looks: list[int] = []
        send_body = GrpcProtocol._send_body

        def look(protocol: GrpcProtocol, stream_id: int) -> None:
            looks.append(stream_id)
            send_body(protocol, stream_id)

        monkeypatch.setattr(GrpcProtocol, "_send_body", look)
        protocol, _ = started(1_000, b"x" * 1_000)
        assert len(looks) == 1_000
        protocol.receive(frame(PING, payload=b"12345678"))
        assert len(looks) == 1_000, "no window was extended"
        protocol.receive(window_update(0, 10 * MIB))
        assert protocol._bodies == {}

    def test_data_frames_are_small_for_peer_that_allows_more(self) -> None:
        protocol, _ = started(1, b"x" * 100_000, settings(max_frame_size=2**32 - 1, initial_window_size=2**31 - 1))
        protocol.receive(window_update(0, MIB))
        parts = sent_frames(protocol, DATA)
        assert b"".join(each.payload for each in parts) == message(b"x" * 100_000)
        assert max(len(each.payload) for each in parts) == 16_384

    def test_call_sends_further_messages_as_windows_allow(self) -> None:
        protocol = GrpcProtocol()
        protocol.receive(settings(initial_window_size=20))
        call = RecordedCall()
        protocol.start(call, "/service/Method", b"", ends=False)
        protocol.receive(response_headers())
        protocol.data_to_send()
        for content in (b"first", b"second", b"third"):
            protocol.send(call, content)
        assert [each.payload for each in sent_frames(protocol, DATA)] == [message(b"first"), message(b"second")[:5]]
        protocol.receive(window_update(1, 1_000))
        (rest,) = sent_frames(protocol, DATA)
        assert (rest.flags & END_STREAM, rest.payload) == (0, message(b"second")[5:] + message(b"third"))
        protocol.receive(trailers(status="8"))
        assert call.code is StatusCode.RESOURCE_EXHAUSTED
        assert [each.type for each in sent_frames(protocol)] == [RST_STREAM]
        assert (protocol.open_calls, protocol._bodies) == (0, {})

    def test_calls_wait_for_limit_of_peer(self) -> None:
        protocol = GrpcProtocol()
        protocol.receive(settings(max_concurrent_streams=2))
        calls = [RecordedCall() for _ in range(4)]
        for call in calls:
            protocol.start(call, "/service/Method", b"")
        assert [each.stream for each in sent_frames(protocol, HEADERS)] == [1, 3]
        protocol.receive(trailers_only(3) + trailers_only(1))
        assert [each.stream for each in sent_frames(protocol, HEADERS)] == [5, 7]
        assert [call.code for call in calls] == [StatusCode.OK, StatusCode.OK, None, None]

    def test_canceled_call_is_reset_and_makes_room_for_waiting_one(self) -> None:
        protocol, (first, second, third) = started(3, first=settings(max_concurrent_streams=1))
        protocol.data_to_send()
        protocol.cancel(second)
        protocol.cancel(first)
        reset_, headers = (each for each in sent_frames(protocol) if each.type != DATA)
        assert (reset_.type, reset_.stream, reset_.payload) == (RST_STREAM, 1, bytes([0, 0, 0, 8]))
        assert (headers.type, headers.stream) == (HEADERS, 3)
        assert [call.code for call in (first, second, third)] == [StatusCode.CANCELLED] * 2 + [None]
        protocol.receive(response_headers(1) + messages(b"late", stream=1) + trailers(1) + trailers_only(3))
        assert (first.messages, third.statuses) == ([], [OK])
        protocol.cancel(third)
        assert (protocol.data_to_send(), protocol.open_calls) == (b"", 0)

    def test_calls_after_first_wait_for_settings(self) -> None:
        protocol, _ = started(10, first=b"")
        assert len(sent_frames(protocol, HEADERS)) == 1
        protocol.receive(settings())
        assert len(sent_frames(protocol, HEADERS)) == 9

    def test_protocol_forgets_ended_calls(self) -> None:
        protocol = GrpcProtocol()
        protocol.receive(settings())
        for number in range(5_000):
            protocol.start(RecordedCall(), "/service/Method", b"")
            protocol.receive(trailers_only(2 * number + 1))
            protocol.data_to_send()
        assert protocol.open_calls == 0
        assert all(len(kept) < 20 for kept in vars(protocol).values() if isinstance(kept, Sized))


class TestResponses:
    RESPONSE = b"".join(
        [
            settings(),
            response_headers(metadata=[("key", "value")]),
            messages(b"one", b""),
            data(message(b"two")[:3]),
            data(message(b"two")[3:] + message(b"three") + message(b"four")[:7]),
            data(message(b"four")[7:]),
            frame(HEADERS, END_STREAM, 1, block([("grpc-status", "0")])),
            frame(CONTINUATION, 0, 1, block([("a", "b")])),
            frame(CONTINUATION, END_HEADERS, 1, block([("c", "d")])),
        ]
    )

    @pytest.mark.parametrize("step", [1, 7, 4096])
    def test_response_is_read_in_parts_of_any_size(self, step: int) -> None:
        protocol, (call,) = started(first=b"")
        for position in range(0, len(self.RESPONSE), step):
            protocol.receive(self.RESPONSE[position : position + step])
        self.check(call)

    @pytest.mark.parametrize("position", range(1, len(RESPONSE)))
    def test_response_is_read_when_split_at_each_byte(self, position: int) -> None:
        protocol, (call,) = started(first=b"")
        protocol.receive(self.RESPONSE[:position])
        protocol.receive(self.RESPONSE[position:])
        self.check(call)

    @staticmethod
    def check(call: RecordedCall) -> None:
        assert ("key", "value") in call.metadata
        assert call.messages == [b"one", b"", b"two", b"three", b"four"]
        assert call.statuses == [OK]

    def test_responses_of_several_calls_are_read_from_one_read(self) -> None:
        protocol, calls = started(3)
        protocol.receive(
            b"".join(response_headers(stream) for stream in (1, 3, 5))
            + messages(b"a", stream=5)
            + messages(b"b", stream=1)
            + trailers(3)
            + messages(b"c", stream=5)
        )
        assert [call.messages for call in calls] == [[b"b"], [], [b"a", b"c"]]
        assert [call.code for call in calls] == [None, StatusCode.OK, None]

    def test_message_of_sixteen_mib_is_read(self) -> None:
        protocol, (call,) = started()
        content = b"x" * 16 * MIB
        encoded = message(content)
        protocol.receive(response_headers())
        for position in range(0, len(encoded), 16_384):
            protocol.receive(data(encoded[position : position + 16_384]))
        assert call.messages == [content]

    def test_window_is_renewed_as_data_are_read(self) -> None:
        protocol, _ = started()
        protocol.receive(response_headers())
        for _ in range(4_000):
            protocol.receive(data(message(b"x" * 16_000)))
        renewed = {0: 0, 1: 0}
        for each in sent_frames(protocol, WINDOW_UPDATE):
            renewed[each.stream] += int.from_bytes(each.payload, "big")
        assert min(renewed.values()) > 4_000 * 16_005 - WINDOW_BYTES

    def test_ping_and_settings_are_acknowledged(self) -> None:
        protocol = GrpcProtocol()
        protocol.data_to_send()
        protocol.receive(settings() + frame(PING, payload=b"12345678"))
        assert sent_frames(protocol) == [(SETTINGS, ACK, 0, b""), (PING, ACK, 0, b"12345678")]

    def test_unknown_frames_and_informational_responses_are_ignored(self) -> None:
        informational = frame(HEADERS, END_HEADERS, 1, block([(":status", "103")]))
        call = responded(frame(0xEE, 0xFF, 1, b"abc"), informational, response_headers(), messages(b"a"), trailers())
        assert (call.messages, call.statuses) == ([b"a"], [OK])


class TestStatuses:
    def test_status_text_is_percent_decoded(self) -> None:
        call = responded(trailers_only(status="5", text="no task %22w%C3%A4b%22: 100%25 %zz"))
        assert call.statuses == [Status(StatusCode.NOT_FOUND, 'no task "wäb": 100% %zz')]

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            (trailers_only(status="14"), StatusCode.UNAVAILABLE),
            (trailers_only(status="99"), StatusCode.UNKNOWN),
            (trailers_only(status="-1"), StatusCode.UNKNOWN),
            (trailers_only(status=""), StatusCode.UNKNOWN),
            (trailers_only(http_status="503"), StatusCode.UNKNOWN),
            (response_headers() + trailers(status="x"), StatusCode.UNKNOWN),
            (response_headers() + data(message(b"a"), end=True), StatusCode.INTERNAL),
            (response_headers() + data(b"", end=True), StatusCode.INTERNAL),
            (response_headers() + data(message(b"abc")[:6]) + trailers(), StatusCode.INTERNAL),
            (response_headers() + data(message(b"a", compressed=True)), StatusCode.INTERNAL),
            (response_headers() + data(message(b"a", compressed=True), end=True), StatusCode.INTERNAL),
            (response_headers() + data(b"\0\xff\xff\xff\xff"), StatusCode.RESOURCE_EXHAUSTED),
            (reset(1, 8), StatusCode.CANCELLED),
            (reset(1, 7), StatusCode.UNAVAILABLE),
            (reset(1, 2), StatusCode.INTERNAL),
            (reset(1, 12345), StatusCode.INTERNAL),
        ],
    )
    def test_response_ends_call_with_status(self, content: bytes, code: StatusCode) -> None:
        protocol, (call, other) = started(2)
        protocol.receive(content)
        assert call.code is code
        protocol.receive(response_headers(3) + messages(b"a", stream=3) + trailers(3))
        assert (other.messages, other.statuses) == ([b"a"], [OK]), "other calls continue"

    def test_http_error_resets_call(self) -> None:
        protocol, (call,) = started()
        protocol.receive(frame(HEADERS, END_HEADERS, 1, block([(":status", "404")])))
        assert call.statuses == [Status(StatusCode.UNKNOWN, "HTTP status 404")]
        assert [each.stream for each in sent_frames(protocol, RST_STREAM)] == [1]

    @pytest.mark.parametrize(
        "content",
        [
            trailers_only(http_status="404"),
            response_headers() + trailers(),
            response_headers() + data(message(b"a", compressed=True), end=True),
            response_headers() + data(b"", end=True),
            reset(1, 8),
        ],
    )
    def test_only_streams_with_unsent_request_are_reset_after_end(self, content: bytes) -> None:
        protocol, (call,) = started()
        protocol.receive(content)
        assert sent_frames(protocol, RST_STREAM) == []
        waiting, (other,) = started(first=settings(initial_window_size=5))
        waiting.receive(content)
        resets = [] if content == reset(1, 8) else [1]
        assert [each.stream for each in sent_frames(waiting, RST_STREAM)] == resets
        assert other.statuses == call.statuses
        waiting.receive(window_update(1, 100))
        assert sent_frames(waiting, DATA) == []

    def test_data_after_reset_are_ignored(self) -> None:
        protocol, (call,) = started()
        protocol.receive(response_headers() + data(message(b"a", compressed=True)))
        protocol.receive(data(message(b"b")) + trailers())
        assert (call.messages, call.code) == ([], StatusCode.INTERNAL)
        assert protocol.ended is None

    @pytest.mark.parametrize(
        "content",
        [
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            frame(DATA, 0, 1, b"x" * 16_385),
            frame(DATA, 0, 0, b"abc"),
            frame(DATA, 0, 9, b"abc"),
            frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff\xff"),
            frame(HEADERS, END_HEADERS, 1, block([(":status", "200"), ("big", "x" * 15_000)] * 5)[:16_000]),
            frame(HEADERS, 0, 1, block([(":status", "200")])) + frame(PING, payload=b"12345678"),
            frame(HEADERS, 0, 1, b"") + frame(CONTINUATION, 0, 1, b"") * 100,
            frame(HEADERS, 0, 1, block([(":status", "200")]))
            + b"".join(frame(CONTINUATION, 0, 1, block([("big", "x" * 15_000)])) for _ in range(5))
            + frame(CONTINUATION, END_HEADERS, 1, b""),
            frame(CONTINUATION, END_HEADERS, 1, b""),
            frame(PUSH_PROMISE, END_HEADERS, 1, b"\0\0\0\2" + block([(":path", "/")])),
            frame(SETTINGS, payload=b"123"),
            frame(PING, payload=b"1"),
            frame(RST_STREAM, 0, 1, b""),
            frame(GOAWAY, payload=b"1"),
            window_update(0, 2**31 - 1),
            trailers(),
        ],
    )
    def test_invalid_data_end_calls_after_messages_before(self, content: bytes) -> None:
        protocol, (call, other) = started(2)
        protocol.receive(response_headers(3) + messages(b"a", stream=3) + content)
        assert call.code is other.code is StatusCode.INTERNAL
        assert call.statuses[0].details.startswith("invalid HTTP/2 data: ")
        assert other.messages == [b"a"]
        protocol.receive(b"more")
        late = RecordedCall()
        protocol.start(late, "/service/Method", b"")
        assert late.statuses == call.statuses

    @pytest.mark.parametrize("content", [b"\x1f\xff", b"\x00\xff\xff\xff\xff\xff\xff\xff\xff"])
    def test_error_of_invalid_headers_has_fixed_text(self, content: bytes) -> None:
        call = responded(frame(HEADERS, END_HEADERS, 1, content))
        assert call.statuses[0].details == "invalid HTTP/2 data: invalid headers: HPACKDecodingError"

    def test_goaway_lets_accepted_calls_complete(self) -> None:
        protocol, (accepted, rejected) = started(2)
        protocol.receive(response_headers() + goaway(1) + messages(b"a"))
        assert rejected.code is StatusCode.UNAVAILABLE
        late = RecordedCall()
        protocol.start(late, "/service/Method", b"")
        assert late.code is StatusCode.UNAVAILABLE
        assert protocol.ended is None
        protocol.receive(messages(b"b") + goaway(1) + trailers())
        assert (accepted.messages, accepted.statuses) == ([b"a", b"b"], [OK])
        assert protocol.ended is not None

    def test_connection_ends_when_last_call_is_canceled_after_goaway(self) -> None:
        protocol, (call,) = started(1)
        protocol.receive(goaway(1))
        assert (protocol.accepts_calls, protocol.ended) == (False, None)
        protocol.cancel(call)
        assert protocol.ended is not None

    def test_goaway_ends_waiting_calls(self) -> None:
        protocol, calls = started(5, first=settings(max_concurrent_streams=2))
        protocol.receive(goaway(2**31 - 1))
        assert [call.code for call in calls] == [None] * 2 + [StatusCode.UNAVAILABLE] * 3

    def test_end_ends_all_calls(self) -> None:
        protocol, calls = started(5, first=settings(max_concurrent_streams=2))
        for _ in range(2):
            protocol.end(Status(StatusCode.CANCELLED, "closed"))
        assert {call.code for call in calls} == {StatusCode.CANCELLED}


@given(st.lists(st.binary(max_size=300), max_size=20))
def test_arbitrary_bytes_end_in_status(parts: list[bytes]) -> None:
    protocol, calls = started(3, first=b"")
    for part in parts:
        protocol.receive(part)
    protocol.end(OK)
    assert all(len(call.statuses) == 1 for call in calls)


FRAMES = st.builds(
    frame,
    st.integers(0, 10),
    st.integers(0, 255),
    st.sampled_from([0, 1, 2, 3, 5, 7, 2**31 - 1]),
    st.one_of(
        st.binary(max_size=40),
        st.binary(max_size=40).map(message),
        st.integers(0, 2**64 - 1).map(lambda number: number.to_bytes(8, "big")),
        st.integers(0, 2**32 - 1).map(lambda number: number.to_bytes(4, "big")),
        st.lists(
            st.tuples(
                st.sampled_from([":status", "grpc-status", "grpc-message", "content-length", "x"]),
                st.sampled_from(["200", "100", "0", "5", "", "%", "x"]),
            ),
            max_size=4,
        ).map(block),
    ),
)


@given(st.lists(FRAMES, max_size=30), st.integers(1, 2_000))
def test_arbitrary_frames_end_in_status(sent: list[bytes], step: int) -> None:
    protocol, calls = started(3)
    content = settings() + b"".join(sent)
    for position in range(0, len(content), step):
        protocol.receive(content[position : position + step])
        protocol.data_to_send()
    protocol.end(OK)
    assert all(len(call.statuses) == 1 for call in calls)


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path / "c.sock")
    yield peer
    peer.close()


class TestConnection:
    def connect(self, peer: Peer, pause: float = 0) -> tuple[GrpcConnection, RecordedCall]:
        connection = GrpcConnection(peer.path, lambda _: pause)
        call = RecordedCall()
        connection.start(call, "/service/Method", b"")
        peer.accept()
        return connection, call

    async def test_connection_passes_on_what_arrives(self, peer: Peer) -> None:
        connection, call = self.connect(peer)
        await peer.send(settings() + response_headers() + messages(b"a"))
        await asyncio.sleep(0.01)
        assert call.messages == [b"a"]
        await peer.send(messages(b"b") + trailers())
        await asyncio.sleep(0.01)
        assert (call.messages, call.statuses) == ([b"a", b"b"], [OK])
        assert PREFACE in peer.received()
        connection.close()

    @pytest.mark.parametrize("reads", [True, False], ids=["end of file", "reset"])
    async def test_messages_before_end_of_connection_are_passed_on(self, peer: Peer, reads: bool) -> None:
        connection, call = self.connect(peer)
        if reads:
            peer.received()
        await peer.send(
            settings() + response_headers() + messages(*[b"x" * 100] * 500) + data(message(b"incomplete")[:8])
        )
        peer.hang_up()
        await asyncio.sleep(0.01)
        assert call.messages == [b"x" * 100] * 500
        assert call.code is StatusCode.UNAVAILABLE
        assert connection.closed

    async def test_messages_before_failed_write_are_passed_on(self, peer: Peer) -> None:
        """The kernel reports that the peer is gone when something is sent, while the socket is not looked at."""
        connection, call = self.connect(peer)
        connection.pause(10)
        await peer.send(settings() + response_headers() + messages(b"a", b"b"))
        peer.hang_up()
        late = RecordedCall()
        connection.start(late, "/service/Method", b"")
        assert call.messages == []
        await asyncio.sleep(11)
        assert call.messages == [b"a", b"b"]
        assert call.code is late.code is StatusCode.UNAVAILABLE
        assert connection.closed

    async def test_close_passes_on_what_has_arrived(self, peer: Peer) -> None:
        connection, call = self.connect(peer)
        await peer.send(settings() + response_headers() + messages(b"a"))
        for _ in range(2):
            connection.close()
        assert (call.messages, call.code) == ([b"a"], StatusCode.CANCELLED)
        late = RecordedCall()
        connection.start(late, "/service/Method", b"")
        assert late.code is StatusCode.CANCELLED

    async def test_connection_looks_at_socket_after_pause(self, peer: Peer) -> None:
        connection, call = self.connect(peer, pause=5)
        await peer.send(settings() + response_headers())
        await asyncio.sleep(0.01)
        await peer.send(messages(b"a"))
        await asyncio.sleep(4.9)
        assert call.messages == []
        await asyncio.sleep(0.2)
        assert call.messages == [b"a"]
        connection.close()

    async def test_requests_are_sent_when_peer_reads_again(self, peer: Peer) -> None:
        connection, _ = self.connect(peer)
        await peer.send(settings() + window_update(0, 100 * MIB))
        await asyncio.sleep(0.01)
        for _ in range(100):
            connection.start(RecordedCall(), "/service/Method", b"x" * 10_000)
        received = b""
        while len(received) < 1_000_000:
            received += peer.received()
            await asyncio.sleep(0.01)
        assert sum(each.type == HEADERS for each in frames(received)) == 101
        connection.close()

    async def test_connection_ends_when_peer_does_not_read(self, peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http2, "MAX_UNSENT_BYTES", 50_000)
        connection, call = self.connect(peer)
        await peer.send(settings() + response_headers())
        for _ in range(1_000):
            await peer.send(frame(PING, payload=b"12345678") * 100)
            await asyncio.sleep(0.01)
            if connection.closed:
                break
        assert call.statuses == [Status(StatusCode.UNAVAILABLE, "the peer does not read")]

    async def test_invalid_data_close_connection(self, peer: Peer) -> None:
        connection, call = self.connect(peer)
        await peer.send(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await asyncio.sleep(0.01)
        assert call.code is StatusCode.INTERNAL
        assert connection.closed

    async def test_missing_socket_ends_calls(self, tmp_path: Path) -> None:
        connection = GrpcConnection(f"{tmp_path}/c.sock")
        call = RecordedCall()
        connection.start(call, "/service/Method", b"")
        assert connection.closed
        assert call.statuses == [Status(StatusCode.UNAVAILABLE, "failed to connect: No such file or directory")]

    async def test_call_may_abort_connection(self, peer: Peer) -> None:
        class Aborting(RecordedCall):
            def receive_message(self, message: bytes) -> None:
                super().receive_message(message)
                connection.abort()

        connection, other = self.connect(peer)
        call = Aborting()
        connection.start(call, "/service/Method", b"")
        await peer.send(settings())
        await asyncio.sleep(0.01)
        await peer.send(response_headers(3) + data(message(b"a") + message(b"b"), 3) + trailers(3))
        await asyncio.sleep(0.01)
        assert call.messages == [b"a"]
        assert call.code is other.code is StatusCode.CANCELLED
