from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from config.setting_groups import LabelsSettings
from config.settings import Settings, load
from config.sinks import FileSettings, HttpSinkSettings, KafkaSettings, NatsSettings, StdoutSettings
from config.sinks.kafka import KafkaAuthSettings


def test_host_and_sink_have_defaults() -> None:
    """docs/configuration.md has all other defaults, and test_docs.py compares it with the settings."""
    settings = load()
    assert settings.host == socket.gethostname()
    assert settings.sinks == {"stdout": StdoutSettings()}


def test_options_override_single_settings_of_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHALEBRIDGE_LOG__LEVEL", "ERROR")
    monkeypatch.setenv("WHALEBRIDGE_LOG__FORMAT", "json")
    monkeypatch.setenv("WHALEBRIDGE_NAMESPACES__INCLUDE", "a*, b")
    monkeypatch.setenv("WHALEBRIDGE_CONTAINERS__KINDS", "sandbox")
    settings = load({"log": {"level": "debug"}})
    assert (settings.log.level, settings.log.format) == ("debug", "json")
    assert settings.namespaces.include == ("a*", "b")
    assert settings.containers.kinds == ("sandbox",)


@pytest.mark.parametrize(("text", "seconds"), [("1s", 1), ("90s", 90), ("15m", 900), (" 6h ", 21600), ("30d", 2592000)])
def test_duration_is_parsed_with_unit(text: str, seconds: int) -> None:
    assert load({"snapshot": {"interval": text}}).snapshot.interval == timedelta(seconds=seconds)


@pytest.mark.parametrize("address", ["/run/c.sock", "unix:///run/c.sock"])
def test_containerd_address_is_path_or_unix_url(address: str) -> None:
    assert load({"containerd": {"address": address}}).containerd.address == "/run/c.sock"


def test_duration_accepts_timedelta() -> None:
    interval = timedelta(minutes=5)
    assert load({"snapshot": {"interval": interval}}).snapshot.interval == interval


def test_attributes_are_merged_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("attributes: {cluster: prod-1, rack: 012}")
    monkeypatch.setenv("WHALEBRIDGE_ATTRIBUTES__CLUSTER", "prod-2")
    monkeypatch.setenv("WHALEBRIDGE_ATTRIBUTES__REGION", "eu west é")
    assert load(path=str(path)).attributes == {"cluster": "prod-2", "rack": "012", "region": "eu west é"}
    assert load().attributes == {"cluster": "prod-2", "region": "eu west é"}


def test_settings_are_immutable() -> None:
    with pytest.raises(ValidationError):
        load().log.level = "debug"


def fields(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    for name, schema in model.model_json_schema()["properties"].items():
        field = model.model_fields[name]
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from fields(field.annotation, f"{path}{name}.")
        else:
            yield path + name, schema


def test_every_setting_has_a_description() -> None:
    documented = dict(fields(Settings))
    for model in (StdoutSettings, FileSettings, KafkaSettings, KafkaAuthSettings, NatsSettings, HttpSinkSettings):
        documented |= dict(fields(model, f"{model.__name__}."))
    assert "snapshot.interval" in documented
    assert [path for path, schema in documented.items() if not schema.get("description")] == []


def test_default_label_globs_keep_names_and_redact_passwords() -> None:
    labels = LabelsSettings()
    assert "nerdctl/name" in labels.include
    assert "nerdctl/*" in labels.exclude
    assert "*passw*" in labels.redact


@pytest.mark.parametrize("glob", ["k8s.io", "a", "shop-*", "*", "?x*", "[a-c]b", "[!_]*", "*." + "x" * 75])
def test_namespace_globs_that_can_match_are_accepted(glob: str) -> None:
    assert load({"namespaces": {"include": glob, "exclude": glob}}).namespaces.include == (glob,)


@pytest.mark.parametrize("given", [["a,b", "c"], ["a", "b", "c"], ["a, b ,c"]])
def test_lists_are_the_same_in_options_and_environment(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHALEBRIDGE_NAMESPACES__EXCLUDE", ",".join(given))
    settings = load({"namespaces": {"include": given}})
    assert settings.namespaces.include == settings.namespaces.exclude == ("a", "b", "c")
