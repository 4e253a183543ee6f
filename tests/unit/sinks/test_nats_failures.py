from __future__ import annotations

import errno
import ssl
from pathlib import Path
from typing import Any

import nats.errors
import pytest
from nats.aio.client import RawCredentials
from nats.aio.msg import Msg
from nats.js.api import StreamConfig
from nats.js.errors import APIError, BadRequestError, ServiceUnavailableError

from bridge.core.errors import TransientError
from config.sinks.nats import NatsAuthSettings, NatsSettings
from sinks.nats import configs, login
from sinks.nats.exchange import Answer, Refusal, read
from sinks.nats.failures import AnsweredError, Texts, is_denial, one_line

TEXTS = Texts("n1:4222", 5.0, "auth.token_file /run/token", "tls.cert_file /run/cert")
NOBODY = Texts("n1:4222", 5.0, "", "")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ConnectionRefusedError(111, "Connection refused"), "cannot be reached: Connection refused"),
        (TimeoutError(), "did not answer within 5 s"),
        (nats.errors.SecureConnWantedError(), "offers no TLS: nothing was sent to it; turn TLS on there, or off here"),
        (ssl.SSLError(1, "WRONG_VERSION_NUMBER"), "TLS failed"),
        (
            nats.errors.Error("nats: 'Authorization Violation'"),
            "refused us (Authorization Violation): check auth.token_file /run/token",
        ),
        (nats.errors.AuthorizationError(), "refused us (authorization failed): check auth.token_file /run/token"),
        (nats.errors.Error("nats: 'User Authentication Expired'"), "check auth.token_file /run/token"),
        (nats.errors.Error("nats: 'maximum connections exceeded'"), "the connection: maximum connections exceeded"),
        (nats.errors.Error("nats: empty response from server when expecting INFO message"), "wants TLS first"),
    ],
)
def test_no_connection(error: Exception, told: str) -> None:
    text = TEXTS.unreachable(error, asks_certificate=False)
    assert text.startswith("NATS at n1:4222")
    assert told in text


@pytest.mark.parametrize("end", [ConnectionResetError("Connection lost"), BrokenPipeError(errno.EPIPE, "Broken pipe")])
def test_no_certificate_or_a_wrong_one(end: OSError) -> None:
    assert TEXTS.unreachable(end, asks_certificate=True).endswith("does not like ours, tls.cert_file /run/cert")
    assert NOBODY.unreachable(end, asks_certificate=True).endswith("there is none: set tls.cert_file")


def test_no_login() -> None:
    error = nats.errors.Error("nats: 'Authorization Violation'")
    assert NOBODY.unreachable(error, asks_certificate=False).endswith("it asks for a login, and there is none")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (None, "NATS at n1:4222 ended the connection"),
        (nats.errors.UnexpectedEOF(), "NATS at n1:4222 ended the connection"),
        (nats.errors.StaleConnectionError(), "NATS at n1:4222 does not answer pings any more"),
        (
            ConnectionResetError(104, "Connection reset by peer"),
            "connection to NATS at n1:4222 broke: ",
        ),
        (nats.errors.AuthorizationError(), "check auth.token_file /run/token"),
    ],
)
def test_a_connection_that_ends(error: Exception | None, told: str) -> None:
    assert told in TEXTS.ended(error)


def test_a_permission_that_is_missing() -> None:
    error = nats.errors.Error('nats: permissions violation for publish to "a.b"')
    assert is_denial(error)
    assert not is_denial(nats.errors.Error("nats: other"))
    assert 'refuses us a subject: permissions violation for publish to "a.b"; docs/nats.md' in TEXTS.denied(error)


def test_answers_that_say_no() -> None:
    none = TEXTS.answered("tell of stream S", ServiceUnavailableError())
    assert "has no JetStream for us, needed to tell of stream S" in str(none)
    full = TEXTS.answered("create stream S", BadRequestError(code=400, err_code=10027, description="maximum reached"))
    assert isinstance(full, AnsweredError)
    assert (full.code, str(full)) == (10027, "NATS at n1:4222 failed to create stream S: maximum reached (10027)")
    busy = TEXTS.answered("tell of stream S", ServiceUnavailableError(code=503, err_code=10008, description="away"))
    assert str(busy) == "NATS at n1:4222 failed to tell of stream S: away (10008)"
    assert isinstance(TEXTS.answered("x", APIError()), AnsweredError)
    assert not isinstance(TEXTS.answered("x", nats.errors.ConnectionClosedError()), AnsweredError)


