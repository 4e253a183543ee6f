"""Generate files of the chart: values.schema.json, the README, and copies of files in deploy/.

    python deploy/helm/generate.py [--check]

Descriptions come from the comments in values.yaml, types from schema.yaml, and the schema of ``config`` from
whalebridge's settings. Alert rules and dashboard are copied, because a chart cannot contain files outside of it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from bridge import __version__
from config.json_schema import json_schema

HERE = Path(__file__).parent
CHART = HERE / "whalebridge"
COPIES = {"rules.yaml": "prometheus/rules.yaml", "dashboard.json": "grafana/whalebridge.json"}
CHART_SETTINGS = ("host", "containerd", "state_dir", "http", "reload_on_change")
"""Settings that the chart sets; they are not allowed in ``config``."""

_KEY = re.compile(r"(?P<indent> *)(?P<key>[A-Za-z]+):")
_COMMENT = re.compile(r" *# -- (?P<text>.*)")


class Value(NamedTuple):
    """A described value of values.yaml."""

    path: tuple[str, ...]
    description: str
    default: Any


def main() -> int:
    """Write the files; with ``--check``, only report those that are out of date."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    values = list(described((CHART / "values.yaml").read_text()))
    generated = {
        CHART / "values.schema.json": json.dumps(schema(values), indent=2) + "\n",
        CHART / "README.md": readme(values, (HERE / "README.md.in").read_text()),
        **{CHART / "files" / name: (HERE.parent / source).read_text() for name, source in COPIES.items()},
    }
    stale = [path for path, text in generated.items() if not path.exists() or path.read_text() != text]
    errors = [f"{path.relative_to(CHART.parent)} is out of date; run make chart" for path in stale] if check else []
    if yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"] != __version__:
        errors.append(f"Chart.yaml: appVersion is not {__version__}")
    for path in stale if not check else ():
        path.parent.mkdir(exist_ok=True)
        path.write_text(generated[path])
    sys.stderr.writelines(f"{line}\n" for line in errors)
    return 1 if errors else 0


def described(text: str) -> Iterator[Value]:
    """Yield the values in values.yaml with their descriptions and defaults."""
    defaults = yaml.safe_load(text)
    path: list[str] = []
    description = None
    for line in text.splitlines():
        if comment := _COMMENT.fullmatch(line):
            description = comment["text"]
        elif key := _KEY.match(line):
            del path[len(key["indent"]) // 2 :]
            path.append(key["key"])
            if description:
                default = defaults
                for name in path:
                    default = default[name]
                yield Value(tuple(path), description, default)
            description = None


def schema(values: list[Value]) -> dict[str, Any]:
    """Return the schema of the values."""
    document: dict[str, Any] = yaml.safe_load((HERE / "schema.yaml").read_text())
    for value in values:
        _describe(document, value)
    settings = _without_secrets(json_schema())
    document["$defs"] = settings.pop("$defs")
    del settings["$schema"]
    settings["properties"] = {name: part for name, part in settings["properties"].items() if name not in CHART_SETTINGS}
    sinks = settings["properties"]["sinks"]
    sinks["additionalProperties"] = _by_type(sinks["additionalProperties"]["anyOf"], document["$defs"])
    document["definitions"]["config"] = settings
    return document


def _by_type(kinds: list[dict[str, Any]], definitions: dict[str, Any]) -> dict[str, Any]:
    """Return a schema that checks a sink only against the schema of its type, so that errors concern that type."""
    by_type = {}
    for kind in kinds:
        if "$ref" in kind:
            name = definitions[kind["$ref"].rpartition("/")[2]]["properties"]["type"]["const"]
            by_type[name] = kind
    common = {"type": "object", "required": ["type"], "properties": {"type": {"enum": sorted(by_type)}}}
    choices = [{"if": {"properties": {"type": {"const": name}}}, "then": kind} for name, kind in by_type.items()]
    (url,) = [kind for kind in kinds if "$ref" not in kind]
    return {"if": {"type": "string"}, "then": url, "else": {**common, "allOf": choices}}


def _without_secrets(part: Any) -> Any:
    """Remove secret settings: they do not belong in a ConfigMap, and each can be set by a file or the environment."""
    if isinstance(part, dict):
        return {name: _without_secrets(each) for name, each in part.items() if not _secret(each)}
    return [_without_secrets(each) for each in part] if isinstance(part, list) else part


def _secret(part: Any) -> bool:
    return isinstance(part, dict) and any("writeOnly" in kind for kind in (part, *part.get("anyOf", ())))


def _describe(document: dict[str, Any], value: Value) -> None:
    *groups, name = value.path
    properties = document["properties"]
    for group in groups:
        part = properties[group]
        definition = part.get("$ref", "").rpartition("/")[2]
        properties = (document["definitions"][definition] if definition else part)["properties"]
    if "$ref" in properties[name]:  # this draft ignores other keywords next to $ref
        properties[name] = {"allOf": [properties[name]]}
    properties[name]["description"] = value.description.replace("`", "")


def readme(values: list[Value], template: str) -> str:
    """Return the README with the table of the values."""
    lines = [f"| `{'.'.join(value.path)}` | `{json.dumps(value.default)}` | {value.description} |" for value in values]
    table = "\n".join(["| Value | Default | Description |", "|---|---|---|", *lines])
    return template.replace("@VALUES@", table)


if __name__ == "__main__":
    sys.exit(main())
