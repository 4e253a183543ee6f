"""Settings of the target that ``whalebridge tail`` reads: a configured sink, or a URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from pydantic import ValidationError

from config.sinks import FileSettings, KafkaSettings, NatsSettings, SinkSettings, settings_from_url

Readable: TypeAlias = FileSettings | KafkaSettings | NatsSettings


def tail_target(target: str, sinks: Callable[[], Mapping[str, SinkSettings]]) -> Readable:
    """Return the settings of ``target``.

    Args:
        target: A URL, if it contains a colon, or the id of a configured sink.
        sinks: Returns the configured sinks; called only for an id.

    Raises:
        ValueError: The target cannot be read; the message contains no part of a URL except its scheme.
    """
    settings = _from_url(target) if ":" in target else _configured(target, sinks())
    if not isinstance(settings, Readable):
        raise ValueError(f"a sink of type {settings.type} cannot be read; use - to read standard input")  # noqa: TRY004
    return settings


def _configured(id_: str, sinks: Mapping[str, SinkSettings]) -> SinkSettings:
    if id_ not in sinks:
        # The text is not repeated: it may be a secret.
        raise ValueError(f"unknown sink; use a URL, or the id of a configured sink: {', '.join(sinks)}")
    return sinks[id_]


def _from_url(url: str) -> SinkSettings:
    try:
        return settings_from_url(url)
    except ValidationError as error:
        # Not chained: pydantic's text contains the values.
        raise ValueError("; ".join(_messages(error))) from None


def _messages(error: ValidationError) -> list[str]:
    return [
        ": ".join(filter(None, [".".join(map(str, each["loc"])), str(each.get("ctx", {}).get("error", each["msg"]))]))
        for each in error.errors(include_url=False, include_input=False)
    ]
