"""The configuration file as a source of settings: YAML whose scalars stay text.

YAML guesses types: ``no`` is false, ``1e3`` is text, ``2026-01-01`` is a date and ``007`` is 7. Here each setting
parses its own value, as from the environment, so that a topic may be called 123 and a password 007. Only an empty
value, ``null`` and ``~`` are None. Tags are rejected; anchors and aliases work, within limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from config import setting_paths
from config.sources import Path, Source

DEFAULT = "/etc/whalebridge/config.yaml"
MAX_BYTES = 262_144
MAX_LEVELS = 32
MAX_VALUES = 10_000  # with those that aliases repeat

_TEXT = "tag:yaml.org,2002:str"
_NONE = ("", "~", "null", "Null", "NULL")
_QUOTE = "quote a value that starts with one of %s"
_SYNTAX = {
    "found character '\\t'": "tab found; indent with spaces",
    "found character": "unexpected character; " + _QUOTE % "% @ `",
    "mapping values are not allowed": "unexpected colon; check the indentation, or quote the value",
    "could not find expected ':'": "name without a colon; check the indentation of the line before",
    "found undefined alias": "alias (*) without an anchor; " + _QUOTE % "* & !",
    "undefined tag handle": "invalid tag; " + _QUOTE % "* & !",
    "expected alphabetic": "invalid name of a tag or anchor; " + _QUOTE % "* & !",
    " a tag": "invalid tag; " + _QUOTE % "* & !",
    "expected <block end>": "inconsistent indentation; indent all lines of a group by the same width",
    "found unexpected end of stream": "closing quote missing; add it",
    "expected ',' or": "closing bracket or comma missing; add it",
    "but found another document": "second document; a file contains one document",
    "too deep": f"nested more than {MAX_LEVELS} levels deep",
}
"""Messages that replace the parser's, which may contain parts of the file."""


class UnreadableError(Exception):
    """The file cannot be read or parsed; the text says why."""


def source(path: str | None) -> Source:
    """Return the settings in the file at ``path``; without a path, in the default file if it exists.

    Raises:
        UnreadableError: The file cannot be read, or is not YAML.
    """
    name = path or DEFAULT
    try:
        text = _read(name)
    except FileNotFoundError as error:
        if path is None:
            return Source({}, {})
        raise UnreadableError(f"{name}: file not found; check --config") from error
    except OSError as error:
        raise UnreadableError(f"{name}: cannot be read: {error.strerror}") from error
    reading = _Reading(name, _compose(name, text))
    return Source(reading.values, reading.locations, reading.errors)


def _read(name: str) -> str:
    with open(name, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UnreadableError(f"{name}: larger than {MAX_BYTES // 1024} KiB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnreadableError(f"{name}:{line}: not UTF-8; save the file as UTF-8") from error


def _compose(name: str, text: str) -> yaml.Node | None:
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UnreadableError(f"{name}:{line}: control character, which YAML does not allow; remove it") from error
    except yaml.MarkedYAMLError as error:
        original = f"{error.context}; {error.problem}"
        message = next((text for part, text in _SYNTAX.items() if part in original), "invalid YAML; check the syntax")
        position = error.problem_mark or error.context_mark
        raise UnreadableError(f"{name}:{position.line + 1 if position else 1}: {message}") from error
    finally:
        if loader:
            loader.dispose()


class _Loader(yaml.BaseLoader):
    """Keep scalars as text, and stop before the interpreter's stack overflows."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > MAX_LEVELS:
            raise yaml.composer.ComposerError(None, None, "too deep", self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Reading:
    """Convert YAML's nodes to values, and record the line of each."""

    def __init__(self, name: str, root: yaml.Node | None) -> None:
        self._name = name
        self._left = MAX_VALUES
        self.locations: dict[Path, str] = {}
        self.errors: list[str] = []
        values = None if root is None else self._value(root, ())
        if values is not None and not isinstance(values, Mapping):
            self._report(root, "expected settings, as NAME: VALUE")
            values = None
        self.values: Mapping[str, Any] = values or {}

    def _value(self, node: yaml.Node, path: Path) -> Any:
        self._left -= 1
        if self._left < 0 or len(path) > MAX_LEVELS:
            raise UnreadableError(f"{self._line(node)}: aliases expand to more than {MAX_VALUES} values")
        match node:
            case yaml.MappingNode():
                value: Any = dict(self._items(node, path))
            case yaml.SequenceNode():
                value = [self._value(item, self._at(item, (*path, str(n)))) for n, item in enumerate(node.value)]
            case _:
                plain = isinstance(node, yaml.ScalarNode) and node.style is None
                value = None if plain and node.value in _NONE else node.value
        if node.tag not in (_TEXT, _Loader.DEFAULT_MAPPING_TAG, _Loader.DEFAULT_SEQUENCE_TAG):
            self._report(node, "tags are not supported; " + _QUOTE % "* & !", path)
        return value

    def _items(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._report(key, "the name of a setting is a list or a mapping; use text", path)
                continue
            inner = (*path, key.value)
            if key.value == "<<":
                self._report(key, "merging (<<) is not supported; repeat the settings", path)
                continue
            if key.value in seen:
                self._report(key, f"duplicate; first set on line {seen[key.value]}", inner)
                continue
            seen[key.value] = key.start_mark.line + 1
            yield key.value, self._value(item, self._at(key, inner))

    def _at(self, node: yaml.Node, path: Path) -> Path:
        self.locations[path] = self._line(node)
        return path

    def _line(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

    def _report(self, node: yaml.Node | None, text: str, path: Path = ()) -> None:
        location = self._line(node) if node else self._name
        shown = ".".join(map(setting_paths.redact, path))
        self.errors.append(": ".join(part for part in (location, shown, text) if part))
