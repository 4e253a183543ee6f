from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from config.sections import LabelsSettings
from config.settings import Settings, SettingsError, load
from config.sinks import FileSettings, KafkaSettings, NatsSettings, StdoutSettings
from config.sinks.kafka import SaslSettings


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WHALEBRIDGE_"):
            monkeypatch.delenv(name)


def mistakes(flags: dict[str, Any]) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(flags)
    return [re.sub("^--[a-z-]+: ", "", mistake) for mistake in caught.value.mistakes]


# --- values and where they come from ---


def test_defaults() -> None:
    settings = load()
    assert settings.host == socket.gethostname()
    assert settings.containerd.address == "/run/containerd/containerd.sock"
    assert settings.namespaces.include == ("*",)
    assert settings.namespaces.exclude == ()
    assert settings.containers.kinds == ("container",)
    assert settings.containers.extras == ()
    assert settings.heartbeat.interval == timedelta(seconds=60)
    assert settings.http.listen == "127.0.0.1:9469"
    assert settings.sinks == (StdoutSettings(),)
    assert settings.snapshot.interval == timedelta(hours=6)
    assert (settings.log.level, settings.log.format) == ("info", "auto")


def test_flags_beat_the_environment_and_leave_the_rest_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHALEBRIDGE_LOG__LEVEL", "ERROR")
    monkeypatch.setenv("WHALEBRIDGE_LOG__FORMAT", "json")
    monkeypatch.setenv("WHALEBRIDGE_NAMESPACES__INCLUDE", "a*, b")
    monkeypatch.setenv("WHALEBRIDGE_NAMESPACES__EXCLUDE__0", "c,d")
    monkeypatch.setenv("WHALEBRIDGE_CONTAINERS__KINDS", "sandbox")
    settings = load({"log": {"level": "debug"}})
    assert (settings.log.level, settings.log.format) == ("debug", "json")
    assert settings.namespaces.include == ("a*", "b")
    assert settings.namespaces.exclude == ("c,d",)
    assert settings.containers.kinds == ("sandbox",)


