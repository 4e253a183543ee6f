from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.settings import SettingsError, load
from config.sinks import FileSettings, KafkaSettings, NatsSettings, SinkSettings, StdoutSettings, parse_url
from config.sinks.common import host_and_port

SECRET = "hunter2-swordfish"  # noqa: S105 (not a real secret)
KAFKA = {"type": "kafka", "bootstrap_servers": "h1:9092", "topic": "events"}
NATS = {"type": "nats", "servers": "h1", "subject_prefix": "events"}
ConfigFile = Callable[[str | bytes], str]


def sink(settings: object) -> SinkSettings:
    return load({"sinks": {"main": settings}}).sinks["main"]


# --- sinks by id ---


@pytest.mark.parametrize(
    ("urls", "ids"),
    [
        (["stdout:"], {"stdout": "stdout"}),
        (["kafka://h/t", "tls://h/s"], {"kafka": "kafka", "nats": "nats"}),
        (["kafkas://h/t"], {"kafka": "kafka"}),
        (["main=kafka://h/t", "kafka://h/t"], {"main": "kafka", "kafka": "kafka"}),
        (["a=file:/x", "b_2=file:/y", "c-3=stdout:"], {"a": "file", "b_2": "file", "c-3": "stdout"}),
        (["file:/a=b"], {"file": "file"}),
        (["a=file:/b=c"], {"a": "file"}),
    ],
)
def test_sink_option_takes_id_or_type_as_id(urls: list[str], ids: dict[str, str]) -> None:
    assert {id_: sink.type for id_, sink in load({"sinks": urls}).sinks.items()} == ids


