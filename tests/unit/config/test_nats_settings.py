from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from config.settings import load
from config.sinks import NatsSettings, parse_url

MINIMUM: dict[str, Any] = {"type": "nats", "servers": ["n1:4222"], "subject_prefix": "events"}


def nats(**settings: Any) -> NatsSettings:
    sink = load({"sinks": {"main": MINIMUM | settings}}).sinks["main"]
    assert isinstance(sink, NatsSettings)
    return sink


@pytest.mark.parametrize(
    ("max_age", "window"), [("5m", timedelta(minutes=5)), ("7d", timedelta(hours=1)), (None, timedelta(hours=1))]
)
def test_nats_duplicate_window_is_at_most_max_age(max_age: str | None, window: timedelta) -> None:
    assert nats(stream={"max_age": max_age}).stream.limited_duplicate_window == window


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("nats://n1:4222/events", MINIMUM),
        ("nats://n1,n2:1/a.b-c_D", {"type": "nats", "servers": ["n1", "n2:1"], "subject_prefix": "a.b-c_D"}),
        ("tls://n1:4222/events", MINIMUM | {"tls": {"enabled": True}}),
        ("NATS://[::1]:4222/events", MINIMUM | {"servers": ["[::1]:4222"]}),
    ],
)
def test_nats_url_sets_servers_prefix_and_tls(url: str, settings: dict[str, Any]) -> None:
    assert parse_url(url) == settings
    load({"sinks": {"main": url}})


@pytest.mark.parametrize("template", ["{host}", "x.{type}", "{project}.{host}.y-1.{namespace}.{type}", "all"])
def test_nats_subject_template_accepts_fields_and_words(template: str) -> None:
    assert nats(subject_template=template).subject_template == template


@pytest.mark.parametrize(("prefix", "stream"), [("a.b", "WHALEBRIDGE_A_B"), ("a-b_C", "WHALEBRIDGE_A-B_C")])
def test_nats_stream_name_is_derived_from_prefix_unless_set(prefix: str, stream: str) -> None:
    assert nats(subject_prefix=prefix).stream_name == stream
    assert nats(subject_prefix=prefix, stream={"name": "Mine"}).stream_name == "Mine"


@pytest.mark.parametrize(
    ("auth", "method"),
    [
        ({"user": "u", "password": "p"}, "user"),
        ({"user": "u", "password_file": "/p"}, "user"),
        ({"token": "t"}, "token"),
        ({"token_file": "/t"}, "token"),
        ({"nkey_seed": "SU"}, "nkey_seed"),
        ({"nkey_seed_file": "/n"}, "nkey_seed"),
        ({"creds_file": "/c"}, "creds_file"),
    ],
)
def test_nats_auth_accepts_single_method(auth: dict[str, str], method: str) -> None:
    assert nats(auth=auth).auth.methods == [method]


def test_nats_tls_accepts_handshake_first() -> None:
    assert nats(tls={"enabled": True, "handshake_first": True}).tls.handshake_first


@pytest.mark.parametrize("stream", [{"max_age": None}, {"max_bytes": None}])
def test_nats_stream_limits_can_be_disabled(stream: dict[str, None]) -> None:
    (name,) = stream
    assert getattr(nats(stream=stream).stream, name) is None


def test_nats_settings_representation_shows_no_secrets() -> None:
    secret = "s3cr3t"  # noqa: S105 (not a real secret)
    sink = nats(auth={"token": secret}, tls={"enabled": True, "cert_file": "/c", "key_password": secret})
    assert secret not in repr(sink) + str(sink) + sink.model_dump_json()
