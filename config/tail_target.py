"""What ``whalebridge tail`` reads: the target of a configured sink, or a URL."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from pydantic import ValidationError

from config.sinks import FileSettings, KafkaSettings, NatsSettings, SinkSettings, settings_from_url

Readable: TypeAlias = FileSettings | KafkaSettings | NatsSettings


def tail_target(target: str, sinks: Callable[[], Mapping[str, SinkSettings]]) -> Readable:
    """Return the settings to read ``target``: a URL, or the id of one of ``sinks``.

    Args:
        target: What contains a colon is a URL.
        sinks: Returns the configured sinks; called only for an id.

    Raises:
        ValueError: It cannot be read; the text repeats no more of a URL than its scheme.
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
