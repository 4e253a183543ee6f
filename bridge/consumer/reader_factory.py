"""Creates readers from settings and URLs; imports a broker's library only if it is needed."""

# ruff: noqa: PLC0415 (lazy imports)

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from pydantic import ValidationError

from bridge.consumer.files import FileReader
from config.sinks import FileSettings, KafkaSettings, NatsSettings, SinkSettings, settings_from_url
from sinks.factory import require_extra

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails

    from bridge.consumer.kafka_group import KafkaGroupReader
    from bridge.consumer.record_decoder import Source
    from bridge.consumer.record_reader import Reader, StartPosition
    from bridge.core.ports import Clock

Readable: TypeAlias = FileSettings | KafkaSettings | NatsSettings


def resolve(target: str, sinks: Callable[[], Mapping[str, SinkSettings]]) -> Readable:
    """Return the settings of the sink whose records are read.

    Args:
        target: A URL, if it contains a colon, or the id of a configured sink.
        sinks: Returns the configured sinks; called only for an id.

    Raises:
        ValueError: The target cannot be read; the message contains no part of a URL except its scheme.
    """
    if ":" in target:
        try:
            settings = settings_from_url(target)
        except ValidationError as error:
            # Not chained: pydantic's text contains the values.
            raise ValueError("; ".join(map(_message, error.errors(include_url=False, include_input=False)))) from None
    elif target in (configured := sinks()):
        settings = configured[target]
    else:
        # The text is not repeated: it may be a secret.
        urls = "kafka://HOST:PORT/TOPIC, nats://HOST:PORT/SUBJECT.PREFIX or file:PATH"
        ids = ", ".join(configured)
        raise ValueError(f"not the id of a configured sink (configured: {ids}), and not a URL: {urls}")
    if not isinstance(settings, Readable):
        raise ValueError(f"a sink of type {settings.type} cannot be read; use - to read standard input")  # noqa: TRY004
    return settings


def create_table_reader(target: str, sinks: Callable[[], Mapping[str, SinkSettings]], clock: Clock) -> Reader:
    """Return a reader for a current-state topic or bucket, which stops at the end.

    Args:
        target: A URL with the name of the table as topic or subject, or the id of a configured sink that has one.
        sinks: Returns the configured sinks; called only for an id.
        clock: Source of time.

    Raises:
        ValueError: The target has no such table.
        FatalError: The sink's library is not installed.
    """
    settings, is_url = resolve(target, sinks), ":" in target
    match settings:
        case KafkaSettings() if is_url or settings.state_topic:
            topic = settings.topic if is_url else settings.state_topic
            table = settings.model_copy(update={"topic": topic})
            return create_reader(table, clock, start_position="beginning", follow=False)
        case NatsSettings() if bucket := settings.subject_prefix if is_url else settings.kv_bucket.name:
            with require_extra("nats"):
                from bridge.consumer.nats import NatsReader

            return NatsReader(settings, clock, start_position="beginning", follow=False, bucket=bucket)
    raise ValueError("no state topic or bucket; use its URL, or the id of a sink that maintains one")


def _message(detail: ErrorDetails) -> str:
    path, text = ".".join(map(str, detail["loc"])), str(detail.get("ctx", {}).get("error", detail["msg"]))
    return f"{path}: {text}" if path else text


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


def create_group_reader(
    target: str,
    sinks: Callable[[], Mapping[str, SinkSettings]],
    clock: Clock,
    group: str,
    forget: Callable[[Source], None],
) -> KafkaGroupReader:
    """Return a reader for the partitions that a consumer group assigns.

    Args:
        target: A URL, if it contains a colon, or the id of a configured sink.
        sinks: Returns the configured sinks; called only for an id.
        clock: Source of time.
        group: Id of the group.
        forget: Called for each source of a partition that was lost.

    Raises:
        ValueError: The target is not a Kafka topic, or the id is empty.
        FatalError: The sink's library is not installed.
    """
    settings = resolve(target, sinks)
    if not isinstance(settings, KafkaSettings):
        raise ValueError(f"a group shares the partitions of a Kafka topic; a sink of type {settings.type} has none")  # noqa: TRY004
    if not group:
        raise ValueError("the id of a group cannot be empty")
    with require_extra("kafka"):
        from bridge.consumer.kafka_group import KafkaGroupReader

    return KafkaGroupReader(settings, clock, group=group, forget=forget)
