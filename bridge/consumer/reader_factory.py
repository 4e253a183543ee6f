"""Creates readers from the settings of sinks; imports a broker's library only if it is needed."""

# ruff: noqa: PLC0415 (lazy imports)

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.consumer.files import FileReader
from config.sinks import FileSettings, KafkaSettings, NatsSettings
from sinks.factory import require_extra

if TYPE_CHECKING:
    from bridge.consumer.record_reader import Reader, StartPosition
    from bridge.core.ports import Clock
    from config.tail_target import Readable


def create_reader(settings: Readable, clock: Clock, *, start_position: StartPosition, follow: bool) -> Reader:
    """Return a reader for the target of a sink.

    Raises:
        FatalError: The sink's library is not installed.
    """
    match settings:
        case FileSettings():
            return FileReader(settings.path, clock, start_position=start_position, follow=follow)
        case KafkaSettings():
            with require_extra("kafka"):
                from bridge.consumer.kafka import KafkaReader

            return KafkaReader(settings, clock, start_position=start_position, follow=follow)
        case NatsSettings():
            with require_extra("nats"):
                from bridge.consumer.nats import NatsReader

            return NatsReader(settings, clock, start_position=start_position, follow=follow)
