"""Where records go: the settings of each type of sink, and the URLs that stand for them.

One module a type, with its settings and the reading of its URL; a new one is named in ``BUILT_IN`` and ``_URLS``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, TypeAlias

from pydantic import AfterValidator, BeforeValidator, ValidationError, WrapValidator
from pydantic_core import InitErrorDetails, PydanticCustomError

from config.fields import numbered
from config.sinks import file, kafka, nats, plugins, stdout
from config.sinks.common import SinkSection
from config.sinks.file import FileSettings
from config.sinks.kafka import KafkaSettings
from config.sinks.nats import NatsSettings
from config.sinks.stdout import StdoutSettings

__all__ = [
    "BUILT_IN",
    "FileSettings",
    "KafkaSettings",
    "NatsSettings",
    "SinkSection",
    "SinkSettings",
    "Sinks",
    "StdoutSettings",
    "from_url",
    "model_of",
    "of_url",
]

SinkSettings: TypeAlias = StdoutSettings | FileSettings | KafkaSettings | NatsSettings | SinkSection
"""The last of them stands for those of third parties."""

BUILT_IN: dict[str, type[SinkSection]] = {
    "stdout": StdoutSettings,
    "file": FileSettings,
    "kafka": KafkaSettings,
    "nats": NatsSettings,
}
_WORD = re.compile("[A-Za-z0-9_-]{1,20}")
_URLS: dict[str, Callable[[str, str], dict[str, Any]]] = {
    "stdout": stdout.from_url,
    "file": file.from_url,
    "kafka": kafka.from_url,
    "kafkas": kafka.from_url,
    "nats": nats.from_url,
    "tls": nats.from_url,
}
"""By scheme: what makes settings of the scheme, and of what follows its colon."""


def from_url(url: str) -> dict[str, Any]:
    """Return the settings that a sink's URL stands for.

    Raises:
        ValueError: It stands for none. The text never repeats more of the URL than its scheme: there may be a
            password in the rest.
    """
    scheme, colon, rest = url.strip().partition(":")
    scheme = scheme.lower()
    if colon and scheme in _URLS:
        return _URLS[scheme](scheme, rest)
    others = plugins.names()
    if colon and scheme in others:
        return {**plugins.load(scheme).from_url(rest), "type": scheme}
    known = ", ".join(f"{name}:" for name in (*_URLS, *others))
    if not colon:
        raise ValueError(f"a sink is written as a URL, with a colon after its scheme; known schemes: {known}")
    raise ValueError(f"unknown scheme {scheme[:20]!r}; known schemes: {known}")


def of_url(url: str) -> SinkSettings:
    """Return the settings that a sink's URL stands for, with defaults for all that it has no room for.

    Raises:
        ValueError: It stands for none; pydantic's ValidationError is one.
    """
    settings = from_url(url)
    return model_of(settings["type"]).model_validate(settings)


def _sinks(value: object) -> object:
    """Read a list from the environment: URLs parted by blanks (there are commas in some), or numbered from 0."""
    return value.split() if isinstance(value, str) else numbered(value)


def _sink(value: object, _: object) -> object:
    """Choose the model by ``type``: the mistakes that it finds keep their paths, and are told of no other model."""
    if isinstance(value, SinkSection):
        return value
    settings = from_url(value) if isinstance(value, str) else value
    if settings == {"stdout": None}:  # what YAML makes of it
        raise ValueError("write 'stdout:' in quotes, as it ends in a colon, or type: stdout")
    if not isinstance(settings, dict):
        raise ValueError("write a sink as a URL, or as a group of settings with a type")  # noqa: TRY004 (pydantic's)
    return model_of(settings.get("type")).model_validate(settings)


def model_of(type_: object) -> type[SinkSection]:
    """Return the settings of a type of sink.

    Raises:
        ValidationError: There is no such type.
        ValueError: The package that adds it does not work.
    """
    if isinstance(type_, str) and type_ in BUILT_IN:
        return BUILT_IN[type_]
    others = plugins.names()
    if isinstance(type_, str) and type_ in others:
        return plugins.load(type_).Settings
    known = ", ".join((*BUILT_IN, *others))
    # A URL that got here by mistake is not shown: there may be a password in it.
    word = isinstance(type_, str) and _WORD.fullmatch(type_)
    text = f"unknown type {type_!r}; known" if word else "say which type of sink it is; known"
    error = PydanticCustomError("sink_type", "{text}", {"text": f"{text} types: {known}"})
    raise ValidationError.from_exception_data("sink", [InitErrorDetails(type=error, loc=("type",), input=None)])


def _useful(sinks: tuple[SinkSettings, ...]) -> tuple[SinkSettings, ...]:
    if not sinks:
        raise ValueError("name one sink at least, such as stdout:")
    names = [sink.called for sink in sinks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"the same sink is named twice: {', '.join(twice)}; if they differ, give each a name")
    return sinks


Sinks = Annotated[
    tuple[Annotated[SinkSettings, WrapValidator(_sink)], ...], BeforeValidator(_sinks), AfterValidator(_useful)
]
