"""gRPC calls over HTTP/2 on a unix socket, for the event stream and for calls that wait for exits.

gRPC's library drops messages that it has received as soon as the connection ends, and each pending call costs it some
30 KiB. Here, everything that the socket holds is passed on before a call ends, and a call is one small object.

``GrpcProtocol`` does no I/O: python-hyper's h2 encodes and checks HTTP/2, and this module adds gRPC's messages and
statuses. Frames of which there are thousands bypass h2, which would take several times as long for them as everything
else here: DATA frames in the middle of a response, one for each event, and requests. ``GrpcConnection`` is the socket.

Invariants:
- Every call ends with exactly one ``Call.end``, at the latest when the connection ends, even if the peer sends garbage.
- What the peer sent before the connection ended, or before it violated the protocol, reaches its call first.
"""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from struct import Struct
from typing import NamedTuple, TypeAlias
from urllib.parse import unquote_to_bytes

from grpc import StatusCode
from h2 import events
from h2.config import H2Configuration
from h2.connection import AllowedStreamIDs, ConnectionInputs, H2Connection
from h2.errors import ErrorCodes
from h2.exceptions import FrameTooLargeError, H2Error, StreamClosedError
from h2.settings import SettingCodes, Settings
from h2.stream import StreamInputs
from hpack import Encoder

from bridge.containerd.methods import MAX_LIST_BYTES as MAX_MESSAGE_BYTES

Metadata: TypeAlias = Sequence[tuple[str, str]]

WINDOW_BYTES = MAX_MESSAGE_BYTES  # for the connection and for each call: only the socket's buffer limits the peer
MAX_UNSENT_BYTES = 16 * 1024 * 1024  # of requests and acknowledgments, if the peer does not read
_READ_BYTES = 256 * 1024  # more than the kernel holds for a unix socket
_MAX_READS = 4  # until other tasks have their turn
_CALLS_BEFORE_SETTINGS = 1  # until the peer has sent its limit

_FRAME_HEADER_BYTES = 9
_MAX_FRAME_BYTES = 16 * 1024  # HTTP/2's initial limit, which is not raised
_DATA, _HEADERS, _GOAWAY, _WINDOW_UPDATE = 0, 1, 7, 8
_END_STREAM, _END_HEADERS = 1, 4
_FRAME_HEADER = Struct(">HBBBI")  # length (three bytes), type, flags, stream
_STREAM_ID = Struct(">I")
_WINDOW_UPDATE_FRAME = Struct(">HBBBII")  # length (three bytes), type, flags, stream, increment
_MAX_STREAM_ID = 2**31 - 1
_MESSAGE_PREFIX = Struct(">BI")  # whether the message is compressed, and its length

_STATUS_CODES = {str(code.value[0]).encode(): code for code in StatusCode}
_RESET_CODES = {ErrorCodes.CANCEL: StatusCode.CANCELLED, ErrorCodes.REFUSED_STREAM: StatusCode.UNAVAILABLE}


class Status(NamedTuple):
    """The status that a call ends with."""

    code: StatusCode
    details: str


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


