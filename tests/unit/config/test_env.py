from __future__ import annotations

import pytest

from config.environment import source, variable
from config.settings import Settings

KUBERNETES = {
    "WHALEBRIDGE_SERVICE_HOST": "10.0.0.1",
    "WHALEBRIDGE_SERVICE_PORT": "9469",
    "WHALEBRIDGE_SERVICE_PORT_HTTP": "9469",
    "WHALEBRIDGE_PORT": "tcp://10.0.0.1:9469",
    "WHALEBRIDGE_PORT_9469_TCP": "tcp://10.0.0.1:9469",
    "WHALEBRIDGE_PORT_9469_TCP_ADDR": "10.0.0.1",
    "WHALEBRIDGE_HTTP_SERVICE_HOST": "10.0.0.1",
    "WHALEBRIDGE_LOG_PORT_80_TCP_PROTO": "tcp",
}


def test_names_are_nested_by_double_underscores_in_lower_case() -> None:
    environ = {
        "WHALEBRIDGE_HOST": "node-1",
        "WHALEBRIDGE_LOG__LEVEL": "Debug",
        "WHALEBRIDGE_LOG__FORMAT": "json",
        "WHALEBRIDGE_SINKS__0__TYPE": "stdout",
        "PATH": "/bin",
    }
    read = source(Settings, environ)
    assert read() == {
        "host": "node-1",
        "log": {"level": "Debug", "format": "json"},
        "sinks": {"0": {"type": "stdout"}},
    }
    assert read.places(("log", "level")) == ["WHALEBRIDGE_LOG__LEVEL"]
    assert read.places(("log",)) == ["WHALEBRIDGE_LOG__FORMAT", "WHALEBRIDGE_LOG__LEVEL"]
    assert read.mistakes == ()


def test_names_that_kubernetes_makes_of_a_service_are_left_alone() -> None:
    read = source(Settings, KUBERNETES)
    assert (read(), read.mistakes) == ({}, ())


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("WHALEBRIDGE_LOG_LEVEL", "WHALEBRIDGE_LOG__LEVEL"),
        ("WHALEBRIDGE_STATE_DR", "WHALEBRIDGE_STATE_DIR"),
        ("WHALEBRIDGE_STATEDIR", "WHALEBRIDGE_STATE_DIR"),
        ("WHALEBRIDGE_SINK", "WHALEBRIDGE_SINKS"),
        ("WHALEBRIDGE_SINKS_3_TOPIC", "WHALEBRIDGE_SINKS__3__TOPIC"),
        ("WHALEBRIDGE_SINKS_0_SASL_PASSWORD_FILE", "WHALEBRIDGE_SINKS__0__SASL__PASSWORD_FILE"),
    ],
)
def test_a_name_that_looks_like_a_setting_is_a_mistake(name: str, meant: str) -> None:
    (mistake,) = source(Settings, {name: "canary"}).mistakes
    assert mistake == f"{name}: there is no such setting; did you mean {meant}?"


def test_a_misspelt_group_comes_along_to_be_complained_of() -> None:
    assert source(Settings, {"WHALEBRIDGE_LGO__LEVEL": "debug"})() == {"lgo": {"level": "debug"}}


def test_a_value_for_a_group_hides_nothing() -> None:
    environ = {"WHALEBRIDGE_LOG": "debug", "WHALEBRIDGE_LOG__LEVEL": "info"}
    read = source(Settings, environ)
    assert read() == {"log": "debug"}
    assert read.mistakes == ("WHALEBRIDGE_LOG__LEVEL: WHALEBRIDGE_LOG has a value as a whole; set one of the two",)


def test_settings_of_a_sink_join_its_url() -> None:
    environ = {"WHALEBRIDGE_SINKS__0": "kafka://h:1/t", "WHALEBRIDGE_SINKS__0__COMPRESSION": "zstd"}
    assert source(Settings, environ)() == {
        "sinks": {"0": {"type": "kafka", "servers": ["h:1"], "topic": "t", "compression": "zstd"}}
    }


def test_variables_are_named_after_paths() -> None:
    assert variable("sinks.0.sasl.password_file") == "WHALEBRIDGE_SINKS__0__SASL__PASSWORD_FILE"
