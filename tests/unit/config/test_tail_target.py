from __future__ import annotations

from typing import Any

import pytest
from pydantic import TypeAdapter

from config.reading import source
from config.sinks import KafkaSettings, NatsSettings, Sinks

SINKS = TypeAdapter(Sinks).validate_python(
    [
        {"type": "stdout"},
        {
            "type": "kafka",
            "servers": "k1:9093,k2",
            "topic": "containers",
            "tls": {"enabled": True, "ca_file": "/ca"},
            "sasl": {"username": "one", "password": "secret-1"},
            "timeout": "9s",
            "partitions": 5,
        },
        {"type": "kafka", "servers": "k1:9093", "topic": "other", "sasl": {"username": "two", "password": "secret-2"}},
        {
            "type": "nats",
            "servers": "n1,n2",
            "subject": "events",
            "mode": "core",
            "login": {"token": "secret-3"},
            "domain": "HUB",
        },
    ]
)


def user(url: str) -> str | None:
    settings = source(url, SINKS)
    assert isinstance(settings, KafkaSettings)
    return settings.sasl.username if settings.sasl else None


def test_a_reader_gets_in_as_the_sink_of_the_same_servers() -> None:
    settings: Any = source("kafka://k1:9093/containers", SINKS)
    assert (settings.servers, settings.topic, settings.partitions) == (("k1:9093",), "containers", 1)
    assert (settings.tls.ca_file, settings.sasl.username, settings.timeout.total_seconds()) == ("/ca", "one", 9)


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("kafka://k2:9092/containers", "one"),
        ("kafka://k2:9092,k1:9093/x", "one"),
        ("kafka://k1:9093/other", "two"),
        ("kafka://k1:9093/third", "one"),
        ("kafka://k1/containers", None),
        ("kafka://k1:9093,stranger/containers", None),
    ],
)
def test_logins_are_for_the_servers_that_they_are_set_for(url: str, told: str | None) -> None:
    assert user(url) == told


def test_tls_that_the_url_asks_for_stays() -> None:
    settings: Any = source("kafkas://k1:9093/other", SINKS)
    assert settings.tls.enabled


def test_what_concerns_the_subject_is_taken_for_that_only() -> None:
    same: Any = source("nats://n1/events", SINKS)
    other: Any = source("nats://n1/others", SINKS)
    assert (same.mode, same.domain, same.subject) == ("core", "HUB", "events")
    assert (other.mode, other.domain, other.stream_name) == ("jetstream", "HUB", "WHALEBRIDGE_OTHERS")
    assert same.login == other.login
    stranger: Any = source("nats://n3/events", SINKS)
    assert stranger == NatsSettings(servers=("n3",), subject="events")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("kafka://u:hunter2@k1/t", "credentials do not belong into a URL"),
        ("kafka://k1/to pic", "topic: a topic's name has 1 to 249 characters"),
        ("nats://n1:99999/s", "servers.0: write a server as HOST:PORT"),
        ("hunter2", "a sink is written as a URL"),
        ("stdout:", "what a sink of type stdout has written cannot be read; - reads standard input"),
    ],
)
def test_mistakes_are_told_without_what_may_be_secret(url: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        source(url, SINKS)
    assert "hunter2" not in str(caught.value)
