from __future__ import annotations

from config.settings import Settings
from config.sources.env import source, variable

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


def test_environment_variable_nests_names_by_double_underscores() -> None:
    environ = {
        "WHALEBRIDGE_HOST": "node-1",
        "WHALEBRIDGE_LOG__LEVEL": "Debug",
        "WHALEBRIDGE_LOG__FORMAT": "json",
        "WHALEBRIDGE_SINKS__MAIN__TYPE": "stdout",
        "PATH": "/bin",
    }
    read = source(Settings, environ)
    assert read.values == {
        "host": "node-1",
        "log": {"level": "Debug", "format": "json"},
        "sinks": {"main": {"type": "stdout"}},
    }
    assert read.locate(("log", "level")) == ["WHALEBRIDGE_LOG__LEVEL"]
    assert read.locate(("log",)) == ["WHALEBRIDGE_LOG__FORMAT", "WHALEBRIDGE_LOG__LEVEL"]
    assert read.errors == []


def test_kubernetes_service_variables_are_ignored() -> None:
    read = source(Settings, KUBERNETES)
    assert (read.values, read.errors) == ({}, [])


def test_sink_settings_are_merged_into_sink_url() -> None:
    environ = {"WHALEBRIDGE_SINKS__MAIN": "kafka://h:1/t", "WHALEBRIDGE_SINKS__MAIN__COMPRESSION": "zstd"}
    assert source(Settings, environ).values == {
        "sinks": {"main": {"type": "kafka", "bootstrap_servers": ["h:1"], "topic": "t", "compression": "zstd"}}
    }


def test_attribute_without_double_underscore_is_an_error() -> None:
    read = source(Settings, {"WHALEBRIDGE_ATTRIBUTES_CLUSTER": "a"})
    assert read.values == {}
    (error,) = read.errors
    assert error.endswith("as in WHALEBRIDGE_ATTRIBUTES__CLUSTER")


def test_environment_variable_is_named_after_settings_path() -> None:
    assert variable("sinks.main.auth.password_file") == "WHALEBRIDGE_SINKS__MAIN__AUTH__PASSWORD_FILE"
