from __future__ import annotations

from config.environment import from_environment

KNOWN = {"host", "log", "sinks"}


def test_names_are_nested_by_double_underscores_in_lower_case() -> None:
    environ = {
        "WHALEBRIDGE_HOST": "node-1",
        "WHALEBRIDGE_LOG__LEVEL": "Debug",
        "WHALEBRIDGE_LOG__FORMAT": "json",
        "WHALEBRIDGE_SINKS__0__TYPE": "stdout",
        "PATH": "/bin",
    }
    assert from_environment(environ, KNOWN) == {
        "host": "node-1",
        "log": {"level": "Debug", "format": "json"},
        "sinks": {"0": {"type": "stdout"}},
    }


def test_names_that_kubernetes_makes_of_a_service_are_left_alone() -> None:
    environ = {
        "WHALEBRIDGE_SERVICE_HOST": "10.0.0.1",
        "WHALEBRIDGE_PORT": "tcp://10.0.0.1:9469",
        "WHALEBRIDGE_PORT_9469_TCP": "tcp://10.0.0.1:9469",
    }
    assert from_environment(environ, KNOWN) == {}


def test_a_misspelt_group_comes_along_to_be_complained_of() -> None:
    assert from_environment({"WHALEBRIDGE_LGO__LEVEL": "debug"}, KNOWN) == {"lgo": {"level": "debug"}}


def test_a_value_for_a_group_hides_nothing() -> None:
    environ = {"WHALEBRIDGE_LOG": "debug", "WHALEBRIDGE_LOG__LEVEL": "info"}
    assert from_environment(environ, KNOWN) == {"log": "debug", "log__level": "info"}
