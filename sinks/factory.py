"""Creates sinks from settings. A sink's module and its library are imported only if the sink is configured."""

# ruff: noqa: PLC0415 (imports are lazy on purpose)

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from bridge.core.errors import FatalError
from config.sinks import FileSettings, KafkaSettings, NatsSettings, StdoutSettings, plugins

if TYPE_CHECKING:
    from bridge.core.ports import Clock, Sink
    from config.sinks import SinkSettings


def create_sink(settings: SinkSettings, clock: Clock, snapshot_interval: timedelta = timedelta(0)) -> Sink:
    """Return the sink with these settings, not yet started.

    If the retention of its target is shorter than ``snapshot_interval``, it logs a warning.

    Raises:
        FatalError: The sink's library is not installed.
    """
    match settings:
        case StdoutSettings():
            from sinks.stdout import StdoutSink

            return StdoutSink(encoding=settings.encoding)
        case FileSettings():
            from sinks.file import FileSink

            return FileSink(settings, clock)
        case KafkaSettings():
            with require_extra("kafka"):
                from sinks.kafka.sink import KafkaSink

            return KafkaSink(settings, clock, snapshot_interval)
        case NatsSettings():
            with require_extra("nats"):
                from sinks.nats.sink import NatsSink

            return NatsSink(settings, clock, snapshot_interval)
        case _:
            sink: Sink = plugins.load(settings.type).make(settings)
            return sink


def create_sinks(
    settings: Mapping[str, SinkSettings], clock: Clock, snapshot_interval: timedelta = timedelta(0)
) -> dict[str, Sink]:
    """Return the sinks with these settings, by id, not yet started."""
    return {id_: create_sink(each, clock, snapshot_interval) for id_, each in settings.items()}


@contextlib.contextmanager
def require_extra(extra: str) -> Iterator[None]:
    """Turn the failed import of a broker's library into an error that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise FatalError(
            f"{extra}: a required library is not installed ({error.name}); run pip install 'whalebridge[{extra}]'"
        ) from error