def test_foreign_texts_become_one_short_line() -> None:
    assert one_line("a\r\n b\x1b[31m" + "x" * 1000) == "a b?[31m" + "x" * 292


# --- answers ---


@pytest.mark.parametrize(
    ("data", "headers", "answer"),
    [
        (b'{"stream":"S","seq":5}', None, Answer(None, "S", 5)),
        (b'{"stream":"S","seq":5,"duplicate": true}', None, Answer(None, "S", 5, duplicate=True)),
        (b'{"stream":"S","seq":9,"batch":"b","count":5}', None, Answer(None, "S", 9)),
        (
            b'{"error":{"code":400,"err_code":10201,"description":"d"},"stream":"S","seq":0}',
            None,
            Answer(Refusal(400, 10201, "d"), "S"),
        ),
        (b"", None, Answer()),
        (b"", {"Status": "503"}, Answer(Refusal(503, 0, "nobody takes this subject"))),
        (b"hello", None, Answer(Refusal(0, 0, "the answer is not JetStream's"))),
        (b"[1]", None, Answer(Refusal(0, 0, "the answer is not JetStream's"))),
    ],
)
def test_answers_are_read(data: bytes, headers: dict[str, str] | None, answer: Answer) -> None:
    assert read(Msg(_client=None, data=data, headers=headers)) == answer  # type: ignore[arg-type]


# --- streams ---


def test_a_stream_as_it_is_created_has_neither_mistakes_nor_weaknesses() -> None:
    wanted = configs.stream(NatsSettings.model_validate({"servers": ["n1"], "subject_prefix": "events"}))
    assert not list(configs.mistakes(wanted, "events.*.*.*"))
    assert not list(configs.weaknesses(wanted, "events.*.*.*"))


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({"storage": "memory"}, "storage is memory"),
        ({"retention": "workqueue"}, "a record is deleted after one consumer has read it"),
        ({"duplicate_window": 10}, "duplicate_window is 10 s"),
        ({"allow_atomic": None}, "atomic batches are disabled"),
        ({"subjects": ["events.node-1.>"]}, "the stream accepts only a part of events.*.*.*"),
    ],
)
def test_weaknesses(config: dict[str, Any], told: str) -> None:
    good: dict[str, Any] = {"subjects": ["events.>"], "duplicate_window": 3600, "allow_atomic": True}
    [weakness] = configs.weaknesses(StreamConfig(**(good | config)), "events.*.*.*")
    assert told in weakness


# --- logins ---


def test_a_creds_file_is_handed_on_as_far_as_it_is_one(tmp_path: Path) -> None:
    seed = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
    path = tmp_path / "creds"
    path.write_text(f"x\r\n-----BEGIN NATS USER JWT-----\r\ney.J0\r\n---\n-----BEGIN USER NKEY SEED-----\r\n{seed}\r\n")
    options = login.options(NatsAuthSettings(creds_file=str(path)))
    assert isinstance(options["user_credentials"], RawCredentials)
    assert str(options["user_credentials"]).splitlines()[1] == "ey.J0"
    assert str(options["user_credentials"]).splitlines()[3] == seed
    path.write_text("no creds")
    with pytest.raises(TransientError, match="does not hold a JWT and its seed"):
        login.options(NatsAuthSettings(creds_file=str(path)))


def test_an_empty_file_is_no_secret(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("\n")
    with pytest.raises(TransientError, match=r"auth\.token_file .*token is empty"):
        login.options(NatsAuthSettings(token_file=str(tmp_path / "token")))


def test_settings_in_use_are_named_without_their_secrets() -> None:
    assert login.named(NatsAuthSettings()) == ""
    assert login.named(NatsAuthSettings(creds_file="/x")) == "auth.creds_file /x"
    named = login.named(NatsAuthSettings.model_validate({"user": "u", "password": "s3cr3t"}))
    assert named == "auth.user and auth.password"
