"""The list of all settings in docs/configuration.md, made of the models.

``python -m config.reference docs/configuration.md`` writes it anew below the page's mark; ``--check`` tells whether
that would change anything.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from config.environment import variable
from config.flags import FLAGS
from config.schema import json_schema

MARK = "<!-- Below this line, `make docs` writes what stands in config/. -->\n"


def reference(schema: dict[str, Any]) -> str:
    """Return the list, in Markdown; ``schema`` is that of the file."""
    return "\n".join(line for block in _group("", schema, schema) for line in (*block, ""))


def _group(path: str, group: dict[str, Any], schema: dict[str, Any]) -> Iterator[list[str]]:
    """Return a block of lines for each setting: plain ones first, then those of the groups within."""
    inner = {name: _referred(field, schema) for name, field in group["properties"].items()}
    for name, field in group["properties"].items():
        if not inner[name] or "description" in field:
            required = name in group.get("required", ())
            yield _setting(path + name, field, required=required and name != "type")
    for name, definition in inner.items():
        if definition:
            yield [f"### `{path}{name}`", "", definition["description"]]
            yield from _group(f"{path}{name}.", definition, schema)
    if not path:
        for each in group["properties"]["sinks"]["items"]["anyOf"]:
            if definition := _referred(each, schema):
                kind = definition["properties"]["type"]["const"]
                yield [f"### `sinks`: `type: {kind}`", "", definition["description"]]
                yield from _group("sinks.0.", definition, schema)


def _referred(field: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | None:
    """Return the group that a field is, if it is one; it may be one that need not be there."""
    for each in (field, *field.get("anyOf", ())):
        if "$ref" in each:
            found: dict[str, Any] = schema["$defs"][each["$ref"].rpartition("/")[2]]
            return found
    return None


def _setting(path: str, field: dict[str, Any], *, required: bool) -> list[str]:
    description, _, _ = field["description"].partition("\n\n")
    default = "needed" if required else f"default: {_written(field)}"
    ways = [f"`{variable(path)}`"] + ([f"`{FLAGS[path]}`"] if path in FLAGS else [])
    return [
        f"#### `{path}`",
        "",
        description,
        "",
        f"- {_takes(field)}; {default}",
        f"- why: {field['reason']}",
        f"- {', '.join(ways)}",
    ]


def _written(field: dict[str, Any]) -> str:  # noqa: PLR0911 (a table)
    match field.get("default", ...):
        case None:
            return "none"
        case "" | []:
            return "empty"
        case default if default is ...:
            return "this machine's"
        case [{"type": kind}]:
            return f"`{kind}:`"
        case list(items):
            return ", ".join(f"`{item}`" for item in items)
        case str(text):
            return f"`{text}`"
        case value:
            return f"`{json.dumps(value)}`"


def _takes(field: dict[str, Any]) -> str:  # noqa: PLR0911 (a table)
    """Tell what a setting takes."""
    field = next((each for each in field.get("anyOf", ()) if each.get("type") != "null"), {}) | field
    unit = field.get("unit", "")
    match field:
        case {"const": only}:
            return f"`{only}`"
        case {"enum": choices}:
            return f"one of {', '.join(f'`{choice}`' for choice in choices)}"
        case {"$ref": _}:
            return "group"
        case {"type": "boolean"}:
            return "`true` or `false`"
        case {"type": "integer"}:
            bounds = [f"from {field['minimum']}"] + ([f"to {field['maximum']}"] if "maximum" in field else [])
            return f"whole number{f' of {unit}' if unit else ''}, {' '.join(bounds)}"
        case {"type": "array"}:
            return f"list of {_takes(field['items'])}" if "type" in field["items"] else "list of groups and URLs"
        case {"writeOnly": True}:
            return "text, kept secret"
        case _:
            return unit or "text"


def main(path: Path, *, check: bool) -> int:
    """Write the list, or see whether it is up to date; return the exit status."""
    page = path.read_text(encoding="utf-8")
    prose, mark, _ = page.partition(MARK)
    made = f"{prose}{mark}\n{reference(json_schema()).rstrip()}\n"
    if check and made != page:
        print(f"{path} is not up to date: make docs", file=sys.stderr)  # noqa: T201 (a command for developers)
        return 1
    if not check:
        path.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), check="--check" in sys.argv))