@pytest.mark.parametrize(
    "environ",
    [
        {"WHALEBRIDGE_SINKS": "stdout:"},
        {"WHALEBRIDGE_SINKS__0": "stdout:"},
        {"WHALEBRIDGE_SINKS__0__TYPE": "stdout"},
    ],
)
def test_sinks_from_the_environment(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert load().sinks == (StdoutSettings(),)


@pytest.mark.parametrize(
    ("written", "meant"), [("1s", 1), ("90s", 90), ("15m", 900), (" 6h ", 21600), ("30d", 2592000)]
)
def test_durations_have_a_unit(written: str, meant: int) -> None:
    assert load({"snapshot": {"interval": written}}).snapshot.interval == timedelta(seconds=meant)


@pytest.mark.parametrize("written", ["/run/c.sock", "unix:///run/c.sock"])
def test_addresses_of_containerd(written: str) -> None:
    assert load({"containerd": {"address": written}}).containerd.address == "/run/c.sock"


def test_a_duration_may_be_one_already() -> None:
    interval = timedelta(minutes=5)
    assert load({"snapshot": {"interval": interval}}).snapshot.interval == interval


def test_settings_never_change() -> None:
    with pytest.raises(ValidationError):
        load().log.level = "debug"


# --- mistakes ---


@pytest.mark.parametrize(
    ("flags", "path", "text"),
    [
        ({"snapshot": {"interval": "6"}}, "snapshot.interval", "whole number and its unit"),
        ({"snapshot": {"interval": "6.5h"}}, "snapshot.interval", "whole number and its unit"),
        ({"snapshot": {"interval": "0s"}}, "snapshot.interval", "from 1s to 30d"),
        ({"snapshot": {"interval": "31d"}}, "snapshot.interval", "from 1s to 30d"),
        ({"log": {"level": "loud"}}, "log.level", "'debug', 'info', 'warning' or 'error'"),
        ({"log": "debug"}, "log", "group of settings"),
        ({"log": {"levl": "debug"}}, "log.levl", "no such setting"),
        ({"lgo": {"level": "debug"}}, "lgo", "no such setting"),
        ({"containerd": {"address": "tcp://127.0.0.1:1"}}, "containerd.address", "absolute path"),
        ({"containerd": {"address": "run/c.sock"}}, "containerd.address", "absolute path"),
        ({"containerd": {"address": ""}}, "containerd.address", "absolute path"),
        ({"containerd": {"address": "/" + "x" * 107}}, "containerd.address", "107 bytes"),
        ({"namespaces": {"include": [""]}}, "namespaces.include.0", "at least one character"),
        ({"namespaces": {"include": []}}, "namespaces.include", "it is empty"),
        ({"containers": {"names": {"include": []}}}, "containers.names.include", "it is empty"),
        ({"containers": {"projects": {"include": ""}}}, "containers.projects.include", "it is empty"),
        ({"namespaces": {"include": ' ["a", "b"]'}}, "namespaces.include", "parted by commas, without brackets"),
        ({"host": "a b"}, "host", "no spaces"),
        ({"host": ""}, "host", "no spaces"),
        ({"host": "a/b"}, "host", "no spaces"),
        ({"sinks": []}, "sinks", "one sink at least"),
        ({"sinks": ["stdout:", "stdout:"]}, "sinks", "twice"),
        ({"sinks": ["stdout"]}, "sinks.0", "known schemes: stdout:"),
        ({"sinks": ["kafak://h/t"]}, "sinks.0", "unknown scheme 'kafak'; known schemes: stdout:"),
        ({"sinks": ["stdout:x"]}, "sinks.0", "nothing may follow"),
        ({"sinks": [{"type": "kafak"}]}, "sinks.0.type", "unknown type 'kafak'; known types: stdout"),
        ({"sinks": [{"type": "stdout", "topic": "t"}]}, "sinks.0.topic", "no such setting"),
    ],
)
def test_a_mistake_is_told_with_its_path(flags: dict[str, Any], path: str, text: str) -> None:
    (mistake,) = mistakes(flags)
    assert mistake.startswith(f"{path}: ")
    assert text in mistake


def test_every_mistake_is_listed_wherever_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHALEBRIDGE_CONTAINERS__KINDS", "perhaps")
    monkeypatch.setenv("WHALEBRIDGE_LGO__LEVEL", "debug")
    told = mistakes({"log": {"level": "loud"}, "sinks": ["a:", "b:"], "host": ""})
    paths = sorted(mistake.rpartition(": ")[0].partition(": unknown")[0] for mistake in told)
    assert paths == [
        "WHALEBRIDGE_CONTAINERS__KINDS: containers.kinds.0",
        "WHALEBRIDGE_LGO__LEVEL: lgo",
        "host",
        "log.level",
        "sinks.0",
        "sinks.1",
    ]


@pytest.mark.parametrize("url", ["kafka://user:hunter2@h/t", "stdout://user:hunter2@h", "hunter2"])
def test_no_mistake_repeats_what_may_be_secret(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load({"sinks": [url]})
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


# --- the documentation of each field ---


def fields(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, schema in model.model_json_schema()["properties"].items():
        field = model.model_fields[name]
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{path}{name}.")
        else:
            yield path + name, schema


def test_every_field_is_documented_with_its_reason() -> None:
    documented = dict(fields(Settings))
    for model in (StdoutSettings, FileSettings, KafkaSettings, SaslSettings, NatsSettings):
        documented |= dict(fields(model, f"{model.__name__}."))
    assert "snapshot.interval" in documented
    assert [
        path for path, schema in documented.items() if not (schema.get("description") and schema.get("reason"))
    ] == []


def test_label_defaults_are_globs_that_do_something() -> None:
    labels = LabelsSettings()
    assert "nerdctl/name" in labels.include
    assert "nerdctl/*" in labels.exclude
    assert "*passw*" in labels.redact
