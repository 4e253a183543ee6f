"""A fuzz target for the client of HTTP/2: what a peer sends in response to calls."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.containerd.http2 import GrpcProtocol, Status, StatusCode
from tests.fuzz.engine import Target
from tests.fuzz.mutation import Mutator, mutate_bytes
from tests.unit.containerd.http2_peer import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PING,
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

_CALLS = 3
_STREAMS = (0, 1, 1, 1, 3, 3, 5, 7, 2, 2**31 - 1)
_PADDED, _PRIORITY = 0x8, 0x20
_TOKENS = (
    *(block([header]) for header in ((":status", "103"), (":status", "200"), ("grpc-status", "5"), ("x", "y"))),
    b"\x20",  # an update of the size of the dynamic table
    b"\x3f\xe1\x1f",  # to 4096
    b"\xbe",  # the first entry of the dynamic table
    message(b"a"),
    message(b"a", compressed=True),
    b"\x00\x00\x00\x00",
    b"\x7f\xff\xff\xff",
    b"\x00\x04\x00\x00\x00\x07",  # SETTINGS_INITIAL_WINDOW_SIZE
    b"\x00\x04\xff\xff\xff\xff",
    b"\xff\xff\xff\xff",
)


def _samples() -> Sequence[bytes]:
    padded = b"\x02" + message(b"padded") + b"\0\0"
    split = block([(":status", "200"), ("a", "b")])
    return [
        response_headers() + messages(b"one", b"") + data(message(b"two")[:3]) + data(message(b"two")[3:]) + trailers(),
        trailers_only(1, "5", "no task %22w%22") + reset(3, 8) + goaway(5) + trailers_only(5),
        frame(HEADERS, END_HEADERS, 1, block([(":status", "103")])) + response_headers() + data(b"", end=True),
        frame(HEADERS, 0, 3, split[:3])
        + frame(CONTINUATION, END_HEADERS, 3, split[3:])
        + frame(DATA, _PADDED, 3, padded),
        frame(HEADERS, END_HEADERS | _PADDED | _PRIORITY, 1, b"\x01" + bytes(5) + split + b"\0") + trailers(),
        settings(max_concurrent_streams=1, initial_window_size=0)
        + window_update(0, 9)
        + window_update(1, 9)
        + settings(initial_window_size=9),
        frame(PING, payload=b"12345678") + frame(0xEE, 0xFF, 1, b"abc") + frame(HEADERS, END_STREAM, 1, b""),
    ]


def _mutate(mutator: Mutator, content: bytes) -> bytes:
    """Change, remove, repeat or move a frame with a correct length; one in eight inputs without regard to frames."""
    below = mutator.below
    sent = list(frames(content))
    if not sent or below(8) == 0:
        return mutate_bytes(mutator, content)
    at = below(len(sent))
    match below(8):
        case 0:
            del sent[at]
        case 1:
            sent.insert(below(len(sent) + 1), sent[at])
        case 2:
            sent.insert(below(len(sent)), sent.pop(at))
        case 3:
            sent[at] = sent[at]._replace(type=below(11))
        case 4:
            sent[at] = sent[at]._replace(flags=sent[at].flags ^ 1 << below(8))
        case 5:
            sent[at] = sent[at]._replace(stream=_STREAMS[below(len(_STREAMS))])
        case _:
            sent[at] = sent[at]._replace(payload=mutate_bytes(mutator, sent[at].payload))
    return b"".join(frame(*each) for each in sent)


def _receive(content: bytes) -> None:
    """Check that responses do not depend on how they are split into reads, and that only whole requests are sent."""
    assert _responses(content, 1) == _responses(content, len(content) + 1)
    _responses(content, 7, window=5)


def _responses(content: bytes, step: int, window: int = 65_535) -> Sequence[Sequence[object]]:
    """Return what calls get from ``content``, which is read in steps, after requests of which a window was sent."""
    protocol = GrpcProtocol()
    protocol.receive(settings(initial_window_size=window))
    calls = [RecordedCall() for _ in range(_CALLS)]
    for call in calls:
        protocol.start(call, "/service/Method", b"request")
    sent = protocol.data_to_send()
    for at in range(0, len(content), step):
        protocol.receive(content[at : at + step])
        sent += protocol.data_to_send()
    _check_sent(sent, 2 * len(content) + 1000)
    assert protocol.ended is None or protocol.open_calls == 0
    protocol.end(Status(StatusCode.CANCELLED, "closed"))
    assert all(call.statuses for call in calls)
    return [(call.metadata, call.messages, call.statuses) for call in calls]


def _check_sent(sent: bytes, limit: int) -> None:
    assert len(sent) <= limit
    bodies = dict[int, bytes]()
    for each in frames(sent):
        if each.type == DATA:
            body = bodies[each.stream] = bodies.get(each.stream, b"") + each.payload
            assert message(b"request").startswith(body)
            assert each.flags == (END_STREAM if body == message(b"request") else 0)


TARGETS = {"http2": Target(_receive, _samples, _TOKENS, _mutate)}
