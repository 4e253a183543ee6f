"""Secrets are in no message and no representation, wherever they come from and whatever else is wrong."""

from __future__ import annotations

import os
import traceback
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, SecretStr

from config import names
from config.settings import Settings, SettingsError, load
from config.sinks import BUILT_IN

CANARY = "canary-7f3a"
MINIMUM: dict[str, dict[str, Any]] = {
    "stdout": {"type": "stdout"},
    "file": {"type": "file", "path": "/x"},
    "kafka": {"type": "kafka", "servers": ["h"], "topic": "t"},
    "nats": {"type": "nats", "servers": ["h"], "subject": "s"},
}


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WHALEBRIDGE_"):
            monkeypatch.delenv(name)


def secrets(model: type[BaseModel]) -> list[str]:
    return [path for path, field in names.fields(model) if "SecretStr" in repr(field.annotation)]


PLACES = [("", path) for path in secrets(Settings)] + [
    (kind, path) for kind in BUILT_IN for path in secrets(BUILT_IN[kind])
]


def nested(path: str, value: object) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def around(kind: str, path: str, value: object) -> dict[str, Any]:
    inner = nested(path, value)
    return {"sinks": [MINIMUM[kind] | inner]} if kind else inner


def shown(**how: Any) -> str:
    """Return all that anybody gets to see of what comes of settings."""
    try:
        settings = load(**how)
    except SettingsError as error:
        return "".join(traceback.format_exception(error)) + repr(error) + repr(error.mistakes) + repr(vars(error))
    return repr(settings) + str(settings) + settings.model_dump_json() + repr(settings.model_dump())


def test_every_secret_is_looked_at() -> None:
    assert {kind for kind, _ in PLACES} == {"kafka", "nats"}
    assert {("kafka", "sasl.password"), ("nats", "login.nkey_seed")} <= set(PLACES)
    assert SecretStr(CANARY).get_secret_value() == CANARY


@pytest.mark.parametrize(("kind", "path"), PLACES)
@pytest.mark.parametrize(
    "value",
    [CANARY, [CANARY], {CANARY: None}, {"value": CANARY}, [[CANARY], 1], f"kafka://u:{CANARY}@h/t", f"{CANARY}\n"],
)
@pytest.mark.parametrize("wrong", ["", "lgo", "log"])
def test_a_secret_is_not_shown(kind: str, path: str, value: object, wrong: str, tmp_path: Path) -> None:
    document = around(kind, path, value) | ({wrong: {"level": "loud"}} if wrong else {})
    named = isinstance(value, dict) and CANARY in value
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(document))
    for told in (shown(path=str(file)), shown(given=document)):
        assert CANARY not in told or named


@pytest.mark.parametrize(("kind", "path"), PLACES)
def test_a_secret_of_the_environment_is_not_shown(kind: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = "WHALEBRIDGE_SINKS__0__" if kind else "WHALEBRIDGE_"
    for name, value in MINIMUM.get(kind, {}).items():
        monkeypatch.setenv(f"{prefix}{name.upper()}", value if isinstance(value, str) else ",".join(value))
    variable = prefix + path.replace(".", "__").upper()
    for name in (
        variable,
        f"{variable}__X",
        variable.removesuffix("D"),
        variable.replace("__", "_"),
        f"{variable}_FILE",
    ):
        with monkeypatch.context() as environment:
            environment.setenv(name, CANARY)
            told = shown()
        assert CANARY not in told


@pytest.mark.parametrize(
    "text",
    [
        f"sinks:\n- type: kafka\n  sasl: {{username: u, password:{CANARY}}}",
        f"sinks:\n- type: kafka\n  sasl:\n    username: u\n    password:{CANARY}\n",
        f"sinks:\n- type: kafka\n  sasl:\n    password: *{CANARY}\n",
        f"sinks:\n- type: kafka\n  sasl:\n    password: &{CANARY}\n",
        f"sinks:\n- type: kafka\n  sasl:\n    password: !{CANARY}\n",
        f"sinks:\n- type: kafka\n  sasl:\n    password: %{CANARY}\n",
        f"sinks:\n- type: kafka\n  sasl:\n    password: '{CANARY}\n",
        f"sinks:\n- type: kafka\n  sasl:\n    password: {CANARY}: x\n",
        f"sinks:\n- kafka://user:{CANARY}@h/t\n",
        f"http:\n  listen: {CANARY}\n  listen: {CANARY}\n",
        f"http: {{listen: a,{CANARY}}}\n",
        f"sinks:\n- {{type: kafka, servers: h, topic: t, sasl: {{username: u, password: a,{CANARY}}}}}\n",
        f"sinks:\n- type: kafka://u:{CANARY}@h/t\n",
        f"sinks:\n- {{type: nats, servers: 'u:{CANARY}@h', subject: s}}\n",
        f"sinks:\n- {{type: nats, servers: h, subject: s, login: {{token_file: {CANARY}}}}}\n",
        f"sinks:\n- {{type: kafka, servers: h, topic: t, tls: {{enabled: true, key_file: '--- KEY\\n{CANARY}'}}}}\n",
    ],
)
def test_a_file_that_is_broken_around_a_secret_does_not_show_it(text: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    told = shown(path=str(file))
    assert str(file) in told
    assert CANARY not in told
