"""gRPC calls over HTTP/2 on a unix socket.

gRPC's library drops messages that it has received as soon as the connection ends, and each pending call costs it some
30 KiB. Here, everything that the socket holds is passed on before a call ends, and a call is one small object.

``GrpcProtocol`` does no I/O: it has the frames, header blocks and windows of HTTP/2 (RFC 9113) that a client of gRPC
needs. A stream has no state except its call and unsent messages, because a call has one response, whose end is all that
follows from its frames. Header blocks do without HPACK's dynamic table (RFC 7541), in both directions: so most of them
are equal byte by byte, and are encoded and decoded once. ``GrpcConnection`` is the socket.

Invariants:
- Every call ends with exactly one ``Call.end``, at the latest when the connection ends, even if the peer sends garbage.
- What the peer sent before the connection ended, or before it violated the protocol, reaches its call first.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from functools import lru_cache
from struct import Struct
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes

import msgspec
from hpack import Decoder, Encoder, HPACKError, NeverIndexedHeaderTuple

from bridge.containerd.methods import MAX_LIST_BYTES as MAX_MESSAGE_BYTES

Metadata: TypeAlias = Sequence[tuple[str, str]]

WINDOW_BYTES = MAX_MESSAGE_BYTES  # for the connection and for each call: only the socket's buffer limits the peer
MAX_UNSENT_BYTES = 16 * 1024 * 1024  # of requests and acknowledgments, if the peer does not read
_READ_BYTES = 256 * 1024  # more than the kernel holds for a unix socket
_MAX_READS = 4  # until other tasks have their turn
_CALLS_BEFORE_SETTINGS = 1  # until the peer has sent its limit

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RST_STREAM, _SETTINGS, _PUSH_PROMISE = 0, 1, 3, 4, 5
_PING, _GOAWAY, _WINDOW_UPDATE, _CONTINUATION = 6, 7, 8, 9
_ACK = _END_STREAM = 0x1
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20
_HEADER_TABLE_SIZE, _ENABLE_PUSH, _MAX_CONCURRENT_STREAMS = 1, 2, 3
_INITIAL_WINDOW_SIZE, _MAX_HEADER_LIST_SIZE = 4, 6
_FRAME_HEADER = Struct(">HBBBI")  # length (three bytes), type, flags, stream
_FRAME_HEADER_BYTES = 9
_MAX_FRAME_BYTES = 16 * 1024  # HTTP/2's initial limit, which neither side raises
_MAX_HEADER_BYTES = 64 * 1024  # of a header block, encoded or decoded
_MAX_HEADER_FRAMES = 64
_MAX_CACHED_BLOCK_BYTES = 1024
_PRIORITY_BYTES = 5
_PING_BYTES = 8
_NUMBER = Struct(">I")
_SETTING = Struct(">HI")
_MAX_NUMBER = 2**31 - 1  # of streams, windows and stream ids; the bit above is reserved
_DEFAULT_WINDOW_BYTES = 65_535
_MESSAGE_PREFIX = Struct(">BI")  # whether the message is compressed, and its length


class StatusCode(IntEnum):
    """gRPC's status codes."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


_STATUS_CODES = {str(int(code)).encode(): code for code in StatusCode}


class _ErrorCode(IntEnum):
    """HTTP/2's error codes (RFC 9113, 7)."""

    NO_ERROR = 0
    PROTOCOL_ERROR = 1
    INTERNAL_ERROR = 2
    FLOW_CONTROL_ERROR = 3
    SETTINGS_TIMEOUT = 4
    STREAM_CLOSED = 5
    FRAME_SIZE_ERROR = 6
    REFUSED_STREAM = 7
    CANCEL = 8
    COMPRESSION_ERROR = 9
    CONNECT_ERROR = 10
    ENHANCE_YOUR_CALM = 11
    INADEQUATE_SECURITY = 12
    HTTP_1_1_REQUIRED = 13


_RESET_CODES = {_ErrorCode.CANCEL: StatusCode.CANCELLED, _ErrorCode.REFUSED_STREAM: StatusCode.UNAVAILABLE}


