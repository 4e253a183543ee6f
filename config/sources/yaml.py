"""The configuration file as a source of settings: YAML, of which scalars are taken as the text that is written.

YAML guesses types: it takes ``no`` for false, ``1e3`` for text, ``2026-01-01`` for a date and ``007`` for 7. Here each
setting reads its own value, as it does from the environment, so that a topic may be called 123 and a password 007.
Only a value that is empty, ``null`` or ``~`` is none. Tags are refused; anchors and aliases work, within bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import yaml
from pydantic_settings import BaseSettings

from config import names
from config.sources import Path, Source

DEFAULT = "/etc/whalebridge/config.yaml"
LARGEST = 262_144  # bytes
DEEPEST = 32  # levels
MOST = 10_000  # values, with those that aliases repeat

_TEXT = "tag:yaml.org,2002:str"
_NONE = ("", "~", "null", "Null", "NULL")
_IN_QUOTES = "a value that begins with one of %s is written in quotes"
_SYNTAX = {
    "found character '\\t'": "there is a tab: indent with spaces",
    "found character": _IN_QUOTES % "% @ `",
    "mapping values are not allowed": "there is a colon where none can be: mind the indentation, or use quotes",
    "could not find expected ':'": "there is a name without a colon, or a line that is not indented like the others",
    "found undefined alias": "there is an alias (*) of nothing; " + _IN_QUOTES % "* & !",
    "undefined tag handle": _IN_QUOTES % "* & !",
    "expected alphabetic": _IN_QUOTES % "* & !",
    " a tag": _IN_QUOTES % "* & !",
    "expected <block end>": "this line is not indented like those that it belongs to",
    "found unexpected end of stream": "a quote is not closed before the end",
    "expected ',' or": "a bracket is not closed, or a comma is missing",
    "but found another document": "there is a second document: one file holds one",
    "too deep": f"there are more than {DEEPEST} levels",
}
"""What is said of what the parser says; its own words may repeat a part of the file."""


class UnreadableError(Exception):
    """There is nothing to be had of the file; the text says why."""


def source(model: type[BaseSettings], path: str | None) -> Source:
    """Return the settings in the file at ``path``; without one, in the usual file, if there is one.

    Raises:
        UnreadableError: It cannot be read, or is not YAML.
    """
    name = path or DEFAULT
    try:
        text = _read(name)
    except FileNotFoundError as error:
        if path is None:
            return Source(model, {}, {})
        raise UnreadableError(f"{name}: there is no such file") from error
    except OSError as error:
        raise UnreadableError(f"{name}: it cannot be read: {error.strerror}") from error
    reading = _Reading(name, _compose(name, text))
    return Source(model, reading.values, reading.places, reading.mistakes)


def _read(name: str) -> str:
    with open(name, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise UnreadableError(f"{name}: it is larger than {LARGEST // 1024} KiB, too large for settings")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UnreadableError(f"{name}:{line}: this is not UTF-8") from error


def _compose(name: str, text: str) -> yaml.Node | None:
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise UnreadableError(f"{name}:{line}: there is a character that no YAML file may contain") from error
    except yaml.MarkedYAMLError as error:
        told = f"{error.context}; {error.problem}"
        meaning = next((text for part, text in _SYNTAX.items() if part in told), "this is not YAML")
        mark = error.problem_mark or error.context_mark
        raise UnreadableError(f"{name}:{mark.line + 1 if mark else 1}: {meaning}") from error
    finally:
        if loader:
            loader.dispose()


class _Loader(yaml.BaseLoader):
    """Makes no guesses about types, and stops before the interpreter's stack does."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        if self._depth > DEEPEST:
            raise yaml.composer.ComposerError(None, None, "too deep", self.get_mark())
        node: yaml.Node | None = super().compose_node(parent, index)
        self._depth -= 1
        return node


class _Reading:
    """Makes values of YAML's nodes, and notes on which line each stands."""

    def __init__(self, name: str, root: yaml.Node | None) -> None:
        self._name = name
        self._left = MOST
        self.places: dict[Path, str] = {}
        self.mistakes: list[str] = []
        values = None if root is None else self._value(root, ())
        if values is not None and not isinstance(values, Mapping):
            self._complain(root, "write settings as NAME: VALUE, each on a line of its own")
            values = None
        self.values: Mapping[str, Any] = values or {}

    def _value(self, node: yaml.Node, path: Path) -> Any:
        self._left -= 1
        if self._left < 0 or len(path) > DEEPEST:
            raise UnreadableError(f"{self._line(node)}: aliases make it unfold to more than {MOST} values")
        match node:
            case yaml.MappingNode():
                value: Any = dict(self._items(node, path))
            case yaml.SequenceNode():
                value = [self._value(item, self._at(item, (*path, str(n)))) for n, item in enumerate(node.value)]
            case _:
                plain = isinstance(node, yaml.ScalarNode) and node.style is None
                value = None if plain and node.value in _NONE else node.value
        if node.tag not in (_TEXT, _Loader.DEFAULT_MAPPING_TAG, _Loader.DEFAULT_SEQUENCE_TAG):
            self._complain(node, "settings have no tags; " + _IN_QUOTES % "* & !", path)
        return value

    def _items(self, node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, Any]]:
        seen: dict[str, int] = {}
        for key, item in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self._complain(key, "a name is plain text", path)
                continue
            inner = (*path, key.value)
            if key.value == "<<":
                self._complain(key, "nothing can be merged in: write out the settings", path)
                continue
            if key.value in seen:
                self._complain(key, f"it is here twice: on line {seen[key.value]} as well", inner)
                continue
            seen[key.value] = key.start_mark.line + 1
            yield key.value, self._value(item, self._at(key, inner))

    def _at(self, node: yaml.Node, path: Path) -> Path:
        self.places[path] = self._line(node)
        return path

    def _line(self, node: yaml.Node) -> str:
        return f"{self._name}:{node.start_mark.line + 1}"

    def _complain(self, node: yaml.Node | None, text: str, path: Path = ()) -> None:
        where = self._line(node) if node else self._name
        self.mistakes.append(": ".join(part for part in (where, ".".join(map(names.shown, path)), text) if part))