class _H2Connection(H2Connection):
    """h2's connection, for thousands of concurrent streams."""

    MAX_CLOSED_STREAMS = 1024  # instead of 65,536: h2 remembers how streams ended, in case that frames are late

    def __init__(self, calls: dict[int, Call]) -> None:
        super().__init__(
            H2Configuration(
                client_side=True,
                header_encoding=None,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self._calls = calls
        initial = {SettingCodes.ENABLE_PUSH: 0, SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES}
        limits = {SettingCodes.MAX_HEADER_LIST_SIZE: self.DEFAULT_MAX_HEADER_LIST_SIZE}
        self.local_settings = Settings(client=True, initial_values={**initial, **limits})
        self.initiate_connection()
        self.increment_flow_control_window(WINDOW_BYTES - self.inbound_flow_control_window)

    def send_request(self, headers: bytes, body: bytes) -> tuple[int, bytes]:
        """Open a stream with encoded headers, and send the body; return the stream and what remains of the body.

        This does what ``send_headers`` and ``send_data`` do. A body that does not fit into one frame and the peer's
        window remains.
        """
        if len(self.streams) > 2 * len(self._calls) + 100:
            self._open_streams(1)  # removes the closed ones
        stream_id = self.get_next_available_stream_id()
        self.state_machine.process_input(ConnectionInputs.SEND_HEADERS)
        stream = self._begin_new_stream(stream_id, AllowedStreamIDs.ODD)
        stream.state_machine.process_input(StreamInputs.SEND_HEADERS)
        if self.encoder.table_size_changes:  # a block has to confirm the peer's size, although the table is not used
            headers = self.encoder.encode(()) + headers
        self._data_to_send += _frame(_HEADERS, _END_HEADERS, stream_id, headers)
        size = len(body)
        if size > min(self.local_flow_control_window(stream_id), self.max_outbound_frame_size):
            return stream_id, body
        stream.state_machine.process_input(StreamInputs.SEND_END_STREAM)
        stream.outbound_flow_control_window -= size
        self.outbound_flow_control_window -= size
        self._data_to_send += _frame(_DATA, _END_STREAM, stream_id, body)
        return stream_id, b""


class GrpcProtocol:
    """The client's side of one connection, without I/O."""

    def __init__(self) -> None:
        self.ended: Status | None = None
        self._calls: dict[int, Call] = {}  # by stream, those whose headers were sent
        self._queue: deque[_Request] = deque()  # beyond the number of concurrent calls that the peer allows
        self._bodies: dict[int, bytes] = {}  # by stream, what the peer's flow control does not allow to send yet
        self._h2 = _H2Connection(self._calls)
        self._responding: dict[int, Call] = {}  # by stream, those whose response has begun
        self._unread = b""  # the beginning of a frame
        self._unacknowledged: dict[int, int] = {}  # by stream, bytes that bypassed h2; 0 is the connection
        self._window_updates = b""
        self._settings_received = False
        self._draining = False  # the peer completes the open calls, and accepts no others

    @property
    def open_calls(self) -> int:
        """The number of calls that have not ended."""
        return len(self._calls) + len(self._queue)

    def start(self, call: Call, method: str, message: bytes, metadata: Metadata = ()) -> None:
        """Start a call with one request message, as soon as the peer allows another call."""
        if self.ended is not None or self._draining:
            call.end(self.ended or _SHUTTING_DOWN)
            return
        self._queue.append(_Request(call, method, message, metadata))
        self._advance()

    def receive(self, data: bytes) -> None:
        """Process bytes from the peer; all calls end if they violate the protocol.

        h2 gets one frame at a time: if it raises an error, the frames before have been processed. It gets no GOAWAY:
        it would reject all frames after it, but the peer completes the calls that it has accepted (RFC 9113, 6.8).
        """
        data = self._unread + data
        position = 0
        try:
            while self.ended is None and (end := _frame_end(data, position)):
                frame, position = data[position:end], end
                type_, flags = frame[3], frame[4]
                if type_ == _DATA and not flags and (call := self._responding.get(_stream_id(frame))) is not None:
                    self._acknowledge(call.stream_id, len(frame) - _FRAME_HEADER_BYTES)
                    self._receive_body(call, frame[_FRAME_HEADER_BYTES:])
                elif type_ == _GOAWAY:
                    self._receive_goaway(frame)
                else:
                    for event in self._h2.receive_data(frame):
                        self._handle(event)
            self._unread = data[position:]
        except H2Error as error:
            self.end(Status(StatusCode.INTERNAL, f"invalid HTTP/2 data: {error or type(error).__name__}"))
        else:
            self._advance()

    def data_to_send(self) -> bytes:
        """Return the bytes for the peer that arose since the last call."""
        updates, self._window_updates = self._window_updates, b""
        return self._h2.data_to_send() + updates

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
        """Send what the peer's limits allow."""
        try:
            for stream_id in list(self._bodies):
                if self._h2.outbound_flow_control_window <= 0:  # of all streams together
                    break
                self._send_body(stream_id)
            while self._queue and len(self._calls) < self._max_calls:
                self._send(self._queue.popleft())
            if self._draining and not self._calls:
                self.end(_SHUTTING_DOWN)
        except H2Error as error:  # such as NoAvailableStreamIDError
            self.end(Status(StatusCode.UNAVAILABLE, f"cannot continue the HTTP/2 connection: {error}"))

    @property
    def _max_calls(self) -> int:
        return self._h2.remote_settings.max_concurrent_streams if self._settings_received else _CALLS_BEFORE_SETTINGS

    def _send(self, request: _Request) -> None:
        body = _MESSAGE_PREFIX.pack(0, len(request.message)) + request.message
        stream_id, rest = self._h2.send_request(_encode_headers(request.method, tuple(request.metadata)), body)
        request.call.stream_id = stream_id
        self._calls[stream_id] = request.call
        if rest:
            self._bodies[stream_id] = rest
            self._send_body(stream_id)

    def _send_body(self, stream_id: int) -> None:
        body = self._bodies.pop(stream_id)
        while body:
            size = min(self._h2.local_flow_control_window(stream_id), self._h2.max_outbound_frame_size)
            if size <= 0:
                self._bodies[stream_id] = body
                return
            part, body = body[:size], body[size:]
            self._h2.send_data(stream_id, part, end_stream=not body)

    # --- responses ---

    def _receive_goaway(self, frame: bytes) -> None:
        if len(frame) < _FRAME_HEADER_BYTES + _STREAM_ID.size:
            raise H2Error("incomplete GOAWAY frame")
        self._draining = True
        last_accepted = _STREAM_ID.unpack_from(frame, _FRAME_HEADER_BYTES)[0] & _MAX_STREAM_ID
        rejected = [call for stream_id, call in self._calls.items() if stream_id > last_accepted]
        rejected += [request.call for request in self._queue]
        self._queue.clear()
        for call in rejected:
            self._end_call(call, _SHUTTING_DOWN)

    def _handle(self, event: events.Event) -> None:
        if isinstance(event, events.DataReceived):
            self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            if (call := self._calls.get(event.stream_id)) is not None:
                self._receive_body(call, event.data)
                if event.stream_ended is not None:
                    self._end_call(call, Status(StatusCode.INTERNAL, "the response ended without a status"))
        elif isinstance(event, events.ResponseReceived | events.TrailersReceived):
            if (call := self._calls.get(event.stream_id)) is not None:
                self._receive_headers(call, event)
        elif isinstance(event, events.StreamReset):
            if (call := self._calls.get(event.stream_id)) is not None:
                self._end_call(call, _reset_status(event.error_code))
        elif isinstance(event, events.RemoteSettingsChanged):
            self._settings_received = True

    def _receive_headers(self, call: Call, event: events.ResponseReceived | events.TrailersReceived) -> None:
        headers = dict(event.headers)
        http_status = headers.get(b":status", b"200")
        if http_status != b"200":
            self._reject(call, Status(StatusCode.UNKNOWN, f"HTTP status {_text(http_status)}"))
        elif event.stream_ended is None:
            self._responding[call.stream_id] = call
            call.receive_metadata([(_text(name), _text(value)) for name, value in event.headers])
        elif call.partial:
            self._end_call(call, Status(StatusCode.INTERNAL, "the response ended within a message"))
        else:
            code = _STATUS_CODES.get(headers.get(b"grpc-status", b""), StatusCode.UNKNOWN)
            self._end_call(call, Status(code, _text(unquote_to_bytes(headers.get(b"grpc-message", b"")))))

    def _receive_body(self, call: Call, data: bytes) -> None:
        buffer: bytes | bytearray = data
        if call.partial:
            call.partial += data
            buffer = call.partial
        position = 0
        while len(buffer) - position >= _MESSAGE_PREFIX.size:
            compressed, size = _MESSAGE_PREFIX.unpack_from(buffer, position)
            if compressed or size > MAX_MESSAGE_BYTES:
                self._reject(call, _unacceptable_message(compressed, size))
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
        """Renew the windows of the connection and of a call, as soon as half of one is used."""
        for number in (0, stream_id):
            total = self._unacknowledged.get(number, 0) + size
            if total >= WINDOW_BYTES // 2:
                self._window_updates += _WINDOW_UPDATE_FRAME.pack(0, 4, _WINDOW_UPDATE, 0, number, total)
                total = 0
            self._unacknowledged[number] = total

    def _reject(self, call: Call, status: Status) -> None:
        """End a call whose response is useless."""
        with suppress(StreamClosedError):  # the peer has ended it
            self._h2.reset_stream(call.stream_id, ErrorCodes.CANCEL)
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
    def open_calls(self) -> int:
        """The number of calls that have not ended."""
        return self._protocol.open_calls

    def start(self, call: Call, method: str, message: bytes, metadata: Metadata = ()) -> None:
        """Start a call without a deadline; ``message`` is its only request message."""
        self._protocol.start(call, method, message, metadata)
        self._flush()

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

    def _flush(self) -> None:
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


@lru_cache(maxsize=256)
def _encode_headers(method: str, metadata: tuple[tuple[str, str], ...]) -> bytes:
    """Return the headers of a request without HPACK's dynamic table, so that they are the same for each request."""
    headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", method),
        (":authority", "localhost"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        *metadata,
    ]
    return Encoder().encode([(name, value, True) for name, value in headers])


def _frame(type_: int, flags: int, stream_id: int, payload: bytes) -> bytes:
    return _FRAME_HEADER.pack(len(payload) >> 8, len(payload) & 0xFF, type_, flags, stream_id) + payload


def _frame_end(data: bytes, position: int) -> int:
    """Return where the frame at ``position`` ends; 0 if it is incomplete."""
    if len(data) - position < _FRAME_HEADER_BYTES:
        return 0
    size = int.from_bytes(data[position : position + 3], "big")
    if size > _MAX_FRAME_BYTES:
        raise FrameTooLargeError(f"a frame of {size} bytes")
    end = position + _FRAME_HEADER_BYTES + size
    return end if end <= len(data) else 0


def _stream_id(frame: bytes) -> int:
    return int.from_bytes(frame[5:_FRAME_HEADER_BYTES], "big")


def _unacceptable_message(compressed: int, size: int) -> Status:
    if compressed:
        return Status(StatusCode.INTERNAL, "a message is compressed, which was not negotiated")
    return Status(StatusCode.RESOURCE_EXHAUSTED, f"a message of {size} bytes exceeds {MAX_MESSAGE_BYTES} bytes")


def _reset_status(error_code: ErrorCodes | int | None) -> Status:
    code = StatusCode.INTERNAL
    if isinstance(error_code, ErrorCodes):
        code = _RESET_CODES.get(error_code, code)
    return Status(code, f"the peer reset the call: {getattr(error_code, 'name', error_code)}")


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
