from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn

import pytest
from pydantic import TypeAdapter

from bridge.consumer.reader_factory import resolve
from config.sinks import FileSettings, KafkaSettings, NatsSettings, Sinks, SinkSettings

SINKS: Mapping[str, SinkSettings] = TypeAdapter(Sinks).validate_python(
    {
        "stdout": "stdout:",
        "main": {
            "type": "kafka",
            "bootstrap_servers": "k1:9093,k2",
            "topic": "containers",
            "auth": {"username": "one", "password": "secret-1"},
        },
        "nats": {"type": "nats", "servers": "n1", "subject_prefix": "events", "mode": "core", "domain": "HUB"},
    }
)


def no_sinks() -> NoReturn:
    raise AssertionError("settings loaded for a URL")


@pytest.mark.parametrize("id_", ["main", "nats"])
def test_target_id_selects_configured_sink(id_: str) -> None:
    assert resolve(id_, lambda: SINKS) == SINKS[id_]


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("kafka://k1:9093/containers", KafkaSettings(bootstrap_servers=("k1:9093",), topic="containers")),
        ("nats://n1/events", NatsSettings(servers=("n1",), subject_prefix="events")),
        ("file:/x", FileSettings(path="/x")),
    ],
)
def test_target_url_is_parsed_without_configuration(url: str, settings: SinkSettings) -> None:
    assert resolve(url, no_sinks) == settings


@pytest.mark.parametrize(
    ("target", "named"),
    [
        ("kafka://u:hunter2@k1/t", "credentials"),
        ("kafka://k1/to pic", "topic: "),
        ("nats://n1:99999/s", "servers.0: "),
        ("amqp://h/t", "'amqp'"),
        ("hunter2", "stdout, main, nats"),
        ("stdout", "stdout"),
        ("stdout:", "stdout"),
    ],
)
def test_invalid_target_is_rejected_without_secrets(target: str, named: str) -> None:
    with pytest.raises(ValueError, match=named) as caught:
        resolve(target, lambda: SINKS)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