class _ProtocolError(Exception):
    """The peer has violated HTTP/2."""


class Status(NamedTuple):
    """The status that a call ends with."""

    code: StatusCode
    details: str


_CANCELED = Status(StatusCode.CANCELLED, "the call was canceled")
_SHUTTING_DOWN = Status(StatusCode.UNAVAILABLE, "the peer is shutting down")


class Call(ABC):
    """One call; subclasses get its response. It costs less than a KiB, plus what a subclass keeps."""

    __slots__ = ("partial", "stream_id")

    def __init__(self) -> None:
        self.stream_id = 0
        self.partial: bytes | bytearray = b""  # the beginning of a message

    def receive_metadata(self, metadata: Metadata) -> None:  # noqa: B027 (most calls do not need it)
        """Take the initial metadata, which come before all messages."""

    @abstractmethod
    def receive_message(self, message: bytes) -> None:
        """Take one message."""

    @abstractmethod
    def end(self, status: Status) -> None:
        """Take the status, after all messages; called exactly once, possibly before the call was sent."""


class _Request(NamedTuple):
    call: Call
    method: str
    message: bytes
    metadata: Metadata
    ends: bool


class _Body(msgspec.Struct):
    """What the peer's flow control does not allow to send yet, and what it allows for the stream.

    ``ends``: the stream ends when all is sent; otherwise, more messages may follow.
    """

    unsent: bytes
    window: int
    ends: bool


class _HeaderBlock(msgspec.Struct):
    """The frames of a header block that is incomplete."""

    stream_id: int
    ends_stream: bool
    content: bytes
    frames: int = 1