@pytest.mark.parametrize(
    "environment",
    [
        {"WHALEBRIDGE_SINKS": "main=stdout:"},
        {"WHALEBRIDGE_SINKS__MAIN": "stdout:"},
        {"WHALEBRIDGE_SINKS__MAIN__TYPE": "stdout"},
    ],
)
def test_environment_sets_sinks_by_id(environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load().sinks == {"main": StdoutSettings()}


@pytest.mark.parametrize("sink_text", ["{type: kafka, bootstrap_servers: h, topic: t}", "kafka://h/t"])
def test_environment_sets_members_of_sinks_in_file(
    sink_text: str, config_file: ConfigFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WHALEBRIDGE_SINKS__B__AUTH__USERNAME", "u")
    monkeypatch.setenv("WHALEBRIDGE_SINKS__B__AUTH__PASSWORD_FILE", "/p")
    monkeypatch.setenv("WHALEBRIDGE_SINKS__C", "stdout:")
    sinks = load(path=config_file(f"sinks:\n a: nats://h/s\n b: {sink_text}\n")).sinks
    assert {id_: sink.type for id_, sink in sinks.items()} == {"a": "nats", "b": "kafka", "c": "stdout"}
    assert isinstance(sinks["b"], KafkaSettings)
    assert sinks["b"].auth
    assert (sinks["b"].auth.username, sinks["b"].auth.password_file) == ("u", "/p")


def test_environment_url_replaces_one_sink_of_file(config_file: ConfigFile, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config_file("sinks: {a: {type: kafka, bootstrap_servers: h, topic: t, partitions: 5}, b: 'stdout:'}")
    monkeypatch.setenv("WHALEBRIDGE_SINKS__A", "kafka://g/u")
    sinks = load(path=path).sinks
    assert list(sinks) == ["a", "b"]
    assert isinstance(sinks["a"], KafkaSettings)
    assert (sinks["a"].topic, sinks["a"].partitions) == ("u", 1)


def test_sink_option_and_variable_replace_all_sinks(config_file: ConfigFile, monkeypatch: pytest.MonkeyPatch) -> None:
    path = config_file("sinks: {main: kafka://h/t}")
    monkeypatch.setenv("WHALEBRIDGE_SINKS", "nats://h/s main=stdout:")
    assert {id_: sink.type for id_, sink in load(path=path).sinks.items()} == {"nats": "nats", "main": "stdout"}
    assert list(load({"sinks": ["file:/x"]}, path).sinks) == ["file"]


def test_sink_option_replaces_members_from_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHALEBRIDGE_SINKS__KAFKA__COMPRESSION", "zstd")
    settings = load({"sinks": ["kafka://h/t"]}).sinks["kafka"]
    assert isinstance(settings, KafkaSettings)
    assert settings.compression == "none"


def test_order_of_sinks_does_not_matter() -> None:
    first, second = ({"a": "stdout:", "b": "kafka://h/t"}, {"b": "kafka://h/t", "a": "stdout:"})
    assert load({"sinks": first}).sinks == load({"sinks": second}).sinks


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
def test_kafka_url_sets_servers_topic_and_tls(url: str, servers: tuple[str, ...], tls: bool) -> None:
    settings = sink(url)
    assert isinstance(settings, KafkaSettings)
    assert (settings.bootstrap_servers, settings.topic, settings.tls.enabled) == (servers, "events", tls)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("file:/var/x.jsonl", "/var/x.jsonl"),
        ("file:///var/x.jsonl", "/var/x.jsonl"),
        ("file:x.jsonl", f"{os.getcwd()}/x.jsonl"),
        ("file:/a/../b c/größe?#", "/b c/größe?#"),
    ],
)
def test_file_url_sets_absolute_path(url: str, path: str) -> None:
    settings = sink(url)
    assert isinstance(settings, FileSettings)
    assert settings.path == path


@given(st.text())
def test_any_sink_url_is_parsed_or_raises_value_error(rest: str) -> None:
    for scheme in ("kafka", "kafkas", "file", "stdout", rest):
        try:
            settings = parse_url(f"{scheme}:{rest}")
        except ValueError:
            continue
        assert settings["type"] in ("kafka", "file", "stdout")


@given(st.text(min_size=1), st.text(min_size=1))
def test_kafka_url_keeps_servers_and_topic_or_is_rejected(servers: str, topic: str) -> None:
    try:
        settings = sink(f"kafka://{servers}/{topic}")
    except SettingsError:
        return
    assert isinstance(settings, KafkaSettings)
    assert ",".join(settings.bootstrap_servers) == servers.lstrip() or servers != servers.strip()
    assert all(1 <= host_and_port(server, 9092)[1] <= 65_535 for server in settings.bootstrap_servers)


@given(st.text())
def test_any_sink_option_loads_or_raises_settings_error(text: str) -> None:
    try:
        sinks = load({"sinks": [text]}).sinks
    except SettingsError:
        return
    assert len(sinks) == 1


@pytest.mark.parametrize(
    ("server", "parts"),
    [
        ("h", ("h", 9092)),
        ("h:1", ("h", 1)),
        ("[::1]", ("::1", 9092)),
        ("[::1]:5", ("::1", 5)),
        ("10.0.0.1:1", ("10.0.0.1", 1)),
    ],
)
def test_server_is_split_into_host_and_port(server: str, parts: tuple[str, int]) -> None:
    assert host_and_port(server, 9092) == parts


# --- settings ---


def test_environment_sets_every_kafka_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {
        "TYPE": "kafka",
        "BOOTSTRAP_SERVERS": "h1:1, h2:2",
        "TOPIC": "events",
        "AUTO_CREATE": "false",
        "PARTITIONS": "3",
        "REPLICATION_FACTOR": "2",
        "STATE_TOPIC": "state",
        "COMPRESSION": "ZSTD",
        "ENCODING": "json",
        "CLOUDEVENTS": "structured",
        "REQUEST_TIMEOUT": "5s",
        "TLS__ENABLED": "true",
        "TLS__CA_FILE": "/ca.pem",
        "AUTH__MECHANISM": "SCRAM-SHA-256",
        "AUTH__USERNAME": "u",
        "AUTH__PASSWORD": SECRET,
    }
    for name, value in values.items():
        monkeypatch.setenv(f"WHALEBRIDGE_SINKS__MAIN__{name}", value)
    settings = load().sinks["main"]
    assert isinstance(settings, KafkaSettings)
    assert settings.bootstrap_servers == ("h1:1", "h2:2")
    assert (settings.auto_create, settings.partitions, settings.replication_factor) == (False, 3, 2)
    assert (settings.compression, settings.tls.ca_file) == ("zstd", "/ca.pem")
    assert settings.auth
    assert settings.auth.password
    assert settings.auth.password.get_secret_value() == SECRET
    assert SECRET not in repr(settings) + str(settings) + settings.model_dump_json()


@pytest.mark.parametrize(
    ("settings", "name", "default"),
    [(KAFKA, "request_timeout", 30), (NATS, "timeout", 10), ({"type": "stdout"}, "", None)],
)
def test_attempt_timeout_is_limited_when_sink_has_timeout(
    settings: dict[str, str], name: str, default: int | None
) -> None:
    loaded = sink(settings)
    if default is None:
        assert loaded.attempt_timeout is None
        assert loaded.limit_timeout(timedelta(seconds=1)) is loaded
        return
    assert loaded.attempt_timeout == getattr(loaded, name) == timedelta(seconds=default)
    assert loaded.limit_timeout(timedelta(seconds=6)).attempt_timeout == timedelta(seconds=6)
    assert loaded.limit_timeout(timedelta(minutes=6)) == loaded


def test_nats_settings_have_no_kafka_timeout() -> None:
    assert isinstance(sink(NATS), NatsSettings)
    with pytest.raises(SettingsError):
        sink(NATS | {"request_timeout": "1s"})
