"""Creates readers from the settings of sinks; imports a broker's library only if it is needed."""

# ruff: noqa: PLC0415 (lazy imports)

from __future__ import annotations

from typing import TYPE_CHECKING

from bridge.fleet.files import FileReader
from config.sinks import FileSettings, KafkaSettings, NatsSettings
from sinks.registry import library

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from bridge.fleet.messages import Begin, Reader
    from config.tail_target import Readable


def reader(settings: Readable, clock: Clock, *, begin: Begin, follow: bool) -> Reader:
    """Return a reader for the target of a sink.

    Raises:
        FatalError: The sink's library is not installed.
    """
    match settings:
        case FileSettings():
            return FileReader(settings.path, clock, begin=begin, follow=follow)
        case KafkaSettings():
            with library("kafka"):
                from bridge.fleet.kafka import KafkaReader

            return KafkaReader(settings, clock, begin=begin, follow=follow)
        case NatsSettings():
            with library("nats"):
                from bridge.fleet.nats import NatsReader

            return NatsReader(settings, begin=begin, follow=follow)