class GrpcProtocol:
    """The client's side of one connection, without I/O."""

    def __init__(self) -> None:
        self.ended: Status | None = None
        self._calls: dict[int, Call] = {}  # by stream, those whose headers were sent
        self._responding: dict[int, Call] = {}  # by stream, those whose response has begun and not ended
        self._queue: deque[_Request] = deque()  # beyond the number of concurrent calls that the peer allows
        self._bodies: dict[int, _Body] = {}  # by stream, those that are not sent yet
        self._next_stream_id = 1
        self._draining = False  # the peer completes the open calls, and accepts no others
        # The peer's settings, and what it allows to send on the connection.
        self._settings_received = False
        self._max_calls = _CALLS_BEFORE_SETTINGS
        self._initial_window = self._window = _DEFAULT_WINDOW_BYTES
        self._unread = b""  # the beginning of a frame
        self._block: _HeaderBlock | None = None
        self._unacknowledged: dict[int, int] = {}  # bytes received by stream; 0 is the connection
        self._unsent: list[bytes] = [_PREFACE]
        self._receivers: dict[int, Callable[[int, int, bytes], None]] = {
            _HEADERS: self._receive_headers_frame,
            _RST_STREAM: self._receive_reset,
            _SETTINGS: self._receive_settings,
            _PUSH_PROMISE: self._receive_unexpected,
            _PING: self._receive_ping,
            _GOAWAY: self._receive_goaway,
            _WINDOW_UPDATE: self._receive_window_update,
            _CONTINUATION: self._receive_continuation,
        }
        settings = {
            _HEADER_TABLE_SIZE: 0,
            _ENABLE_PUSH: 0,
            _INITIAL_WINDOW_SIZE: WINDOW_BYTES,
            _MAX_HEADER_LIST_SIZE: _MAX_HEADER_BYTES,
        }
        self._send_frame(_SETTINGS, payload=b"".join(_SETTING.pack(*each) for each in settings.items()))
        self._send_frame(_WINDOW_UPDATE, payload=_NUMBER.pack(WINDOW_BYTES - _DEFAULT_WINDOW_BYTES))

    @property
    def accepts_calls(self) -> bool:
        """Whether calls can be started."""
        return self.ended is None and not self._draining

    @property
    def open_calls(self) -> int:
        """The number of calls that have not ended."""
        return len(self._calls) + len(self._queue)

    def start(self, call: Call, method: str, message: bytes, metadata: Metadata = (), *, ends: bool = True) -> None:
        """Start a call as soon as the peer allows another one. ``ends``: it has only this request message."""
        if not self.accepts_calls:
            call.end(self.ended or _SHUTTING_DOWN)
            return
        self._queue.append(_Request(call, method, message, metadata, ends))
        self._advance()

    def send(self, call: Call, message: bytes) -> None:
        """Send another request message; the response of the call has begun."""
        self._bodies[call.stream_id].unsent += _with_prefix(message)
        self._send_body(call.stream_id)

    def cancel(self, call: Call) -> None:
        """End a call, unless it has ended; the peer stops to work on it."""
        if self._calls.get(call.stream_id) is call:
            self._send_frame(_RST_STREAM, 0, call.stream_id, _NUMBER.pack(_ErrorCode.CANCEL))
            self._end_call(call, _CANCELED)
            self._advance()
        elif waiting := [request for request in self._queue if request.call is call]:
            self._queue.remove(waiting[0])
            call.end(_CANCELED)

    def receive(self, data: bytes) -> None:
        """Process bytes from the peer; all calls end if they violate the protocol."""
        data = self._unread + data
        try:
            self._unread = data[self._receive_frames(data) :]
        except _ProtocolError as error:
            self._send_frame(_GOAWAY, payload=_NUMBER.pack(0) + _NUMBER.pack(_ErrorCode.PROTOCOL_ERROR))
            self.end(Status(StatusCode.INTERNAL, f"invalid HTTP/2 data: {error}"))
        else:
            self._send_bodies()
            self._advance()

    def _receive_frames(self, data: bytes) -> int:
        """Process the complete frames of the data; return where the incomplete one begins."""
        position = 0
        while len(data) - position >= _FRAME_HEADER_BYTES and self.ended is None:
            size_high, size_low, type_, flags, stream_id = _FRAME_HEADER.unpack_from(data, position)
            size = size_high << 8 | size_low
            if size > _MAX_FRAME_BYTES:
                raise _ProtocolError(f"a frame of {size} bytes")
            start = position + _FRAME_HEADER_BYTES
            if start + size > len(data):
                break
            position = start + size
            self._receive_frame(type_, flags, stream_id & _MAX_NUMBER, data[start:position])
        return position

    def data_to_send(self) -> bytes:
        """Return the bytes for the peer that arose since the last call."""
        unsent, self._unsent = self._unsent, []
        return b"".join(unsent)

    def end(self, status: Status) -> None:
        """End all calls, and the connection; idempotent."""
        self.ended = self.ended or status
        calls = [*self._calls.values(), *(request.call for request in self._queue)]
        self._calls.clear()
        self._responding.clear()
        self._queue.clear()
        self._bodies.clear()
        for call in calls:
            call.end(status)

    # --- requests ---

    def _advance(self) -> None:
        """Send the calls that the peer's limits allow."""
        while self._queue and len(self._calls) < self._max_calls:
            if self._next_stream_id > _MAX_NUMBER:
                self.end(Status(StatusCode.UNAVAILABLE, "cannot continue the HTTP/2 connection: no stream is left"))
                return
            self._send(self._queue.popleft())
        if self._draining and not self._calls:
            self.end(_SHUTTING_DOWN)

    def _send(self, request: _Request) -> None:
        stream_id = request.call.stream_id = self._next_stream_id
        self._next_stream_id += 2
        self._calls[stream_id] = request.call
        self._send_frame(_HEADERS, _END_HEADERS, stream_id, _encode_headers(request.method, tuple(request.metadata)))
        self._bodies[stream_id] = _Body(_with_prefix(request.message), self._initial_window, request.ends)
        self._send_body(stream_id)

    def _send_bodies(self) -> None:
        """Continue after the peer has sent something, which may have extended windows."""
        if self._window > 0:
            for stream_id in list(self._bodies):
                self._send_body(stream_id)

    def _send_body(self, stream_id: int) -> None:
        body = self._bodies[stream_id]
        while body.unsent:
            size = min(len(body.unsent), self._window, body.window, _MAX_FRAME_BYTES)
            if size <= 0:
                return
            part, body.unsent = body.unsent[:size], body.unsent[size:]
            self._send_frame(_DATA, _END_STREAM if body.ends and not body.unsent else 0, stream_id, part)
            self._window -= size
            body.window -= size
        if body.ends:
            del self._bodies[stream_id]

    def _send_frame(self, type_: int, flags: int = 0, stream_id: int = 0, payload: bytes = b"") -> None:
        size = len(payload)
        self._unsent.append(_FRAME_HEADER.pack(size >> 8, size & 0xFF, type_, flags, stream_id) + payload)

    # --- frames ---

    def _receive_frame(self, type_: int, flags: int, stream_id: int, payload: bytes) -> None:
        if self._block is not None and type_ != _CONTINUATION:
            raise _ProtocolError("a frame within a header block")
        if type_ == _DATA:  # first, because each event is one
            self._receive_data(flags, stream_id, payload)
        elif (receive := self._receivers.get(type_)) is not None:  # frames of other types are to be ignored
            receive(flags, stream_id, payload)

    def _receive_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._acknowledge(0, len(payload))
        if (call := self._responding.get(stream_id)) is None:
            self._require_opened(stream_id)
            if stream_id in self._calls:
                raise _ProtocolError("data before the headers of a response")
            return  # late, after the call was reset
        if flags & _END_STREAM:
            del self._responding[stream_id]
        else:
            self._acknowledge(stream_id, len(payload))
        self._receive_body(call, _without_padding(payload) if flags & _PADDED else payload)
        if flags & _END_STREAM:
            self._finish(call, Status(StatusCode.INTERNAL, "the response ended without a status"))

    def _receive_headers_frame(self, flags: int, stream_id: int, payload: bytes) -> None:
        self._require_opened(stream_id)
        if flags & _PADDED:
            payload = _without_padding(payload)
        if flags & _PRIORITY:
            if len(payload) < _PRIORITY_BYTES:
                raise _ProtocolError("incomplete HEADERS frame")
            payload = payload[_PRIORITY_BYTES:]
        self._block = _HeaderBlock(stream_id, bool(flags & _END_STREAM), payload)
        if flags & _END_HEADERS:
            self._receive_block(self._block)

    def _receive_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None or block.stream_id != stream_id:
            raise _ProtocolError("a CONTINUATION frame without a header block")
        block.content += payload
        block.frames += 1
        if len(block.content) > _MAX_HEADER_BYTES or block.frames > _MAX_HEADER_FRAMES:
            raise _ProtocolError("a header block is too large")
        if flags & _END_HEADERS:
            self._receive_block(block)

    def _receive_reset(self, _flags: int, stream_id: int, payload: bytes) -> None:
        self._require_opened(stream_id)
        code = _number(payload, "RST_STREAM")
        if (call := self._calls.get(stream_id)) is not None:
            self._end_call(call, _reset_status(code))

    def _receive_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) % _SETTING.size or (flags & _ACK and payload):
            raise _ProtocolError("invalid SETTINGS frame")
        if flags & _ACK:
            return
        settings = dict(_SETTING.iter_unpack(payload))
        before, self._settings_received = self._settings_received, True
        self._max_calls = settings.get(_MAX_CONCURRENT_STREAMS, self._max_calls if before else _MAX_NUMBER)
        initial_window = settings.get(_INITIAL_WINDOW_SIZE, self._initial_window)
        if initial_window > _MAX_NUMBER:
            raise _ProtocolError("invalid SETTINGS frame")
        for body in self._bodies.values():
            body.window += initial_window - self._initial_window
        self._initial_window = initial_window
        self._send_frame(_SETTINGS, _ACK)

    def _receive_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id or len(payload) != _PING_BYTES:
            raise _ProtocolError("invalid PING frame")
        if not flags & _ACK:
            self._send_frame(_PING, _ACK, payload=payload)

    def _receive_goaway(self, _flags: int, stream_id: int, payload: bytes) -> None:
        """Wait for the calls that the peer has accepted, which it completes (RFC 9113, 6.8); end the others."""
        if stream_id or len(payload) < 2 * _NUMBER.size:
            raise _ProtocolError("invalid GOAWAY frame")
        self._draining = True
        last_accepted = _NUMBER.unpack_from(payload)[0] & _MAX_NUMBER
        rejected = [call for number, call in self._calls.items() if number > last_accepted]
        rejected += [request.call for request in self._queue]
        self._queue.clear()
        for call in rejected:
            self._end_call(call, _SHUTTING_DOWN)

    def _receive_window_update(self, _flags: int, stream_id: int, payload: bytes) -> None:
        increment = _number(payload, "WINDOW_UPDATE") & _MAX_NUMBER
        if stream_id == 0:
            self._window += increment
        else:
            self._require_opened(stream_id)
        if (body := self._bodies.get(stream_id)) is not None:
            body.window += increment
        if not increment or max(self._window, body.window if body is not None else 0) > _MAX_NUMBER:
            raise _ProtocolError("invalid WINDOW_UPDATE frame")

    def _receive_unexpected(self, _flags: int, _stream_id: int, _payload: bytes) -> None:
        raise _ProtocolError("a PUSH_PROMISE frame, which was disabled")

    def _require_opened(self, stream_id: int) -> None:
        if not stream_id % 2 or stream_id >= self._next_stream_id:
            raise _ProtocolError(f"a frame of stream {stream_id}, which was not opened")

    # --- responses ---

    def _receive_block(self, block: _HeaderBlock) -> None:
        self._block = None
        if (call := self._calls.get(block.stream_id)) is None:
            return  # late, after the call was reset
        headers = _decode_headers(block.content)
        begun = block.stream_id in self._responding
        http_status = b"200" if begun else headers.get(b":status")
        if http_status is None or (begun and not block.ends_stream):
            raise _ProtocolError("unexpected headers")
        if http_status.startswith(b"1") and not block.ends_stream:
            return  # informational
        if block.ends_stream:
            self._responding.pop(block.stream_id, None)
        else:
            self._responding[block.stream_id] = call
        if http_status != b"200":
            self._finish(call, Status(StatusCode.UNKNOWN, f"HTTP status {_text(http_status)}"))
        elif not block.ends_stream:
            call.receive_metadata([(_text(name), _text(value)) for name, value in headers.items()])
        elif call.partial:
            self._finish(call, Status(StatusCode.INTERNAL, "the response ended within a message"))
        else:
            code = _STATUS_CODES.get(headers.get(b"grpc-status", b""), StatusCode.UNKNOWN)
            self._finish(call, Status(code, _text(unquote_to_bytes(headers.get(b"grpc-message", b"")))))

    def _receive_body(self, call: Call, data: bytes) -> None:
        buffer: bytes | bytearray = data
        if call.partial:
            call.partial += data
            buffer = call.partial
        position = 0
        while len(buffer) - position >= _MESSAGE_PREFIX.size:
            compressed, size = _MESSAGE_PREFIX.unpack_from(buffer, position)
            if compressed or size > MAX_MESSAGE_BYTES:
                self._finish(call, _unacceptable_message(compressed, size))
                return
            end = position + _MESSAGE_PREFIX.size + size
            if end > len(buffer):
                break
            message = bytes(buffer[position + _MESSAGE_PREFIX.size : end])
            position = end
            call.receive_message(message)
            if self.ended is not None:
                return
        if position == len(buffer):
            call.partial = b""
        elif position or buffer is not call.partial:
            call.partial = bytearray(buffer[position:])

    def _acknowledge(self, stream_id: int, size: int) -> None:
        """Renew the window of a call, or of the connection (0), as soon as half of it is used."""
        total = self._unacknowledged.get(stream_id, 0) + size
        if total >= WINDOW_BYTES // 2:
            self._send_frame(_WINDOW_UPDATE, 0, stream_id, _NUMBER.pack(total))
            total = 0
        self._unacknowledged[stream_id] = total

    def _finish(self, call: Call, status: Status) -> None:
        """End a call, and reset its stream unless both sides have ended it."""
        if call.stream_id in self._responding or call.stream_id in self._bodies:
            self._send_frame(_RST_STREAM, 0, call.stream_id, _NUMBER.pack(_ErrorCode.CANCEL))
        self._end_call(call, status)

    def _end_call(self, call: Call, status: Status) -> None:
        for each in (self._responding, self._bodies, self._unacknowledged):
            each.pop(call.stream_id, None)
        if self._calls.pop(call.stream_id, None) is not None or call.stream_id == 0:
            call.end(status)


