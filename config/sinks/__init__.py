"""Settings of each type of sink, and the URLs that stand for them.

A module has the settings of a type and the parser of its URL; ``BUILT_IN`` and ``_SCHEMES`` list the types.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ValidationError, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

from config.fields import non_empty
from config.sinks import http, kafka, nats, plugins
from config.sinks.common import BaseSinkSettings
from config.sinks.http import HttpSinkSettings
from config.sinks.kafka import KafkaSettings
from config.sinks.local import FileSettings, StdoutSettings, parse_file_url, parse_stdout_url
from config.sinks.nats import NatsSettings

__all__ = [
    "BUILT_IN",
    "BaseSinkSettings",
    "FileSettings",
    "HttpSinkSettings",
    "KafkaSettings",
    "NatsSettings",
    "SinkSettings",
    "SinkUrls",
    "Sinks",
    "StdoutSettings",
    "model_of",
    "parse_url",
    "settings_from_url",
]

SinkSettings: TypeAlias = (
    StdoutSettings | FileSettings | KafkaSettings | NatsSettings | HttpSinkSettings | BaseSinkSettings
)
"""The last one stands for the sinks of plugins."""

BUILT_IN: dict[str, type[BaseSinkSettings]] = {
    "stdout": StdoutSettings,
    "file": FileSettings,
    "kafka": KafkaSettings,
    "nats": NatsSettings,
    "http": HttpSinkSettings,
}
ID_PATTERN = "[a-z][a-z0-9]*([_-][a-z0-9]+)*"  # no double underscore, which separates levels in the environment
_ID = re.compile(ID_PATTERN)
MAX_ID_LENGTH = 63
_NAMED_URL = re.compile(r"([^:=]*)=(.*)", re.DOTALL)
_WORD = re.compile("[A-Za-z0-9_-]{1,20}")


_SCHEMES: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "stdout": parse_stdout_url,
    "file": parse_file_url,
    "kafka": kafka.parse_url,
    "kafkas": kafka.parse_url,
    "nats": nats.parse_url,
    "tls": nats.parse_url,
    "http": http.parse_url,
    "https": http.parse_url,
}
"""The functions that parse what follows the colon of a scheme."""
_OTHER_SCHEMES = {"kafkas": "kafka", "tls": "nats", "https": "http"}
"""The types of the sinks whose scheme has another name."""


class SinkUrls(tuple[str, ...]):
    """All sinks, written as ``URL`` or ``ID=URL``. Without an id, the type of the sink is its id."""

    __slots__ = ()


def parse_url(url: str) -> dict[str, Any]:
    """Return the settings that a sink's URL stands for.

    Raises:
        ValueError: The URL is invalid. The text repeats no more of the URL than its scheme: the rest may contain a
            password.
    """
    scheme, rest = _split_scheme(url)
    if scheme in _SCHEMES:
        return _SCHEMES[scheme](scheme, rest)
    return {**plugins.load(scheme).parse_url(rest), "type": scheme}


def settings_from_url(url: str) -> SinkSettings:
    """Return the settings that a sink's URL stands for, with defaults for all others.

    Raises:
        ValueError: The URL is invalid; pydantic's ValidationError is a ValueError.
    """
    settings = parse_url(url)
    return model_of(settings["type"]).model_validate(settings)


def _split_scheme(url: str) -> tuple[str, str]:
    scheme, colon, rest = url.strip().partition(":")
    scheme = scheme.lower()
    others = plugins.names()
    if colon and (scheme in _SCHEMES or scheme in others):
        return scheme, rest
    known = ", ".join(f"{name}:" for name in (*_SCHEMES, *others))
    if not colon:
        raise ValueError(f"not a URL; start with a scheme and a colon: {known}")
    raise ValueError(f"unknown scheme {scheme[:20]!r}; use one of {known}")


def _parse_sinks(value: object) -> object:
    """Read sinks by id: a mapping as it is, text and ``SinkUrls`` as URLs."""
    if isinstance(value, str):
        value = SinkUrls(value.split())  # separated by blanks, as some URLs contain commas
    if isinstance(value, SinkUrls):
        return _by_id(value)
    if isinstance(value, list | tuple):
        raise ValueError("expected sinks by id, not a list; use 'sinks: {main: {type: kafka, ...}}'")  # noqa: TRY004 (pydantic's)
    return value


def _by_id(urls: Iterable[str]) -> dict[str, str]:
    sinks: dict[str, str] = {}
    for text in urls:
        named = _NAMED_URL.fullmatch(text.strip())
        id_, url = named.groups() if named else (_default_id(text), text)
        if id_ in sinks:
            raise ValueError(f"duplicate sink id {id_[:20]!r}; name each sink: ID=URL")
        sinks[id_] = url
    return sinks


def _default_id(url: str) -> str:
    scheme = url.strip().partition(":")[0].lower()
    if not _ID.fullmatch(scheme) or ":" not in url:
        _split_scheme(url)  # raises; any other unknown scheme is reported with its id
    return _OTHER_SCHEMES.get(scheme, scheme)


def _check_id(value: str) -> str:
    if not _ID.fullmatch(value) or len(value) > MAX_ID_LENGTH:
        raise ValueError(
            f"invalid sink id; use up to {MAX_ID_LENGTH} lowercase letters, digits, and single - or _ between them, "
            "starting with a letter"
        )
    return value


def _parse_sink(value: object, _: object) -> object:
    """Select the model by ``type``, so that errors have their paths and concern no other model."""
    if isinstance(value, BaseSinkSettings):
        return value
    settings = parse_url(value) if isinstance(value, str) else value
    if settings is None:
        raise ValueError("no value; use a URL (quote 'stdout:'), or a mapping with a type")
    if not isinstance(settings, dict):
        raise ValueError("expected a URL, or a mapping with a type")  # noqa: TRY004 (pydantic's)
    return model_of(settings.get("type")).model_validate(settings)


def model_of(type_: object) -> type[BaseSinkSettings]:
    """Return the settings model of a type of sink.

    Raises:
        ValidationError: The type is unknown.
        ValueError: The plugin of the type does not work.
    """
    if isinstance(type_, str) and type_ in BUILT_IN:
        return BUILT_IN[type_]
    others = plugins.names()
    if isinstance(type_, str) and type_ in others:
        return plugins.load(type_).Settings
    known = ", ".join((*BUILT_IN, *others))
    # Only a plain word is repeated: a URL may contain a password.
    is_word = isinstance(type_, str) and _WORD.fullmatch(type_)
    text = f"unknown type {type_!r}; use one of {known}" if is_word else f"required; use one of {known}"
    error = PydanticCustomError("sink_type", "{text}", {"text": text})
    raise ValidationError.from_exception_data("sink", [InitErrorDetails(type=error, loc=("type",), input=None)])


def _check_files_differ(sinks: dict[str, SinkSettings]) -> dict[str, SinkSettings]:
    used: dict[str, str] = {}
    for id_, sink in sinks.items():
        if isinstance(sink, FileSettings) and (other := used.setdefault(os.path.realpath(sink.path), id_)) != id_:
            raise ValueError(f"sinks {other} and {id_} write the same file; use another path for one of them")
    return sinks


SinkId = Annotated[str, AfterValidator(_check_id)]
Sinks = Annotated[
    dict[SinkId, Annotated[SinkSettings, WrapValidator(_parse_sink)]],
    BeforeValidator(_parse_sinks),
    non_empty("configure at least one sink, such as 'main: kafka://HOST:PORT/TOPIC'"),
    AfterValidator(_check_files_differ),
]
