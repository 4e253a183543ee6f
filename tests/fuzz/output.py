"""Fuzz targets for what is written: text for terminals and logs, and messages of the sinks with hostile names."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import structlog

from bridge.core.records import Record
from bridge.telemetry import logs
from bridge.telemetry.safe_text import one_line, printable, printable_json, shorten_ids
from config.sinks import NatsSettings
from sinks import cloudevents, state_table
from sinks.encoding import encode_whalewatcher
from sinks.kafka import messages as kafka
from sinks.nats import messages as nats
from sinks.otlp import decode_bodies, encode_otlp
from tests.fuzz.engine import Target
from tests.fuzz.mutation import encode_fields, mutate_protobuf, parse_fields
from tests.sample_records import ENGINE, record

_TOKENS = (
    *rb""". .. * > / // % %2F =2E _ == " \ $KV $JS.API default k8s.io \u2028""".split(),
    b"\x1b]0;x\x07",
    b"\x00",
    b"\xe2\x80\xa8",
    b"\xef\xbf\xbe",
    b"\xf0\x9f\x90\xb3",
    b"\x1b[2J",
    b"\x9b",
    b"\x7f",
    b"\xc2\x85",
    b"\xe2\x80\xae",
    b"\xed\xa0\x80",
    b"\xff",
    b"\r\n",
    b" ",
    b"a" * 64,
    b"x" * 250,
)


# --- terminals and logs ---


def _text_samples() -> Sequence[bytes]:
    texts = ("web-1", "\x1b[31mred\x1b[0m", '{"a":"\x9b\u202e"}', "line\nline", "0123456789ab" + "cdef" * 13)
    return [text.encode() for text in texts]


def _write_text(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert printable(text, keep="\n").replace("\n", "").isprintable()
    line = one_line(text)
    assert line.isprintable()
    assert len(line) <= 300
    assert shorten_ids(shown).isprintable()
    _check_json(text)
    _check_log(text)


def _check_json(text: str) -> None:
    document = msgspec.json.encode({text.encode(errors="replace").decode(): "x"}).decode()
    assert printable_json(document).isprintable()
    assert json.loads(printable_json(document)) == json.loads(document)


def _check_log(text: str) -> None:
    """Check a line in one of the formats, with the text as name and as value of a field."""
    format_ = "json" if len(text) % 2 else "console"
    event: Any = {"event": "call_denied", "reason": text, "list": [text], "object": {text}, f"k{text}": 1}
    for processor in _processors(format_):
        event = processor(None, "warning", event)
    assert event.isprintable(), event
    assert format_ == "console" or json.loads(event)["reason"] == text


@cache
def _processors(format_: str) -> list[Any]:
    before, descriptor = structlog.get_config(), os.open(os.devnull, os.O_WRONLY)
    logs.configure("info", format_, descriptor=descriptor).close()
    processors: list[Any] = structlog.get_config()["processors"]
    structlog.configure(**before)
    return processors


# --- messages ---

_FIELDS = ("namespace", "id_", "name", "project", "host", "engine", "key", "value")
_DEFAULTS = ("k8s.io", "web", "web-1", "shop", "node-1", "c79d280c", "com.docker.compose.project", "shop")
_NATS_SETTINGS = [
    NatsSettings(type="nats", servers=("h",), subject_prefix="containers", cloudevents=mode)
    for mode in ("binary", "structured", "none")
]
_ENCODERS = [nats.MessageEncoder(settings) for settings in _NATS_SETTINGS]
_SUBJECT = re.compile(r"[A-Za-z0-9_=-]+(\.[A-Za-z0-9_=-]+)*")
_PRINTABLE_ASCII = re.compile(r"[!-~]+")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_MAX_SUBJECT_LENGTH = 4 * nats.MAX_TOKEN_LENGTH + 100


def _message_samples() -> Sequence[bytes]:
    names = [*_DEFAULTS]
    hostile = ["k8s.io", "../..", "a.b *>", "\x1b[31m", "n\xf6de", "//", "a\r\nb: c", "\x00"]
    return [
        encode_fields([(number, text.encode()) for number, text in enumerate(texts, 1)]) for texts in (names, hostile)
    ]


def _encode_messages(data: bytes) -> None:
    texts = list(_DEFAULTS)
    for number, value in parse_fields(data) or ():
        if 0 < number <= len(texts) and isinstance(value, bytes):
            texts[number - 1] = value.decode("utf-8", "replace")
    values: dict[str, Any] = dict(zip(_FIELDS, texts, strict=True))
    labels = {values.pop("key"): values.pop("value")}
    engine = msgspec.structs.replace(ENGINE, id=values.pop("engine"))
    started = record(1, labels=labels, engine=engine, **values)
    _check_nats(started)
    _check_kafka(started)
    assert decode_bodies(encode_otlp(started)) == [started.data]
    whalewatcher = json.loads(encode_whalewatcher(started) or b"")
    assert (whalewatcher["ID"], whalewatcher["Container"]["Labels"]) == (started.subject, labels)


def _check_nats(started: Record) -> None:
    encoder = _ENCODERS[len(started.data) % len(_ENCODERS)]
    message = encoder.encode(started)
    assert message is not None
    assert _SUBJECT.fullmatch(message.subject), message.subject
    assert len(message.subject) <= _MAX_SUBJECT_LENGTH
    assert nats.is_subset(message.subject, [encoder.subjects.pattern])
    for name, value in message.headers.items():
        assert _PRINTABLE_ASCII.fullmatch(value), (name, value)
    assert sum(len(f"{name}: {value}\r\n") for name, value in message.headers.items()) <= message.header_size
    texts = {text or "_" for text in (started.host, started.namespace, started.project)}  # "_" stands for an empty one
    tokens = {text: nats.encode_token(text) for text in texts}
    assert len(set(tokens.values())) == len(tokens)
    for text, token in tokens.items():
        assert nats.decode_token(token) == text.removeprefix("_" * (text == "_")) or "==" in token
    key = state_table.record_key(started)
    assert _SUBJECT.fullmatch(nats.state_key(*key))


def _check_kafka(started: Record) -> None:
    source = state_table.source_key(started)
    (message,) = kafka.event_messages(source, [started], "json", "binary" if len(started.data) % 2 else "structured")
    assert message.key.isascii()
    for name, value in message.headers:
        assert name.isascii()
        assert value
        assert not _CONTROL.search(value.decode()), (name, value)
    document = message.value or b""
    assert document == started.data or json.loads(document)["data"] == json.loads(started.data)
    key = state_table.record_key(started)
    assert kafka.decode_key(kafka.encode_key(key)) == key
    assert all(value and not _CONTROL.search(value) for _, value in cloudevents.attributes(started))
    _, changes = state_table.apply_records(state_table.TableState(), [started])
    (change,) = kafka.state_messages(changes, max_bytes=700)
    json.loads(change.value or b"")


TARGETS = {
    "text": Target(_write_text, _text_samples, _TOKENS),
    "messages": Target(_encode_messages, _message_samples, _TOKENS, mutate_protobuf),
}
