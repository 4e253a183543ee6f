from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest

from config.settings import SettingsError, load
from config.sinks import NatsSettings, from_url

MINIMUM: dict[str, Any] = {"type": "nats", "servers": ["n1:4222"], "subject": "events"}
SECRET = "s3cr3t"  # noqa: S105 (it opens nothing)


def nats(**settings: Any) -> NatsSettings:
    [sink] = load({"sinks": [MINIMUM | settings]}).sinks
    assert isinstance(sink, NatsSettings)
    return sink


def mistake(**settings: Any) -> str:
    with pytest.raises(SettingsError) as caught:
        load({"sinks": [MINIMUM | settings]})
    [text] = caught.value.mistakes
    assert SECRET not in text
    return text.removeprefix("--sink: ")


def test_defaults() -> None:
    sink = nats()
    assert (sink.mode, sink.encoding, sink.cloudevents) == ("jetstream", "json", "binary")
    assert sink.template == "{host}.{namespace}.{type}"
    assert sink.stream_name == "WHALEBRIDGE_EVENTS"
    assert (sink.stream.create, sink.stream.replicas) == (True, 1)
    assert (sink.stream.max_age, sink.stream.duplicate_window) == (timedelta(days=7), timedelta(hours=1))
    assert sink.bucket.name is None
    assert not sink.tls.enabled
    assert sink.login.ways == []
    assert sink.called == "nats/events"


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("nats://n1:4222/events", MINIMUM),
        ("nats://n1,n2:1/a.b-c_D", {"type": "nats", "servers": ["n1", "n2:1"], "subject": "a.b-c_D"}),
        ("tls://n1:4222/events", MINIMUM | {"tls": {"enabled": True}}),
        ("NATS://[::1]:4222/events", MINIMUM | {"servers": ["[::1]:4222"]}),
    ],
)
def test_urls(url: str, settings: dict[str, Any]) -> None:
    assert from_url(url) == settings
    load({"sinks": [url]})


@pytest.mark.parametrize(
    "url", ["nats:", "nats://n1:4222", "nats://n1:4222/", "nats:///events", "nats://n1/events?x=y", "nats:n1/events"]
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="write it as nats://HOST:PORT"):
        from_url(url)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(ValueError, match="credentials do not belong into a URL") as caught:
        from_url(f"nats://user:{SECRET}@n1:4222/events")
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("subject", ["", ".", "a.", ".a", "a..b", "a b", "a.*", "a.>", "größe", "a\n", "x" * 256])
def test_subjects_that_are_none(subject: str) -> None:
    assert mistake(subject=subject).startswith("sinks.0.subject: write words of letters, digits, _ and -")


@pytest.mark.parametrize("template", ["{host}", "x.{type}", "{project}.{host}.y-1.{namespace}.{type}", "all"])
def test_templates(template: str) -> None:
    assert nats(template=template).template == template


@pytest.mark.parametrize(
    "template",
    ["", "{id}", "{host", "{host}.", "a{host}", "{host}{type}", "{host!r}", "{host:>9}", "{0}", "{}", "*", "a b"],
)
def test_templates_that_are_none(template: str) -> None:
    assert mistake(template=template).startswith("sinks.0.template: write {host}, {namespace}, {project}, {type} and")


def test_a_template_names_a_field_once() -> None:
    assert mistake(template="{host}.{host}") == "sinks.0.template: name each field once at most"


@pytest.mark.parametrize(("subject", "stream"), [("a.b", "WHALEBRIDGE_A_B"), ("a-b_C", "WHALEBRIDGE_A-B_C")])
def test_names_of_streams(subject: str, stream: str) -> None:
    assert nats(subject=subject).stream_name == stream
    assert nats(subject=subject, stream={"name": "Mine"}).stream_name == "Mine"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"stream": {"name": "a.b"}}, "stream.name: write letters, digits, _ and -"),
        ({"bucket": {"name": "a b"}}, "bucket.name: write letters, digits, _ and -"),
        ({"domain": ">"}, "domain: write letters, digits, _ and -"),
        ({"inbox": "_INBOX.*"}, "inbox: write words of letters"),
        ({"stream": {"replicas": 6}}, "stream.replicas: it should be less than or equal to 5"),
        ({"stream": {"max_age": "1s"}}, "stream.max_age: it must be from 1m to 3650d"),
        ({"stream": {"duplicate_window": "1m"}}, "stream.duplicate_window: it must be from 2m to 7d"),
        ({"timeout": "10"}, "timeout: write a whole number and its unit"),
        ({"mode": "other"}, "mode: it should be 'jetstream' or 'core'"),
        ({"servers": []}, "servers: name one server at least"),
        ({"servers": [f"nats://u:{SECRET}@h:1"]}, "servers.0: write a server as HOST:PORT"),
        ({"mode": "core", "bucket": {"name": "x"}}, " a bucket is a part of JetStream"),
        ({"encoding": "whalewatcher", "bucket": {"name": "x"}}, " a bucket holds rows in encoding json"),
        ({"handshake_first": True}, " handshake_first is about TLS, which is not turned on"),
        ({"login": {"user": "u"}}, "login: set both user and password"),
        ({"login": {"password": SECRET}}, "login: set both user and password"),
        ({"login": {"token": SECRET, "token_file": "/f"}}, "login: set one of token and token_file, not both"),
        ({"login": {"token": SECRET, "creds_file": "/f"}}, "login: set one of token and creds_file, not both"),
        ({"login": {"nkey_seed": SECRET, "nkey_seed_file": "/f"}}, "login: set one of nkey_seed and nkey_seed_file"),
        ({"login": {"jwt": SECRET}}, "login.jwt: there is no such setting"),
        ({"tls": {"enabled": True, "key_file": "/k"}}, "tls: there is a key_file without a cert_file"),
    ],
)
def test_mistakes_are_told_with_their_path(settings: dict[str, Any], told: str) -> None:
    prefix = "sinks.0:" if told.startswith(" ") else "sinks.0."
    assert mistake(**settings).startswith(prefix + told)


def test_no_secret_is_shown() -> None:
    sink = nats(login={"token": SECRET}, tls={"enabled": True, "cert_file": "/c", "key_password": SECRET})
    assert SECRET not in repr(sink)
    assert SECRET not in str(sink)
