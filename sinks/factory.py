"""Creates sinks from settings. A sink's module and its library are imported only if the sink is configured."""

# ruff: noqa: PLC0415 (imports are lazy on purpose)

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from bridge.core.errors import FatalError
from config.sinks import FileSettings, HttpSinkSettings, KafkaSettings, NatsSettings, StdoutSettings, plugins
from config.sinks.common import CLIENT_NAME

if TYPE_CHECKING:
    from bridge.core.ports import Clock, Sink
    from config.settings import Settings
    from config.sinks import SinkSettings


def create_sink(
    settings: SinkSettings, clock: Clock, *, host: str | None = None, snapshot_interval: timedelta = timedelta(0)
) -> Sink:
    """Return the sink with these settings, not yet started.

    Args:
        settings: The settings.
        clock: Source of time.
        host: The host whose records the sink publishes, which is added to the names of its connections.
        snapshot_interval: If the retention of the target is shorter, the sink logs a warning.

    Raises:
        FatalError: The sink's library is not installed.
    """
    name = host and f"{CLIENT_NAME}-{host}"  # otherwise, the sinks have a default
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

            if settings.client_id is None:
                settings = settings.model_copy(update={"client_id": name})
            return KafkaSink(settings, clock, snapshot_interval)
        case NatsSettings():
            with require_extra("nats"):
                from sinks.nats.sink import NatsSink

            if settings.connection_name is None:
                settings = settings.model_copy(update={"connection_name": name})
            return NatsSink(settings, clock, snapshot_interval)
        case HttpSinkSettings():
            from sinks.http.sink import HttpSink

            if settings.user_agent is None:
                settings = settings.model_copy(update={"user_agent": name})
            return HttpSink(settings, clock)
        case _:
            sink: Sink = plugins.load(settings.type).make(settings)
            return sink


def create_sinks(settings: Settings, clock: Clock, ids: Iterable[str] | None = None) -> dict[str, Sink]:
    """Return the sinks of a bridge, or those with some ``ids``, by id, not yet started."""
    return {
        id_: create_sink(settings.sinks[id_], clock, host=settings.host, snapshot_interval=settings.snapshot.interval)
        for id_ in (settings.sinks if ids is None else ids)
    }


@contextlib.contextmanager
def require_extra(extra: str) -> Iterator[None]:
    """Turn the failed import of a broker's library into an error that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise FatalError(
            f"{extra}: a required library is not installed ({error.name}); run pip install 'whalebridge[{extra}]'"
        ) from error
