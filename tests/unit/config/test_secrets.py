"""Test that no message and no representation shows a secret, for each settings source and with other errors."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, SecretStr

from config import setting_paths
from config.settings import Settings, SettingsError, load
from config.sinks import BUILT_IN

CANARY = "canary-7f3a"
MINIMUM: dict[str, dict[str, Any]] = {
    "stdout": {"type": "stdout"},
    "file": {"type": "file", "path": "/x"},
    "kafka": {"type": "kafka", "bootstrap_servers": ["h"], "topic": "t"},
    "nats": {"type": "nats", "servers": ["h"], "subject_prefix": "s"},
    "http": {"type": "http", "url": "https://h/"},
}


def secrets(model: type[BaseModel]) -> list[str]:
    return [path for path, field in setting_paths.iter_settings(model) if "SecretStr" in repr(field.annotation)]


SECRETS = [(kind, path) for kind in BUILT_IN for path in secrets(BUILT_IN[kind])]


def nested(path: str, value: object) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {first: nested(rest, value) if rest else value}


def sink_settings(kind: str, path: str, value: object) -> dict[str, Any]:
    return {"sinks": {"main": MINIMUM[kind] | nested(path, value)}}


def representations(**arguments: Any) -> str:
    """Return every representation of the settings, or of the error."""
    try:
        settings = load(**arguments)
    except SettingsError as error:
        return "".join(traceback.format_exception(error)) + repr(error) + repr(error.errors) + repr(vars(error))
    return repr(settings) + str(settings) + settings.model_dump_json() + repr(settings.model_dump())


def test_secrets_of_all_sinks_are_covered() -> None:
    assert secrets(Settings) == []
    assert {kind for kind, _ in SECRETS} == {"kafka", "nats", "http"}
    assert {("kafka", "auth.password"), ("kafka", "tls.key_password"), ("nats", "auth.nkey_seed")} <= set(SECRETS)
    assert SecretStr(CANARY).get_secret_value() == CANARY


@pytest.mark.parametrize(("kind", "path"), SECRETS)
@pytest.mark.parametrize(
    "value",
    [CANARY, [CANARY], {CANARY: None}, {"value": CANARY}, [[CANARY], 1], f"kafka://u:{CANARY}@h/t", f"{CANARY}\n"],
)
@pytest.mark.parametrize("wrong", ["", "lgo", "log"])
def test_secret_in_file_or_option_is_not_shown(kind: str, path: str, value: object, wrong: str, tmp_path: Path) -> None:
    document = sink_settings(kind, path, value) | ({wrong: {"level": "loud"}} if wrong else {})
    named = isinstance(value, dict) and CANARY in value
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(document))
    for text in (representations(path=str(file)), representations(given=document)):
        assert CANARY not in text or named


@pytest.mark.parametrize(("kind", "path"), SECRETS)
def test_secret_in_environment_is_not_shown(kind: str, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = "WHALEBRIDGE_SINKS__MAIN__"
    for name, value in MINIMUM[kind].items():
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
            text = representations()
        assert CANARY not in text


@pytest.mark.parametrize(
    "content",
    [
        f"sinks:\n a:\n  type: kafka\n  auth: {{username: u, password:{CANARY}}}",
        f"sinks:\n a:\n  type: kafka\n  auth:\n    username: u\n    password:{CANARY}\n",
        f"sinks:\n a:\n  type: kafka\n  auth:\n    password: *{CANARY}\n",
        f"sinks:\n a:\n  type: kafka\n  auth:\n    password: &{CANARY}\n",
        f"sinks:\n a:\n  type: kafka\n  auth:\n    password: !{CANARY}\n",
        f"sinks:\n a:\n  type: kafka\n  auth:\n    password: %{CANARY}\n",
        f"sinks:\n a:\n  type: kafka\n  auth:\n    password: '{CANARY}\n",
        f"sinks:\n a:\n  type: kafka\n  auth:\n    password: {CANARY}: x\n",
        f"sinks:\n a:\n  type: kafka\n  auth:\n    password: {CANARY}\n    password: {CANARY}\n",
        f"sinks:\n- kafka://user:{CANARY}@h/t\n",
        f"sinks: kafka://user:{CANARY}@h/t\n",
        f"sinks:\n a: kafka://user:{CANARY}@h/t\n",
        f"sinks:\n kafka://user:{CANARY}@h/t:\n  type: kafka\n",
        f"sinks: {{a: {{type: nats, servers: h, subject_prefix: s, auth: {{token: a,{CANARY}}}}}}}\n",
        f"sinks: {{a: {{type: kafka, bootstrap_servers: h, topic: t, auth: {{username: u, password: a,{CANARY}}}}}}}\n",
        f"sinks: {{a: {{type: 'kafka://u:{CANARY}@h/t'}}}}\n",
        f"sinks: {{a: {{type: nats, servers: 'u:{CANARY}@h', subject_prefix: s}}}}\n",
        f"sinks: {{a: {{type: nats, servers: h, subject_prefix: s, auth: {{token_file: {CANARY}}}}}}}\n",
        f"sinks: {{a: {{type: kafka, bootstrap_servers: h, tls: {{enabled: true, key_file: '--- KEY\n{CANARY}'}}}}}}\n",
    ],
)
def test_secret_in_broken_file_is_not_shown(content: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(content)
    text = representations(path=str(file))
    assert str(file) in text
    assert CANARY not in text
