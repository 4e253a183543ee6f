"""Test the values of the configuration file; see test_validation_errors.py for invalid files."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from config.settings import load
from config.sinks import KafkaSettings, NatsSettings

ConfigFile = Callable[[str | bytes], str]


@pytest.mark.parametrize(
    "text", ["", "# nothing\n", "---\n", "--- # nothing\n", "null", "log:\nhttp:\n", "\ufeffhost: a"]
)
def test_empty_configuration_file_and_groups_are_ignored(text: str, config_file: ConfigFile) -> None:
    settings = load({"host": "a"}, config_file(text))
    assert settings == load({"host": "a"})


def test_yaml_values_are_parsed_as_text_by_settings(config_file: ConfigFile) -> None:
    settings = load(
        path=config_file(
            """
            host: 007
            heartbeat: {interval: off}
            outbox: {max_records: "5000", max_bytes: 2000000}
            containers: {names: {include: [yes, 1e3, 2026-01-01, 1:30, ~x]}}
            sinks:
              main:
                type: kafka
                bootstrap_servers: 10.0.0.1:22
                topic: 123
                auto_create: no
                compression: none
                replication_factor: null
                tls: {enabled: Yes}
                auth: {mechanism: PLAIN, username: 0x10, password: 0123}
            """
        )
    )
    assert settings.host == "007"
    assert settings.heartbeat.interval is None
    assert (settings.outbox.max_records, settings.outbox.max_bytes) == (5000, 2_000_000)
    assert settings.containers.names.include == ("yes", "1e3", "2026-01-01", "1:30", "~x")
    sink = settings.sinks["main"]
    assert isinstance(sink, KafkaSettings)
    assert (sink.topic, sink.bootstrap_servers) == ("123", ("10.0.0.1:22",))
    assert (sink.auto_create, sink.replication_factor) == (False, None)
    assert sink.tls.enabled
    assert sink.auth
    assert sink.auth.username == "0x10"
    assert sink.auth.password
    assert sink.auth.password.get_secret_value() == "0123"


def test_sinks_share_settings_by_anchor(config_file: ConfigFile) -> None:
    text = """
    sinks:
      a: {type: kafka, bootstrap_servers: h, topic: t, tls: &tls {enabled: true, ca_file: /ca}}
      b: {type: nats, servers: h, subject_prefix: s, tls: *tls}
    """
    sinks = load(path=config_file(text)).sinks
    assert isinstance(sinks["a"], KafkaSettings)
    assert isinstance(sinks["b"], NatsSettings)
    assert sinks["a"].tls.ca_file == sinks["b"].tls.ca_file == "/ca"


def test_environment_overrides_file_and_options_override_both(
    config_file: ConfigFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = config_file("log: {level: error, format: json}\nsnapshot: {interval: 1h}\nnamespaces: {include: [a, b]}\n")
    monkeypatch.setenv("WHALEBRIDGE_LOG__LEVEL", "warning")
    monkeypatch.setenv("WHALEBRIDGE_SNAPSHOT__INTERVAL", "2h")
    settings = load({"snapshot": {"interval": "3h"}, "namespaces": {"include": ["c"]}}, path)
    assert (settings.log.level, settings.log.format) == ("warning", "json")
    assert settings.snapshot.interval == timedelta(hours=3)
    assert settings.namespaces.include == ("c",)


def test_configuration_file_is_read_on_each_load(config_file: ConfigFile) -> None:
    assert load(path=config_file("host: a")).host == "a"
    assert load(path=config_file("host: b")).host == "b"
