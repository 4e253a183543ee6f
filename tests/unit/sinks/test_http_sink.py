"""Test the HTTP sink against receivers that respond with anything."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import (
    ExportLogsPartialSuccess,
    ExportLogsServiceResponse,
)

from bridge.clock import SystemClock
from bridge.core.containerd_model import Instant
from bridge.core.errors import BridgeError, FatalError, RejectedRecordError, TransientError
from bridge.core.records import Record
from config.sinks.http import HttpSinkSettings
from sinks.http import sink as http_sink
from sinks.http.sink import HttpSink
from sinks.otlp import decode_bodies
from tests.certificates import Authority
from tests.fuzz.mutation import encode_fields
from tests.golden import Golden
from tests.naming import raises_naming
from tests.sample_records import EPOCH, control_record, record, records
from tests.testbed.server import HOST, free_port

pytestmark = pytest.mark.real_time

SECRET = "s3cret-value"  # noqa: S105 (not a real secret)
Respond = Callable[[web.Request, bytes], web.StreamResponse]


class Receiver:
    """A server that records what it receives; `respond` may be replaced at any time."""

    def __init__(self, port: int, scheme: str) -> None:
        self.port = port
        self.url = f"{scheme}://localhost:{port}/events"
        self.requests: list[tuple[web.Request, bytes]] = []
        self.respond: Respond = lambda *_: web.Response(status=204)
        self.accepted: list[bytes] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        body = await request.read()
        self.requests.append((request, body))
        response = self.respond(request, body)
        if response.status < 300 and request.method == "POST":
            self.accepted += body.splitlines()
        return response

    def respond_with(self, status: int, text: str = "", **headers: str) -> None:
        self.respond = lambda *_: web.Response(status=status, text=text, headers=headers)

    @property
    def bodies(self) -> list[bytes]:
        return [body for request, body in self.requests if request.method == "POST"]


@contextlib.asynccontextmanager
async def serving(context: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    receiver = Receiver(free_port(), "https" if context else "http")
    app = web.Application(client_max_size=1 << 30)
    app.router.add_route("*", "/{path:.*}", receiver.handle)
    runner = web.AppRunner(app, shutdown_timeout=1)
    await runner.setup()
    try:
        await web.TCPSite(runner, HOST, receiver.port, ssl_context=context).start()
        yield receiver
    finally:
        await runner.cleanup()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with serving() as receiver:
        yield receiver


@contextlib.asynccontextmanager
async def sink_for(url: str, clock: SystemClock | None = None, **settings: Any) -> AsyncIterator[HttpSink]:
    sink = HttpSink(HttpSinkSettings.model_validate({"url": url, **settings}), clock or SystemClock())
    try:
        yield sink
    finally:
        await sink.close()


def documents(published: Sequence[Record]) -> list[bytes]:
    return [each.data for each in published]


async def deliver(sink: HttpSink, batch: Sequence[Record]) -> list[int]:
    """Publish as the pump does; return the sequences of rejected records, which are left out from then on."""
    rejected: list[int] = []
    while True:
        try:
            await sink.publish([each for each in batch if each.sequence not in rejected])
        except RejectedRecordError as error:
            rejected += [sequence for _, sequence in error.positions]
        else:
            return rejected


# --- requests ---


@pytest.mark.parametrize(("mode", "count"), [("none", 2), ("batched", 2), ("binary", 5), ("structured", 5)])
async def test_batch_is_sent_in_requests_of_its_mode(mode: str, count: int, receiver: Receiver) -> None:
    async with sink_for(receiver.url, cloudevents=mode, max_batch_records=3) as sink:
        await sink.publish(records(5))
        await sink.publish([])
    assert len(receiver.bodies) == count
    if mode in ("none", "binary"):
        assert receiver.accepted == documents(records(5))
    assert len({request.headers["Idempotency-Key"] for request, _ in receiver.requests}) == count


async def test_request_has_configured_headers_and_path(receiver: Receiver) -> None:
    url = f"{receiver.url}/a%2Fb?key=x%20y"
    async with sink_for(url, headers={"X-Tenant": "shop"}, user_agent="whalebridge-node-1") as sink:
        await sink.start()
        await sink.publish(records(1))
    assert [request.method for request, _ in receiver.requests] == ["OPTIONS", "POST"]
    for request, _ in receiver.requests:
        assert request.raw_path == "/events/a%2Fb?key=x%20y"
        assert request.headers["X-Tenant"] == "shop"
        assert request.headers["User-Agent"] == "whalebridge-node-1"
        assert "Authorization" not in request.headers


async def test_records_without_document_cause_no_request(receiver: Receiver) -> None:
    async with sink_for(receiver.url, encoding="whalewatcher") as sink:
        await sink.publish([control_record(1, "snapshot_started")])
    assert receiver.requests == []


async def test_cookies_and_proxies_are_not_used(receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", f"http://{HOST}:1")
    monkeypatch.setenv("http_proxy", f"http://{HOST}:1")
    receiver.respond_with(204, **{"Set-Cookie": "session=1; Path=/"})
    async with sink_for(receiver.url) as sink:
        await sink.publish(records(2))
    assert len(receiver.requests) == 2
    assert all("Cookie" not in request.headers for request, _ in receiver.requests)


async def test_requests_share_a_connection(receiver: Receiver) -> None:
    async with sink_for(receiver.url) as sink:
        for _ in range(2):
            await sink.publish(records(2))
    assert len({request.transport for request, _ in receiver.requests}) == 1


# --- rejected records ---


def reject(*sequences: int, status: int = 400) -> Respond:
    rejected = [record(sequence, id_=f"web-{(sequence - 1) % 100}").data for sequence in sequences]

    def respond(_: web.Request, body: bytes) -> web.Response:
        return web.Response(status=status if set(body.splitlines()) & set(rejected) else 204, text="no")

    return respond


@pytest.mark.parametrize("status", [400, 422])
@pytest.mark.parametrize("sequences", [[1], [17], [64], [1, 2], [5, 40, 41]])
async def test_rejected_records_of_batch_are_found(status: int, sequences: list[int], receiver: Receiver) -> None:
    receiver.respond = reject(*sequences, status=status)
    batch = records(64)
    async with sink_for(receiver.url, cloudevents="none") as sink:
        assert await deliver(sink, batch) == sequences
    assert receiver.accepted == documents([each for each in batch if each.sequence not in sequences])
    assert len(receiver.requests) <= len(sequences) * 2 * 7 + 1


async def test_records_after_a_rejected_one_wait_for_its_loss_record(receiver: Receiver) -> None:
    receiver.respond = reject(2)
    async with sink_for(receiver.url, cloudevents="none") as sink:
        with raises_naming(RejectedRecordError, receiver.url, "400") as caught:
            await sink.publish(records(4))
        assert caught.value.positions == {(EPOCH, 2)}
    assert receiver.accepted == documents(records(1))


async def test_receiver_that_rejects_everything_is_an_error(receiver: Receiver, golden: Golden) -> None:
    """The records stay in the outbox: the receiver is probably not for them."""
    receiver.respond_with(400, "expected an array")
    batch = records(40)
    async with sink_for(receiver.url, cloudevents="none") as sink:
        for sequence in range(1, http_sink.MAX_REJECTIONS + 1):
            with pytest.raises(RejectedRecordError) as caught:
                await sink.publish(batch[sequence - 1 :])
            assert caught.value.positions == {(EPOCH, sequence)}
        for _ in range(2):
            with golden.error(
                "http_sink_errors", "all rejected", FatalError, receiver.url, "cloudevents", URL=receiver.url
            ):
                await sink.publish(batch[http_sink.MAX_REJECTIONS :])
        receiver.respond_with(204)
        await sink.publish(batch[http_sink.MAX_REJECTIONS :])
        receiver.respond_with(400)
        with pytest.raises(RejectedRecordError):
            await sink.publish(records(1, 50))


async def test_rejected_probe_makes_records_innocent(receiver: Receiver) -> None:
    """As a server for TLS responds to requests without it."""
    receiver.respond_with(400)
    async with sink_for(receiver.url) as sink:
        await sink.start()
        with raises_naming(FatalError, receiver.url, "https://"):
            await sink.publish(records(1))
        receiver.respond_with(204)
        await sink.publish(records(1))
        receiver.respond_with(400)
        with pytest.raises(RejectedRecordError):
            await sink.publish(records(1, 2))


async def test_too_large_batch_is_split_and_limit_kept(receiver: Receiver) -> None:
    receiver.respond = lambda _, body: web.Response(status=413 if len(body) > 5500 else 204)
    async with sink_for(receiver.url, cloudevents="none") as sink:
        await sink.publish(records(16, size=1000))
        assert receiver.accepted == documents(records(16, size=1000))
        receiver.requests.clear()
        await sink.publish(records(16, 17, size=1000))
    assert receiver.accepted == documents(records(16, size=1000) + records(16, 17, size=1000))
    assert [len(body.splitlines()) for body in receiver.bodies] == [4, 4, 4, 4]


async def test_record_above_limit_of_receiver_is_found(receiver: Receiver) -> None:
    receiver.respond = lambda _, body: web.Response(status=413 if len(body) > 50_000 else 204)
    batch = [*records(20), record(21, size=60_000), *records(20, 22)]
    async with sink_for(receiver.url, cloudevents="none") as sink:
        assert await deliver(sink, batch) == [21]
        receiver.requests.clear()
        await sink.publish(records(20, 42))
    assert receiver.accepted == documents([each for each in batch if each.sequence != 21] + records(20, 42))
    assert len(receiver.requests) == 1


async def test_record_above_limit_is_rejected_without_request(receiver: Receiver) -> None:
    batch = [record(1), record(2, size=20_000), record(3)]
    async with sink_for(receiver.url, max_record_bytes=16_384) as sink:
        with raises_naming(RejectedRecordError, "max_record_bytes") as caught:
            await sink.publish(batch)
    assert caught.value.positions == {(EPOCH, 2)}
    assert receiver.requests == []


async def test_accepted_records_are_not_sent_again_after_failure(receiver: Receiver) -> None:
    failing = True

    def respond(_: web.Request, body: bytes) -> web.Response:
        return web.Response(status=503 if failing and body == records(5)[3].data else 204)

    receiver.respond = respond
    async with sink_for(receiver.url) as sink:
        for _ in range(2):
            with pytest.raises(TransientError):
                await sink.publish(records(5))
        failing = False
        await sink.publish(records(5))
        assert receiver.accepted == documents(records(5))
        await sink.publish(records(5))  # as a new process would
    assert receiver.accepted == documents(records(5)) * 2


# --- responses ---


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, TransientError) for status in (401, 403, 408, 409, 425, 429, 500, 501, 502, 503, 504, 599)),
        *((status, FatalError) for status in (301, 302, 303, 304, 307, 308, 402, 404, 405, 410, 415, 451, 499)),
    ],
)
async def test_status_decides_class_of_error(
    status: int, kind: type[BridgeError], receiver: Receiver, golden: Golden
) -> None:
    receiver.respond_with(status, "" if status == 304 else "the reason", Location="/elsewhere?token=x")
    async with sink_for(receiver.url) as sink:
        with golden.error("http_sink_errors", f"status {status}", kind, receiver.url, status, URL=receiver.url):
            await sink.publish(records(1))
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("status", [200, 201, 202, 204, 207])
async def test_every_success_acknowledges(status: int, receiver: Receiver) -> None:
    receiver.respond_with(status, "" if status == 204 else "x" * 200_000)
    async with sink_for(receiver.url) as sink:
        await sink.publish(records(2))
    assert receiver.accepted == documents(records(2))


async def test_redirect_is_not_followed(receiver: Receiver) -> None:
    async with serving() as other:
        receiver.respond_with(307, Location=other.url)
        async with sink_for(receiver.url, auth={"token": SECRET}) as sink:
            for attempt in (sink.start, lambda: sink.publish(records(1))):
                with raises_naming(FatalError, receiver.url, other.url):
                    await attempt()
        assert other.requests == []


@pytest.mark.parametrize(
    ("status", "credentials", "kind"),
    [
        *((status, True, None) for status in (200, 204, 400, 403, 404, 405, 500, 501)),
        (401, False, None),
        (401, True, TransientError),
        (301, True, FatalError),
        *((status, True, TransientError) for status in (502, 503, 504)),
    ],
)
async def test_start_ignores_responses_without_meaning(
    status: int, credentials: bool, kind: type[BridgeError] | None, receiver: Receiver
) -> None:
    receiver.respond_with(status)
    async with sink_for(receiver.url, auth={"token": SECRET} if credentials else {}) as sink:
        with contextlib.nullcontext() if kind is None else raises_naming(kind, receiver.url, status):
            await sink.start()
    ((request, body),) = receiver.requests
    assert (request.method, body) == ("OPTIONS", b"")


class SettableClock(SystemClock):
    seconds = 0.0

    def now(self) -> Instant:
        return super().now()._replace(monotonic=int(self.seconds * 10**9))


@pytest.mark.parametrize(
    ("status", "header", "pause"),
    [(429, "20", 20), (503, "20", 20), (503, "99999999999", 300), (500, "20", 0), (429, "soon", 0), (429, "٣", 0)],
)
async def test_no_request_until_retry_after(status: int, header: str, pause: int, receiver: Receiver) -> None:
    clock = SettableClock()
    receiver.respond_with(status, **{"Retry-After": header})
    async with sink_for(receiver.url, clock) as sink:
        with pytest.raises(TransientError):
            await sink.publish(records(1))
        receiver.respond_with(204)
        if pause:
            clock.seconds = pause - 0.1
            with raises_naming(TransientError, receiver.url, status):
                await sink.publish(records(1))
        clock.seconds = pause
        await sink.publish(records(1))
    assert len(receiver.requests) == 2


async def test_text_of_receiver_is_shortened_and_cleaned(receiver: Receiver) -> None:
    receiver.respond_with(500, "a\x1b[31m\r\n\u202eb" + "x" * 100_000)
    async with sink_for(receiver.url) as sink:
        with pytest.raises(TransientError) as caught:
            await sink.publish(records(1))
    assert str(caught.value).isprintable()
    assert "xxx" in str(caught.value)
    assert len(str(caught.value)) < 500


async def test_html_of_receiver_is_not_shown(receiver: Receiver) -> None:
    receiver.respond = lambda *_: web.Response(status=502, text="<html>", content_type="text/html")
    async with sink_for(receiver.url) as sink:
        with pytest.raises(TransientError) as caught:
            await sink.publish(records(1))
    assert "<" not in str(caught.value)


# --- OpenTelemetry ---

OTLP: dict[str, Any] = {"encoding": "otlp", "cloudevents": "none"}
PROTOBUF = "application/x-protobuf"


def respond_otlp(body: bytes, status: int = 200, content_type: str = PROTOBUF) -> Respond:
    return lambda *_: web.Response(status=status, body=body, content_type=content_type)


def partial_success(rejected: int, message: str = "") -> bytes:
    partial = ExportLogsPartialSuccess(rejected_log_records=rejected, error_message=message)
    return ExportLogsServiceResponse(partial_success=partial).SerializeToString()


def rpc_status(message: bytes) -> bytes:
    """Return a `google.rpc.Status` with code INVALID_ARGUMENT."""
    return encode_fields([(1, 3), (2, message)])


def otlp_bodies(receiver: Receiver) -> list[bytes]:
    return [document for body in receiver.bodies for document in decode_bodies(body)]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", PROTOBUF),
        (partial_success(0, "attributes were shortened"), PROTOBUF),
        (partial_success(-1), PROTOBUF),
        (partial_success(1)[:-1], PROTOBUF),
        (b"\xffno protobuf", PROTOBUF),
        (partial_success(1), "text/html"),
        (b"{}", "application/json"),
    ],
)
async def test_otlp_success_acknowledges(body: bytes, content_type: str, receiver: Receiver) -> None:
    receiver.respond = respond_otlp(body, content_type=content_type)
    async with sink_for(receiver.url, **OTLP) as sink:
        await sink.publish(records(3))
    assert otlp_bodies(receiver) == documents(records(3))
    assert [request.content_type for request, _ in receiver.requests] == [PROTOBUF]


async def test_otlp_records_of_partial_success_are_rejected(receiver: Receiver, golden: Golden) -> None:
    """The receiver does not say which it has stored, so none is sent again, not even in halves."""

    def respond(request: web.Request, body: bytes) -> web.StreamResponse:
        has_fourth = documents(records(1, 4))[0] in decode_bodies(body)
        return respond_otlp(partial_success(2, "too\nold") if has_fourth else b"")(request, body)

    receiver.respond = respond
    batch = [each for sequence in range(1, 10) for each in records(1, sequence)]
    async with sink_for(receiver.url, **OTLP, max_batch_records=3) as sink:
        with golden.error(
            "http_sink_errors", "partial success", RejectedRecordError, receiver.url, "2 of 3", URL=receiver.url
        ) as caught:
            await sink.publish(batch)
        assert caught.value.positions == {(EPOCH, sequence) for sequence in (4, 5, 6)}
        await sink.publish([each for each in batch if each.sequence not in (4, 5, 6)])
    assert otlp_bodies(receiver) == documents(batch)


async def test_otlp_receiver_that_rejects_everything_is_an_error(receiver: Receiver, golden: Golden) -> None:
    receiver.respond = respond_otlp(partial_success(7, "no tenant"))
    async with sink_for(receiver.url, **OTLP) as sink:
        for number in range(http_sink.MAX_REJECTIONS):
            with raises_naming(RejectedRecordError, receiver.url, "2 of 2"):
                await sink.publish(records(2, 1 + 2 * number))
        for _ in range(2):
            with golden.error("http_sink_errors", "all rejected, OTLP", FatalError, receiver.url, URL=receiver.url):
                await sink.publish(records(2, 50))
        receiver.respond = respond_otlp(partial_success(1))
        for _ in range(http_sink.MAX_REJECTIONS + 1):  # it accepts the other record of each request
            with golden.error(
                "http_sink_errors", "partial success without text", RejectedRecordError, "1 of 2", URL=receiver.url
            ):
                await sink.publish(records(2, 50))


async def test_otlp_receiver_that_rejects_a_request_gets_halves(receiver: Receiver) -> None:
    rejected = documents(records(1, 17))[0]

    def respond(request: web.Request, body: bytes) -> web.StreamResponse:
        is_rejected = rejected in decode_bodies(body)
        return respond_otlp(rpc_status(b"no") if is_rejected else b"", 400 if is_rejected else 200)(request, body)

    receiver.respond = respond
    batch = [each for sequence in range(1, 65) for each in records(1, sequence)]
    async with sink_for(receiver.url, **OTLP) as sink:
        assert await deliver(sink, batch) == [17]


@pytest.mark.parametrize("status", [404, 415])
async def test_otlp_hint_is_the_url(status: int, receiver: Receiver, golden: Golden) -> None:
    receiver.respond = respond_otlp(rpc_status(b"the reason"), status)
    async with sink_for(receiver.url, **OTLP) as sink:
        with golden.error(
            "http_sink_errors", f"status {status}, OTLP", FatalError, receiver.url, status, URL=receiver.url
        ):
            await sink.publish(records(1))


@pytest.mark.parametrize("status", [200, 400, 503])
async def test_otlp_text_is_cleaned_and_has_no_secret(status: int, receiver: Receiver) -> None:
    text = f"{SECRET} \x1b[31m\u202e".encode() + b"\xff" + b"x" * 100_000
    body = encode_fields([(1, encode_fields([(1, 1), (2, text)]))]) if status == 200 else rpc_status(text)
    receiver.respond = respond_otlp(body, status)
    async with sink_for(receiver.url, **OTLP, auth={"token": SECRET}) as sink:
        with pytest.raises((RejectedRecordError, TransientError)) as caught:
            await sink.publish(records(1))
    message = str(caught.value)
    assert message.isprintable()
    assert "[redacted]" in message
    assert "xxx" in message
    assert SECRET not in message
    assert len(message) < 500


@pytest.mark.parametrize(("encoding", "body"), [("otlp", b"\xff\x00abc"), ("json", rpc_status(b"abc"))])
async def test_unreadable_protobuf_is_not_shown(encoding: str, body: bytes, receiver: Receiver) -> None:
    receiver.respond = respond_otlp(body, 400)
    async with sink_for(receiver.url, encoding=encoding, cloudevents="none") as sink:
        with raises_naming(RejectedRecordError, receiver.url, "400 Bad Request") as caught:
            await sink.publish(records(1))
    assert "abc" not in str(caught.value)


# --- credentials ---


def echo(request: web.Request, _: bytes) -> web.Response:
    received = request.headers["Authorization"]
    plain = base64.b64decode(received.removeprefix("Basic ")) if received.startswith("Basic") else b""
    text = f"no: {received} {plain.decode()} {request.path_qs} {request.query_string} {request.query['key']}"
    return web.Response(status=401, text=text, headers={"Location": f"/{received.split()[1]}"})


@pytest.mark.parametrize(
    ("auth", "named"),
    [
        ({"token": SECRET}, "auth.token"),
        ({"token_file": "TMP/secret"}, "auth.token_file TMP/secret"),
        ({"token_command": ["/bin/cat", "TMP/secret"]}, "auth.token_command /bin/cat"),
        ({"user": "bridge", "password": SECRET}, "auth.user and auth.password"),
        ({"user": "brücke", "password_file": "TMP/secret"}, "auth.password_file TMP/secret"),
    ],
)
async def test_credentials_are_sent_and_not_shown(
    auth: dict[str, Any], named: str, receiver: Receiver, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    auth = {
        name: [each.replace("TMP", str(tmp_path)) for each in value]
        if isinstance(value, list)
        else value.replace("TMP", str(tmp_path))
        for name, value in auth.items()
    }
    receiver.respond = echo
    async with sink_for(f"{receiver.url}?key=other%20secret", auth=auth) as sink:
        for attempt in (sink.start, lambda: sink.publish(records(1))):
            with raises_naming(
                TransientError, receiver.url, named.replace("TMP", str(tmp_path)), "[redacted]"
            ) as caught:
                await attempt()
            assert SECRET not in str(caught.value)
            assert "other" not in str(caught.value)
            assert base64.b64encode(SECRET.encode())[:10].decode() not in str(caught.value)
    pair = f"{auth.get('user')}:{SECRET}"
    expected = f"Basic {base64.b64encode(pair.encode()).decode()}" if "user" in auth else f"Bearer {SECRET}"
    assert {request.headers["Authorization"] for request, _ in receiver.requests} == {expected}


async def test_missing_credentials_are_named(receiver: Receiver) -> None:
    receiver.respond_with(401)
    async with sink_for(receiver.url) as sink:
        with raises_naming(TransientError, receiver.url, "set auth"):
            await sink.publish(records(1))


async def test_replaced_token_file_is_used_for_next_batch(receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "token"
    async with sink_for(receiver.url, auth={"token_file": str(file)}) as sink:
        for token in ("first", "second"):
            file.write_text(f"{token}\n")
            await sink.publish(records(1))
        file.unlink()
        with raises_naming(TransientError, "auth.token_file", file):
            await sink.publish(records(1))
    sent = [request.headers["Authorization"] for request, _ in receiver.requests]
    assert sent == ["Bearer first", "Bearer second"]


@pytest.mark.parametrize("status", [401, 403])
async def test_token_command_runs_again_when_token_is_rejected(status: int, receiver: Receiver, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    command = ["/bin/sh", "-c", f"echo x >> {runs}; echo token-$(wc -l < {runs})"]
    async with sink_for(receiver.url, auth={"token_command": command}) as sink:
        await sink.publish(records(1))
        await sink.publish(records(1))
        receiver.respond_with(status)
        with pytest.raises(TransientError):
            await sink.publish(records(1))
        receiver.respond_with(204)
        await sink.publish(records(1))
    sent = [request.headers["Authorization"].removeprefix("Bearer ") for request, _ in receiver.requests]
    assert sent == ["token-1", "token-1", "token-1", "token-2"]


@pytest.mark.parametrize("token", [f"{SECRET} x", f"{SECRET}\r\nX-Header: b", f"{SECRET}é", f"{SECRET}\n\n"])
async def test_invalid_token_is_neither_sent_nor_shown(token: str, receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_bytes(token.encode())
    async with sink_for(receiver.url, auth={"token_file": str(file)}) as sink:
        with raises_naming(TransientError, f"auth.token_file {file}") as caught:
            await sink.publish(records(1))
    assert SECRET not in str(caught.value)
    assert receiver.requests == []


# --- connections ---


async def test_closed_port_is_transient(golden: Golden) -> None:
    port = free_port()
    async with sink_for(f"http://localhost:{port}/events?key={SECRET}") as sink:
        for attempt in (sink.start, lambda: sink.publish(records(1))):
            with golden.error(
                "http_sink_errors", "closed port", TransientError, f"localhost:{port}", PORT=port
            ) as caught:
                await attempt()
            assert SECRET not in str(caught.value)


async def test_unknown_host_is_transient() -> None:
    async with sink_for("http://receiver.invalid/events") as sink:
        with raises_naming(TransientError, "http://receiver.invalid/events", "host name cannot be resolved"):
            await sink.start()


@contextlib.asynccontextmanager
async def responding(response: bytes | None) -> AsyncIterator[int]:
    """Respond to one request with these bytes, and close the connection; with None, be silent until it is closed."""
    done = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if response is None:
            await reader.read()
        else:
            await reader.readuntil(b"}")  # the end of a record
            writer.write(response)
        writer.close()
        await writer.wait_closed()
        done.set()

    port = free_port()
    async with await asyncio.start_server(serve, HOST, port):
        yield port
        await done.wait()


@pytest.mark.parametrize(
    ("case", "response"),
    [
        ("closed", b""),
        ("cut", b"HTTP/1.1 204 No"),
        ("cut body", b"HTTP/1.1 500 x\r\nContent-Length: 100\r\nContent-Type: text/plain\r\n\r\nabc"),
        ("other protocol", b'INFO {"server_id": "x"}\r\n'),
        ("two lengths", b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"),
        ("broken chunk", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"),
    ],
)
async def test_invalid_response_is_transient(case: str, response: bytes, golden: Golden) -> None:
    async with responding(response) as port, sink_for(f"http://{HOST}:{port}/?key={SECRET}") as sink:
        with golden.error(
            "http_sink_errors", f"response, {case}", TransientError, f"{HOST}:{port}", PORT=port
        ) as caught:
            await sink.publish(records(1))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "response",
    [b"%s", b"HTTP/1.1 401 X\r\nX: %s\0\r\n\r\n", b"HTTP/1.1 401 " + b"%s" * 200],
)
async def test_invalid_response_is_not_quoted(response: bytes) -> None:
    """A server of another protocol, or one for debugging, may send the request back."""

    ended = asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(response.replace(b"%s", head if response == b"%s" else head.replace(b"\r\n", b" ")))
        writer.close()
        await writer.wait_closed()
        ended.release()

    port = free_port()
    url = f"http://{HOST}:{port}/events"
    async with (
        await asyncio.start_server(serve, HOST, port),
        sink_for(f"{url}?key={SECRET}", auth={"user": "bridge", "password": SECRET}) as sink,
    ):
        for attempt in (sink.start, lambda: sink.publish(records(1))):
            with raises_naming(TransientError, url, "invalid response") as caught:
                await attempt()
            await ended.acquire()
            assert SECRET not in str(caught.value)
            assert base64.b64encode(f"bridge:{SECRET}".encode())[:20].decode() not in str(caught.value)


async def test_response_before_request_acknowledges_nothing() -> None:
    sent_twice, ended = asyncio.Event(), asyncio.Semaphore(0)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(records(1)[0].data)
        for _ in range(2):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await asyncio.sleep(0.1)  # the second response arrives when the connection is idle
        sent_twice.set()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        ended.release()

    port = free_port()
    async with await asyncio.start_server(serve, HOST, port), sink_for(f"http://{HOST}:{port}/") as sink:
        await sink.publish(records(1))
        await sent_twice.wait()
        with raises_naming(TransientError, f"{HOST}:{port}", "a response without a request"):
            await sink.publish(records(1))
        await sink.publish(records(1))  # over a new connection
        await sink.close()
        for _ in range(2):
            await ended.acquire()


async def test_silent_receiver_is_left_after_timeout() -> None:
    async with responding(None) as port, sink_for(f"http://{HOST}:{port}/", timeout="1s") as sink:
        with raises_naming(TransientError, f"{HOST}:{port}", "1 s"):
            await sink.publish(records(1))


# --- TLS ---


def server_context(authority: Authority, **options: Any) -> ssl.SSLContext:
    issued = authority.issue("receiver", **options)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(issued.certificate, issued.key)
    return context


async def test_https_trusts_configured_authority(authority: Authority) -> None:
    async with (
        serving(server_context(authority)) as receiver,
        sink_for(receiver.url, tls={"ca_file": str(authority.certificate)}) as sink,
    ):
        await sink.start()
        await sink.publish(records(1))
        assert receiver.accepted == documents(records(1))


@pytest.mark.parametrize(
    ("case", "options", "trusted"),
    [
        ("unknown authority", {}, False),
        ("other host", {"hosts": ["other.example"]}, True),
        ("expired", {"expired": True}, True),
    ],
)
async def test_untrusted_certificate_is_named(
    case: str, options: dict[str, Any], trusted: bool, authority: Authority, golden: Golden
) -> None:
    tls = {"ca_file": str(authority.certificate)} if trusted else {}
    hidden: dict[str, Any] = {"CA": authority.certificate}
    async with serving(server_context(authority, **options)) as receiver, sink_for(receiver.url, tls=tls) as sink:
        hidden["URL"] = receiver.url
        with golden.error("http_sink_errors", f"certificate, {case}", TransientError, receiver.url, **hidden):
            await sink.start()
        assert receiver.requests == []


async def test_client_certificate_is_sent(authority: Authority) -> None:
    context = server_context(authority)
    context.load_verify_locations(authority.certificate)
    context.verify_mode = ssl.CERT_REQUIRED
    client = authority.issue("node-1")
    tls = {"ca_file": str(authority.certificate)}
    own = tls | {"cert_file": str(client.certificate), "key_file": str(client.key)}
    async with serving(context) as receiver:
        async with sink_for(receiver.url, tls=own) as sink:
            await sink.publish(records(1))
        assert receiver.accepted == documents(records(1))
        async with sink_for(receiver.url, tls=tls) as sink:
            with raises_naming(TransientError, receiver.url, "tls.cert_file"):
                await sink.publish(records(1))


async def test_replaced_certificate_file_is_used_for_next_connection(authority: Authority, tmp_path: Path) -> None:
    ca_file, clock = tmp_path / "ca.pem", SettableClock()
    ca_file.write_bytes(authority.certificate.read_bytes())
    async with (
        serving(server_context(authority)) as receiver,
        sink_for(receiver.url, clock, tls={"ca_file": str(ca_file)}) as sink,
    ):
        await sink.publish(records(1))
        ca_file.write_bytes(Authority(tmp_path / "other").certificate.read_bytes())
        await sink.publish(records(1))
        clock.seconds = http_sink.KEEPALIVE_SECONDS + 1
        with raises_naming(TransientError, receiver.url, f"tls.ca_file {ca_file}"):
            await sink.publish(records(1))
        assert len({request.transport for request, _ in receiver.requests}) == 1


async def test_plain_receiver_does_not_get_tls_records(receiver: Receiver) -> None:
    async with sink_for(receiver.url.replace("http://", "https://"), auth={"token": SECRET}) as sink:
        with raises_naming(TransientError, "TLS"):
            await sink.publish(records(1))
    assert receiver.requests == []
