"""The other side of an HTTP/2 connection, byte by byte: frames, gRPC responses, and a socket that sends them.

Frames are written without the client's code, so that they can be wrong, and so that its faults cannot hide. A
``RecordedCall`` has what the client makes of them.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from hpack import Decoder, Encoder

from bridge.containerd.http2 import Call, Metadata, Status, StatusCode

DATA, HEADERS, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
HEADER_TABLE_SIZE, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 3, 4, 5
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

Headers = Sequence[tuple[str, str]]


class Frame(NamedTuple):
    type: int
    flags: int
    stream: int
    payload: bytes


def frame(type_: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    return len(payload).to_bytes(3, "big") + bytes([type_, flags]) + stream.to_bytes(4, "big") + payload


def frames(data: bytes) -> Iterator[Frame]:
    """Split what a client has sent, without its preface, into frames; leave out the last one if it is incomplete."""
    at = len(PREFACE) if data.startswith(PREFACE) else 0
    while (content := at + 9) <= len(data) and (end := content + int.from_bytes(data[at : at + 3], "big")) <= len(data):
        yield Frame(data[at + 3], data[at + 4], int.from_bytes(data[at + 5 : content], "big"), data[content:end])
        at = end


def block(headers: Headers) -> bytes:
    """Encode headers without the dynamic table, so that each block can be decoded alone."""
    return bytes(Encoder().encode([(name, value, True) for name, value in headers]))


def decode_block(payload: bytes, decoder: Decoder) -> dict[str, str]:
    return {str(name): str(value) for name, value in decoder.decode(payload)}


def settings(**values: int) -> bytes:
    identifiers = {
        "header_table_size": HEADER_TABLE_SIZE,
        "max_concurrent_streams": MAX_CONCURRENT_STREAMS,
        "initial_window_size": INITIAL_WINDOW_SIZE,
        "max_frame_size": MAX_FRAME_SIZE,
    }
    return frame(
        SETTINGS,
        payload=b"".join(
            identifiers[name].to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in values.items()
        ),
    )


def window_update(stream: int, size: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, size.to_bytes(4, "big"))


def reset(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(last_stream: int, code: int = 0) -> bytes:
    return frame(GOAWAY, payload=last_stream.to_bytes(4, "big") + code.to_bytes(4, "big"))


def message(content: bytes, *, compressed: bool = False) -> bytes:
    return bytes([compressed]) + len(content).to_bytes(4, "big") + content


def response_headers(stream: int = 1, metadata: Headers = ()) -> bytes:
    headers = [(":status", "200"), ("content-type", "application/grpc"), *metadata]
    return frame(HEADERS, END_HEADERS, stream, block(headers))


def data(content: bytes, stream: int = 1, *, end: bool = False) -> bytes:
    return frame(DATA, END_STREAM if end else 0, stream, content)


def messages(*contents: bytes, stream: int = 1) -> bytes:
    """Encode messages in frames of their own, as containerd sends events."""
    return b"".join(data(message(content), stream) for content in contents)


def trailers(stream: int = 1, status: str = "0", text: str = "") -> bytes:
    headers = [("grpc-status", status), *([("grpc-message", text)] if text else [])]
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, block(headers))


def trailers_only(stream: int = 1, status: str = "0", text: str = "", http_status: str = "200") -> bytes:
    headers = [(":status", http_status), ("content-type", "application/grpc"), ("grpc-status", status)]
    headers += [("grpc-message", text)] if text else []
    return frame(HEADERS, END_HEADERS | END_STREAM, stream, block(headers))


class RecordedCall(Call):
    """A call that keeps its response, and checks the order of its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.metadata: Metadata = ()
        self.messages: list[bytes] = []
        self.statuses: list[Status] = []

    @property
    def code(self) -> StatusCode | None:
        return self.statuses[0].code if self.statuses else None

    def receive_metadata(self, metadata: Metadata) -> None:
        assert metadata
        assert (self.metadata, self.messages, self.statuses) == ((), [], [])
        self.metadata = metadata

    def receive_message(self, message: bytes) -> None:
        assert self.metadata
        assert not self.statuses
        self.messages.append(message)

    def end(self, status: Status) -> None:
        assert not self.statuses
        self.statuses.append(status)


class Peer:
    """A server on a unix socket, with one connection, for a test to control."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._connection: socket.socket | None = None

    def accept(self) -> None:
        """Accept the connection of a client that has connected."""
        self._connection, _ = self._listener.accept()
        self._connection.setblocking(False)

    async def send(self, content: bytes) -> None:
        """Send bytes; waits until the client makes room for them."""
        assert self._connection is not None
        await asyncio.get_running_loop().sock_sendall(self._connection, content)

    def received(self) -> bytes:
        """Return what the client has sent since the last call."""
        assert self._connection is not None
        content = b""
        with suppress(BlockingIOError):
            while part := self._connection.recv(65536):
                content += part
        return content

    def hang_up(self) -> None:
        """Close the connection; the client gets a reset if it has sent anything that was not received."""
        assert self._connection is not None
        self._connection.close()
        self._connection = None

    def close(self) -> None:
        """Close everything."""
        self._listener.close()
        if self._connection is not None:
            self._connection.close()
