"""``whalebridge conformance``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from bridge.cli import options, output
from bridge.cli.errors import WRONG_USAGE, CommandError
from bridge.cli.record_inputs import resolve

if TYPE_CHECKING:
    from bridge.consumer.reader_factory import Readable
    from bridge.core.records import Record


def conformance(
    sink: Annotated[
        str,
        typer.Option(
            metavar="SINK",
            help="Id of a configured sink, or a URL: kafka://HOST:PORT/TOPIC, nats://HOST:PORT/SUBJECT.PREFIX, "
            "file:PATH; with TLS kafkas:// and tls://. Use a new topic.",
        ),
    ] = "",
    config: options.Config = None,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Each seed generates another topic.", min=0)] = 0,
    unordered: Annotated[
        bool,
        typer.Option("--unordered", help="Let records overtake one another, as on streams without atomic batches."),
    ] = False,
) -> None:
    """Publish records that test a consumer.

    Prints the state that a consumer must have after them. The records are hostile but valid. The topic has some
    thousand records of six made-up nodes: repetitions, new epochs, losses, namespaces that could not be listed, void
    snapshots, unknown types and fields, stale and retired sources. The same seed always generates the same topic. The
    state is one JSON document, with the fields of the conformance vectors; "now" is the time at which sources are
    judged to be stale. State topics and buckets of the sink are left alone.

    \b
    Examples:
      whalebridge conformance --sink kafka://localhost:9092/conformance --seed 7 >expected.json
      whalebridge conformance --sink file:/tmp/topic.jsonl >expected.json
    """
    import asyncio

    from bridge.consumer.conformance import generate

    if not sink:
        raise CommandError("--sink is required: the new topic or stream", exit_status=WRONG_USAGE)
    settings = resolve(sink, config)
    topic = generate(seed, ordered=not unordered)
    asyncio.run(_publish(_without_table(settings), topic.batches))
    output.write_json(topic.expected)


def _without_table(settings: Readable) -> Readable:
    """Return the settings without a state topic or bucket: it is for what really runs."""
    from config.sinks import KafkaSettings, NatsSettings
    from config.sinks.nats import KvBucketSettings

    match settings:
        case KafkaSettings():
            return settings.model_copy(update={"state_topic": None})
        case NatsSettings():
            return settings.model_copy(update={"kv_bucket": KvBucketSettings()})
    return settings


async def _publish(settings: Readable, batches: list[list[Record]]) -> None:
    from bridge.clock import SystemClock
    from bridge.core.errors import BridgeError
    from bridge.telemetry import logs
    from sinks.factory import create_sink

    logs.silence()
    try:
        sink = create_sink(settings, SystemClock())
        try:
            await sink.start()
            for batch in batches:
                await sink.publish(batch)
        finally:
            await sink.close()
    except BridgeError as error:
        raise CommandError.from_error(error) from error