class GrpcConnection:
    """A connection to a unix socket, on the current event loop. It never reconnects.

    Args:
        path: The path of the socket.
        after_read: Called after each look at the socket, with the number of bytes that were read; returns the seconds
            until the next look, 0 for as soon as anything arrives. Reading less often saves wake-ups.
    """

    def __init__(self, path: str, after_read: Callable[[int], float] = lambda _: 0.0) -> None:
        self._loop = asyncio.get_running_loop()
        self._after_read = after_read
        self._protocol = GrpcProtocol()
        self._unsent = bytearray()
        self._flush_scheduled = False
        self._writing = False  # whether the loop waits until the socket can be written to
        self._reading = False  # whether the loop waits until the socket can be read from
        self._timer: asyncio.TimerHandle | None = None  # for the next look otherwise
        self._broken: OSError | None = None  # the peer is gone, but the kernel may still have data from it
        self._socket: socket.socket | None = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.setblocking(False)
            self._socket.connect(path)  # a unix socket connects at once, or not at all
        except OSError as error:
            self._end(Status(StatusCode.UNAVAILABLE, f"failed to connect: {error.strerror or error}"))
        else:
            self._schedule_look(0)
            self._flush()

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, with all of its calls."""
        return self._socket is None

    @property
    def accepts_calls(self) -> bool:
        """Whether calls can be started; if the peer is shutting down, it only completes the open ones."""
        return self._protocol.accepts_calls

    @property
    def open_calls(self) -> int:
        """The number of calls that have not ended."""
        return self._protocol.open_calls

    def start(self, call: Call, method: str, message: bytes, metadata: Metadata = (), *, ends: bool = True) -> None:
        """Start a call without a deadline. ``ends``: it has only this request message."""
        self._protocol.start(call, method, message, metadata, ends=ends)
        self._schedule_flush()

    def send(self, call: Call, message: bytes) -> None:
        """Send another request message; the response of the call has begun."""
        self._protocol.send(call, message)
        self._schedule_flush()

    def cancel(self, call: Call) -> None:
        """End a call, unless it has ended."""
        self._protocol.cancel(call)
        self._schedule_flush()

    def pause(self, seconds: float) -> None:
        """Look at the socket after this time, instead of as soon as anything arrives."""
        if self._socket is not None:
            self._schedule_look(seconds)

    def close(self) -> None:
        """Pass on what has arrived, then end the connection and its calls; idempotent."""
        if self._socket is not None:
            self._read()
        self.abort()

    def abort(self) -> None:
        """End the connection and its calls without another look at the socket; idempotent. Calls may use it."""
        self._end(Status(StatusCode.CANCELLED, "the connection was closed"))

    def _end(self, status: Status) -> None:
        connection, self._socket = self._socket, None
        if connection is not None:
            self._loop.remove_reader(connection.fileno())
            self._loop.remove_writer(connection.fileno())
            if self._timer is not None:
                self._timer.cancel()
            connection.close()
        self._protocol.end(status)

    # --- reading ---

    def _schedule_look(self, seconds: float) -> None:
        assert self._socket is not None  # noqa: S101 (checked by the callers)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if seconds > 0:
            self._timer = self._loop.call_later(seconds, self._look)
        if self._reading != (seconds <= 0):
            self._reading = not self._reading
            if self._reading:
                self._loop.add_reader(self._socket.fileno(), self._look)
            else:
                self._loop.remove_reader(self._socket.fileno())

    def _look(self) -> None:
        pause = self._after_read(self._read())
        if self._socket is not None:
            self._schedule_look(pause)

    def _read(self) -> int:
        """Process what the socket holds; return the number of bytes.

        A peer that is gone is no reason to stop: the kernel returns errors before the data that arrived, or after it.
        """
        reads = size = 0
        while self._socket is not None and (reads < _MAX_READS or self._broken is not None):
            try:
                data = self._socket.recv(_READ_BYTES)
            except BlockingIOError:
                if self._broken is not None:
                    self._end_broken()
                break
            except OSError as error:
                if self._broken is not None:
                    self._end_broken()
                self._broken = error
                continue
            if data:
                reads += 1
                size += len(data)
                self._protocol.receive(data)
                self._flush()
            else:
                self._end_broken()
        return size

    def _end_broken(self) -> None:
        reason = "connection closed" if self._broken is None else self._broken.strerror or str(self._broken)
        self._end(Status(StatusCode.UNAVAILABLE, reason))

    # --- writing ---

    def _schedule_flush(self) -> None:
        """Write soon: calls and messages that are started together share a write."""
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._unsent += self._protocol.data_to_send()
        if not self._writing and self._broken is None:
            self._write()
        if len(self._unsent) > MAX_UNSENT_BYTES:
            self._end(Status(StatusCode.UNAVAILABLE, "the peer does not read"))
        elif self._protocol.ended is not None:
            self._end(self._protocol.ended)

    def _write(self) -> None:
        if self._socket is None:
            return
        try:
            sent = self._socket.send(self._unsent) if self._unsent else 0
        except BlockingIOError:
            sent = 0
        except OSError as error:
            self._broken = error  # the next look reads what is left, and ends the connection
            self._unsent.clear()
            sent = 0
        del self._unsent[:sent]
        if self._writing != bool(self._unsent):
            self._writing = not self._writing
            if self._writing:
                self._loop.add_writer(self._socket.fileno(), self._write)
            else:
                self._loop.remove_writer(self._socket.fileno())


@lru_cache(maxsize=256)  # a method is called with few different metadata
def _encode_headers(method: str, metadata: tuple[tuple[str, str], ...]) -> bytes:
    """Return the header block of a request, which is smaller than a frame.

    It begins with an update of the table's size to 0, because a peer may require less than the initial size.
    """
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *metadata,
    ]
    encoder = Encoder()
    encoder.header_table_size = 0
    return bytes(encoder.encode([NeverIndexedHeaderTuple(name, value) for name, value in headers]))


def _with_prefix(message: bytes) -> bytes:
    return _MESSAGE_PREFIX.pack(0, len(message)) + message


def _decode_headers(block: bytes) -> Mapping[bytes, bytes]:
    """Return the headers of a block, if it does not use the dynamic table."""
    return _decode_cached(block) if len(block) <= _MAX_CACHED_BLOCK_BYTES else _decode(block)


def _decode(block: bytes) -> Mapping[bytes, bytes]:
    decoder = Decoder(max_header_list_size=_MAX_HEADER_BYTES)
    decoder.header_table_size = decoder.max_allowed_table_size = 0
    try:
        return dict(decoder.decode(block, raw=True))
    except HPACKError as error:
        raise _ProtocolError(f"invalid headers: {type(error).__name__}") from error  # the text may have an address


_decode_cached = lru_cache(maxsize=256)(_decode)


def _without_padding(payload: bytes) -> bytes:
    if not payload or payload[0] >= len(payload):
        raise _ProtocolError("invalid padding")
    return payload[1 : len(payload) - payload[0]]


def _number(payload: bytes, frame: str) -> int:
    if len(payload) != _NUMBER.size:
        raise _ProtocolError(f"invalid {frame} frame")
    number: int = _NUMBER.unpack(payload)[0]
    return number


def _unacceptable_message(compressed: int, size: int) -> Status:
    if compressed:
        return Status(StatusCode.INTERNAL, "a message is compressed, which was not negotiated")
    return Status(StatusCode.RESOURCE_EXHAUSTED, f"a message of {size} bytes exceeds {MAX_MESSAGE_BYTES} bytes")


def _reset_status(code: int) -> Status:
    try:
        code = _ErrorCode(code)
    except ValueError:
        return Status(StatusCode.INTERNAL, f"the peer reset the call: {code}")
    return Status(_RESET_CODES.get(code, StatusCode.INTERNAL), f"the peer reset the call: {code.name}")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
