from __future__ import annotations

import asyncio
import errno
import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest.mock import ANY

import nats.errors
import pytest
from nats.aio.client import RawCredentials
from nats.aio.msg import Msg
from nats.js.api import StreamConfig, StreamSource
from nats.js.errors import APIError, BadRequestError, ServiceUnavailableError

from bridge.clock import SystemClock
from bridge.core.errors import TransientError
from config.sinks.nats import NatsAuthSettings, NatsSettings
from sinks.credentials import configured_credentials
from sinks.nats import auth, streams
from sinks.nats.connection import ServerConnector
from sinks.nats.errors import ApiResponseError, ErrorMessages, is_permission_error
from sinks.nats.messages import ApiError, PubAck, decode_ack
from tests.golden import Golden
from tests.naming import raises_naming

MESSAGES = ErrorMessages("n1:4222", 5.0, "auth.token_file /run/token", "tls.cert_file /run/cert")
ANONYMOUS_MESSAGES = ErrorMessages("n1:4222", 5.0, "", "")


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "connection refused"),
        (TimeoutError(), "5 s"),
        (nats.errors.SecureConnWantedError(), "TLS"),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), "TLS"),
        (nats.errors.Error("nats: 'Authorization Violation'"), "auth.token_file /run/token"),
        (nats.errors.AuthorizationError(), "auth.token_file /run/token"),
        (nats.errors.Error("nats: 'User Authentication Expired'"), "auth.token_file /run/token"),
        (nats.errors.Error("nats: 'maximum connections exceeded'"), "maximum connections exceeded"),
        (nats.errors.Error("nats: empty response from server when expecting INFO message"), "handshake_first"),
        (ValueError("Separator is not found, and chunk exceed the limit"), "protocol"),
    ],
)
def test_nats_connection_error_names_server_and_reason(error: Exception, named: str, golden: Golden) -> None:
    text = MESSAGES.unreachable(error, requests_certificate=False)
    assert "n1:4222" in text
    assert named in text
    golden.entry("nats_errors", f"no connection, {type(error).__name__} {error}".strip(), text)


@pytest.mark.real_time
@pytest.mark.parametrize(
    "sent",
    [b"x" * 200_000, b"INFO 5\r\n", b'INFO {"connect_urls": 5}\r\n', b'INFO {"max_payload": 1}\r\n-ERR\r\n'],
    ids=["long line", "no object", "no list", "no reason"],
)
async def test_nats_peer_of_other_protocol_is_transient_error(sent: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sent)
        await reader.read()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        address = "{}:{}".format(*server.sockets[0].getsockname())
        settings = NatsSettings.model_validate({"servers": address, "subject_prefix": "events"})
        with raises_naming(TransientError, address):
            await ServerConnector(settings, SystemClock()).connect()


@pytest.mark.parametrize("end", [ConnectionResetError("Connection lost"), BrokenPipeError(errno.EPIPE, "Broken pipe")])
def test_nats_connection_error_explains_certificate_problem(end: OSError, golden: Golden) -> None:
    for messages, case, named in (
        (MESSAGES, "wrong", "tls.cert_file /run/cert"),
        (ANONYMOUS_MESSAGES, "none", "tls.cert_file"),
    ):
        text = messages.unreachable(end, requests_certificate=True)
        assert named in text
        golden.entry("nats_errors", f"certificate required, {case}", text)


def test_nats_connection_error_explains_missing_credentials(golden: Golden) -> None:
    error = nats.errors.Error("nats: 'Authorization Violation'")
    golden.entry(
        "nats_errors",
        "authentication required, none",
        ANONYMOUS_MESSAGES.unreachable(error, requests_certificate=False),
    )


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (None, "n1:4222"),
        (nats.errors.UnexpectedEOF(), "n1:4222"),
        (nats.errors.StaleConnectionError(), "n1:4222"),
        (ConnectionResetError(104, "Connection reset by peer"), "n1:4222"),
        (nats.errors.AuthorizationError(), "auth.token_file /run/token"),
    ],
)
def test_nats_disconnect_is_described(error: Exception | None, named: str, golden: Golden) -> None:
    text = MESSAGES.disconnected(error)
    assert named in text
    golden.entry("nats_errors", f"connection ended, {type(error).__name__}", text)


def test_missing_nats_permission_is_described(golden: Golden) -> None:
    error = nats.errors.Error('nats: permissions violation for publish to "a.b"')
    assert is_permission_error(error)
    assert not is_permission_error(nats.errors.Error("nats: other"))
    text = MESSAGES.denied(error)
    assert 'permissions violation for publish to "a.b"' in text
    assert "docs/nats.md" in text
    golden.entry("nats_errors", "permission missing", text)


def test_jetstream_errors_are_described(golden: Golden) -> None:
    no_jetstream = MESSAGES.request_failed("get stream S", ServiceUnavailableError())
    assert "n1:4222" in str(no_jetstream)
    golden.entry("nats_errors", "no JetStream", str(no_jetstream))
    limit_error = MESSAGES.request_failed(
        "create stream S", BadRequestError(code=400, err_code=10027, description="maximum reached")
    )
    assert isinstance(limit_error, ApiResponseError)
    assert limit_error.code == 10027
    golden.entry("nats_errors", "JetStream API error 10027", str(limit_error))
    temporary_error = MESSAGES.request_failed(
        "get stream S", ServiceUnavailableError(code=503, err_code=10008, description="unavailable")
    )
    assert isinstance(temporary_error, ApiResponseError)
    assert temporary_error.code == 10008
    golden.entry("nats_errors", "JetStream API error 10008", str(temporary_error))
    assert isinstance(MESSAGES.request_failed("x", APIError()), ApiResponseError)
    assert not isinstance(MESSAGES.request_failed("x", nats.errors.ConnectionClosedError()), ApiResponseError)


