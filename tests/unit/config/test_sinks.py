from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import SettingsError, load
from config.sinks import FileSettings, KafkaSettings, from_url
from config.sinks.common import host_and_port

SECRET = "hunter2-swordfish"  # noqa: S105 (it opens nothing)
KAFKA = {"type": "kafka", "servers": "h1:9092", "topic": "events"}
SASL = {"mechanism": "plain", "username": "u", "password": SECRET}


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WHALEBRIDGE_"):
            monkeypatch.delenv(name)


def sink(settings: object) -> Any:
    (made,) = load({"sinks": [settings]}).sinks
    return made


def mistake(settings: object) -> str:
    with pytest.raises(SettingsError) as caught:
        load({"sinks": [settings]})
    error: BaseException | None = caught.value
    while error:
        assert SECRET not in str(error)
        error = error.__cause__ or error.__context__
    return "; ".join(mistake.removeprefix("--sink: ") for mistake in caught.value.mistakes)


# --- URLs ---


@pytest.mark.parametrize(
    ("url", "servers", "tls"),
    [
        ("kafka://h1:1,h2:2/events", ("h1:1", "h2:2"), False),
        ("kafka://h1/events", ("h1",), False),
        ("KAFKA://h1:65535/events", ("h1:65535",), False),
        ("kafkas://[fe80::1]:9093,10.0.0.1/events", ("[fe80::1]:9093", "10.0.0.1"), True),
        (" kafka://h1:1/events ", ("h1:1",), False),
    ],
)
def test_urls_of_kafka(url: str, servers: tuple[str, ...], tls: bool) -> None:
    made = sink(url)
    assert isinstance(made, KafkaSettings)
    assert (made.servers, made.topic, made.tls.enabled) == (servers, "events", tls)
    assert (made.create, made.partitions, made.replicas, made.state_topic) == (True, 1, None, None)
    assert (made.encoding, made.cloudevents, made.compression) == ("json", "binary", "none")
    assert made.timeout == timedelta(seconds=30)
    assert made.called == "kafka/events"


@pytest.mark.parametrize(
    "url",
    [
        "kafka:",
        "kafka:h1/events",
        "kafka://",
        "kafka://h1:1",
        "kafka://h1:1/",
        "kafka:///events",
        "kafka://h1:1/events?acks=1",
        "kafka://h1:1/events#x",
        f"kafka://user:{SECRET}@h1:1/events",
        f"kafkas://{SECRET}@h1:1,h2:1/events",
    ],
)
def test_urls_that_are_no_kafka_say_how_to_write_one(url: str) -> None:
    assert "write it as kafka://HOST:PORT,HOST:PORT/TOPIC (kafkas:// for TLS)" in mistake(url)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:/var/x.jsonl", "/var/x.jsonl"),
        ("file:///var/x.jsonl", "/var/x.jsonl"),
        ("file:x.jsonl", f"{os.getcwd()}/x.jsonl"),
        ("file:/a/../b c/größe?#", "/b c/größe?#"),
    ],
)
def test_urls_of_files(url: str, path: str) -> None:
    made = sink(url)
    assert isinstance(made, FileSettings)
    assert (made.path, made.max_bytes, made.keep) == (path, 104_857_600, 5)
    assert made.called == f"file/{path}"


@pytest.mark.parametrize("url", ["file:", "file://", "file://host/path"])
def test_urls_that_are_no_file_say_how_to_write_one(url: str) -> None:
    assert "write it as file:PATH" in mistake(url)


@pytest.mark.parametrize("path", ["x.jsonl", "", "/var/", "/a\nb"])
def test_a_file_has_an_absolute_path(path: str) -> None:
    assert "absolute path of a file" in mistake({"type": "file", "path": path})


@given(st.text())
def test_no_url_is_more_than_a_mistake(rest: str) -> None:
    for scheme in ("kafka", "kafkas", "file", "stdout", rest):
        try:
            settings = from_url(f"{scheme}:{rest}")
        except ValueError:
            continue
        assert settings["type"] in ("kafka", "file", "stdout")


@given(st.text(min_size=1), st.text(min_size=1))
def test_what_is_in_a_url_ends_up_in_the_settings_or_is_refused(servers: str, topic: str) -> None:
    try:
        made = sink(f"kafka://{servers}/{topic}")
    except SettingsError:
        return
    assert ",".join(made.servers) == servers.lstrip() or servers != servers.strip()
    assert all(1 <= host_and_port(server, 9092)[1] <= 65_535 for server in made.servers)