# --- acknowledgments ---


@pytest.mark.parametrize(
    ("data", "headers", "expected"),
    [
        (b'{"stream":"S","seq":5}', None, PubAck(None, "S", 5)),
        (b'{"stream":"S","seq":5,"duplicate": true}', None, PubAck(None, "S", 5, duplicate=True)),
        (b'{"stream":"S","seq":9,"batch":"b","count":5}', None, PubAck(None, "S", 9)),
        (
            b'{"error":{"code":400,"err_code":10201,"description":"d"},"stream":"S","seq":0}',
            None,
            PubAck(ApiError(400, 10201, "d"), "S"),
        ),
        (b"", None, PubAck()),
        (b"", {"Status": "503"}, PubAck(ApiError(503, 0, ANY))),
        (b"hello", None, PubAck(ApiError(0, 0, ANY))),
        (b"[1]", None, PubAck(ApiError(0, 0, ANY))),
        (b'{"stream":"\xff"}', None, PubAck(ApiError(0, 0, ANY))),
    ],
)
def test_nats_publish_acknowledgment_is_parsed(
    data: bytes, headers: dict[str, str] | None, expected: PubAck, golden: Golden
) -> None:
    ack = decode_ack(Msg(_client=None, data=data, headers=headers))  # type: ignore[arg-type]
    assert ack == expected
    if ack.error:
        golden.entry("nats_errors", f"acknowledgment {data!r}", ack.error.description)


def test_nats_acknowledgment_nested_too_deep_is_invalid() -> None:
    ack = decode_ack(Msg(_client=None, data=b'{"x":' + b"[" * 100_000))  # type: ignore[arg-type]
    assert ack == PubAck(ApiError(0, 0, ANY))


# --- streams ---


def test_default_nats_stream_config_has_no_errors_or_warnings() -> None:
    config = streams.stream_config(NatsSettings.model_validate({"servers": ["n1"], "subject_prefix": "events"}))
    assert not list(streams.config_errors(config, "events.*.*.*"))
    assert not list(streams.config_warnings(config, "events.*.*.*", timedelta(hours=6)))


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"storage": "memory"}, "memory"),
        ({"retention": "workqueue"}, ""),
        ({"duplicate_window": 10}, "10 s"),
        ({"max_age": 3600}, "snapshot.interval (21600 s)"),
        ({"allow_atomic": None}, "atomic"),
        ({"subjects": ["events.node-1.>"]}, "events.*.*.*"),
    ],
)
def test_nats_stream_config_warning_is_reported(config: dict[str, Any], named: str, golden: Golden) -> None:
    defaults: dict[str, Any] = {"subjects": ["events.>"], "duplicate_window": 3600, "allow_atomic": True}
    [warning] = streams.config_warnings(StreamConfig(**(defaults | config)), "events.*.*.*", timedelta(hours=6))
    assert named in warning
    golden.entry("nats_errors", f"stream warning, {next(iter(config))}", warning)


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"subjects": ["something.else.>"]}, "something.else.>"),
        ({"no_ack": True}, "no_ack"),
        ({"sealed": True}, "sealed"),
        ({"max_msgs_per_subject": 5}, "max_msgs_per_subject"),
        ({"retention": "interest"}, "retention interest"),
        ({"subjects": None, "mirror": StreamSource(name="NOWHERE")}, ""),
    ],
)
def test_unsuitable_nats_stream_error_names_setting(config: dict[str, Any], named: str, golden: Golden) -> None:
    [error] = streams.config_errors(StreamConfig(**({"subjects": ["events.>"]} | config)), "events.*.*.*")
    assert named in error
    golden.entry("nats_errors", f"unsuitable stream, {' '.join(config)}", error)


# --- credentials ---


async def test_nats_creds_file_is_parsed_and_validated(tmp_path: Path, golden: Golden) -> None:
    seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
    path = tmp_path / "creds"
    path.write_text(f"x\r\n-----BEGIN NATS USER JWT-----\r\ney.J0\r\n---\n-----BEGIN USER NKEY SEED-----\r\n{seed}\r\n")
    options = await auth.connect_options(NatsAuthSettings(creds_file=str(path)), SystemClock())
    assert isinstance(options["user_credentials"], RawCredentials)
    assert str(options["user_credentials"]).splitlines()[1] == "ey.J0"
    assert str(options["user_credentials"]).splitlines()[3] == seed
    path.write_text("no creds")
    with golden.error("nats_errors", "creds file without credentials", TransientError, "auth.creds_file", path):
        await auth.connect_options(NatsAuthSettings(creds_file=str(path)), SystemClock())


async def test_empty_nats_token_file_is_rejected(tmp_path: Path, golden: Golden) -> None:
    (tmp_path / "token").write_text("\n")
    with golden.error("nats_errors", "empty token file", TransientError, "auth.token_file", tmp_path / "token"):
        await auth.connect_options(NatsAuthSettings(token_file=str(tmp_path / "token")), SystemClock())


def test_nats_credential_settings_are_named_without_secrets() -> None:
    assert configured_credentials(NatsAuthSettings()) == ""
    assert configured_credentials(NatsAuthSettings(creds_file="/x")) == "auth.creds_file /x"
    named = configured_credentials(NatsAuthSettings.model_validate({"user": "u", "password": "s3cr3t"}))
    assert named == "auth.user and auth.password"