@pytest.mark.parametrize(
    ("server", "meant"),
    [
        ("h", ("h", 9092)),
        ("h:1", ("h", 1)),
        ("[::1]", ("::1", 9092)),
        ("[::1]:5", ("::1", 5)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
    ],
)
def test_servers_have_a_host_and_a_port(server: str, meant: tuple[str, int]) -> None:
    assert host_and_port(server, 9092) == meant


# --- settings ---


def test_everything_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "TYPE": "kafka",
        "NAME": "main",
        "SERVERS": "h1:1, h2:2",
        "TOPIC": "events",
        "CREATE": "false",
        "PARTITIONS": "3",
        "REPLICAS": "2",
        "STATE_TOPIC": "rows",
        "COMPRESSION": "ZSTD",
        "ENCODING": "json",
        "CLOUDEVENTS": "structured",
        "TIMEOUT": "5s",
        "TLS__ENABLED": "true",
        "TLS__CA_FILE": "/ca.pem",
        "SASL__MECHANISM": "SCRAM-SHA-256",
        "SASL__USERNAME": "u",
        "SASL__PASSWORD": SECRET,
    }
    for name, value in values.items():
        monkeypatch.setenv(f"WHALEBRIDGE_SINKS__0__{name}", value)
    (made,) = load().sinks
    assert isinstance(made, KafkaSettings)
    assert made.servers == ("h1:1", "h2:2")
    assert (made.create, made.partitions, made.replicas, made.compression) == (False, 3, 2, "zstd")
    assert (made.tls.ca_file, made.called) == ("/ca.pem", "main")
    assert made.sasl
    assert made.sasl.password
    assert made.sasl.password.get_secret_value() == SECRET
    assert SECRET not in repr(made) + str(made) + made.model_dump_json()


@pytest.mark.parametrize(
    ("more", "path", "text"),
    [
        ({"servers": []}, "servers", "name one server at least"),
        ({"servers": "h:0"}, "servers.0", "HOST:PORT"),
        ({"servers": "h:65536"}, "servers.0", "HOST:PORT"),
        ({"servers": f"u:{SECRET}@h:1"}, "servers.0", "credentials are set elsewhere"),
        ({"servers": "http://h:1"}, "servers.0", "HOST:PORT"),
        ({"topic": "a b"}, "topic", "1 to 249 characters"),
        ({"topic": ".."}, "topic", "1 to 249 characters"),
        ({"topic": "x" * 250}, "topic", "1 to 249 characters"),
        ({"state_topic": "events"}, "", "topic and state_topic are the same"),
        ({"state_topic": "rows", "encoding": "whalewatcher"}, "", "does not go with encoding whalewatcher"),
        ({"partitions": 0}, "partitions", "greater than or equal to 1"),
        ({"replicas": 0}, "replicas", "greater than or equal to 1"),
        ({"compression": "brotli"}, "compression", "'zstd'"),
        ({"cloudevents": "yes"}, "cloudevents", "'binary'"),
        ({"encoding": "xml"}, "encoding", "'whalewatcher'"),
        ({"timeout": "30"}, "timeout", "whole number and its unit"),
        ({"timeout": "11m"}, "timeout", "from 1s to 10m"),
        ({"max_request_size": 1}, "max_request_size", "greater than or equal to 16384"),
        ({"acks": 1}, "acks", "no such setting"),
        ({"tls": {"ca_file": "/ca"}}, "tls", "not turned on"),
        ({"tls": {"enabled": True, "key_file": "/k"}}, "tls", "key_file without a cert_file"),
        ({"tls": {"enabled": True, "key_password": SECRET}}, "tls", "no cert_file"),
        (
            {"tls": {"enabled": True, "cert_file": "/c", "key_password": SECRET, "key_password_file": "/p"}},
            "tls",
            "set one of key_password and key_password_file, not both",
        ),
        ({"sasl": {"mechanism": "plain"}}, "sasl", "plain needs a username"),
        ({"sasl": {"mechanism": "gssapi"}}, "sasl.mechanism", "'oauthbearer'"),
        ({"sasl": {"mechanism": "plain", "username": "u"}}, "sasl", "set password or password_file"),
        ({"sasl": SASL | {"password_file": "/p"}}, "sasl", "not both"),
        ({"sasl": SASL | {"token_file": "/t"}}, "sasl", "token_file is for oauthbearer"),
        ({"sasl": {"mechanism": "oauthbearer"}}, "sasl", "oauthbearer needs a token_file"),
        ({"sasl": SASL | {"mechanism": "oauthbearer", "token_file": "/t"}}, "sasl", "neither username nor password"),
    ],
)
def test_mistakes_of_kafka(more: dict[str, Any], path: str, text: str) -> None:
    told = mistake(KAFKA | more)
    assert told.startswith(f"sinks.0.{path}".rstrip(".") + ": ")
    assert text in told


def test_every_mistake_is_told_at_once() -> None:
    told = mistake({"type": "kafka", "topic": "", "compression": "x", "sasl": {"mechanism": "plain"}})
    assert [part.partition(":")[0] for part in told.split("; ")] == [
        "sinks.0.servers",
        "sinks.0.topic",
        "sinks.0.compression",
        "sinks.0.sasl",
    ]


@pytest.mark.parametrize("sinks", [["kafka://h/t", "kafka://g/t"], ["file:/x", "file:/x"], [KAFKA, KAFKA]])
def test_sinks_that_would_be_called_the_same_need_a_name(sinks: list[Any]) -> None:
    with pytest.raises(SettingsError, match="give each a name"):
        load({"sinks": sinks})
    named = [{**(from_url(each) if isinstance(each, str) else each), "name": f"n{n}"} for n, each in enumerate(sinks)]
    assert [each.called for each in load({"sinks": named}).sinks] == ["n0", "n1"]


@pytest.mark.parametrize("settings", [17, None, [], {}, {"topic": "t"}, {"type": 5}])
def test_what_is_no_sink_is_told_of(settings: object) -> None:
    assert mistake(settings).startswith("sinks.0")
