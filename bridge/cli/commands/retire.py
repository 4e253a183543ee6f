"""``whalebridge retire``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

import getpass
import os
import socket
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeAlias

import typer

from bridge.cli import options, output
from bridge.cli.errors import WRONG_USAGE, CommandError
from bridge.cli.record_inputs import create_reader, resolve, table_entry_error

if TYPE_CHECKING:
    from bridge.consumer.projection import SourceInfo
    from bridge.consumer.reader_factory import Readable
    from bridge.consumer.record_decoder import DecodedRecord, Source
    from bridge.consumer.record_reader import Reader
    from bridge.core.records import Record

_LastRecord: TypeAlias = tuple["SourceInfo", "Record"]
MAX_LENGTH = 200  # characters of a reason or name
_MINIMUM = timedelta(minutes=3)  # of silence, for sources whose heartbeat interval is not known


def retire(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[HOST[/ENGINE]]", help="The source to retire: a host, or one containerd on it."),
    ] = None,
    sink: Annotated[
        str,
        typer.Option(
            metavar="SINK",
            help="Id of a configured sink, or a URL: kafka://HOST:PORT/TOPIC, nats://HOST:PORT/SUBJECT.PREFIX; with "
            "TLS kafkas:// and tls://.",
        ),
    ] = "",
    config: options.Config = None,
    stale_for: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Only sources that have been silent that long: 6h, 1d. Default: 3m."),
    ] = None,
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why the source has ended.")] = "node is gone",
    by: Annotated[str | None, typer.Option(metavar="NAME", help="Who retires the source. Default: USER@HOST.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be retired.")] = False,
) -> None:
    """End the source of a node that is gone, for all consumers.

    Consumers remove its containers from their state. Reads the topic or stream, and publishes a source_retired record
    after the last record of the source. Without a source, --stale-for is required, and all sources that have been
    silent that long are retired. A source is left as it is while it is not stale: three heartbeat intervals, and at
    least the time of --stale-for, must have passed since its last record and heartbeat. A node that comes back takes
    over with its next snapshot.

    The id of a sink stands for its settings in the configuration (--config), with credentials, and with its state
    topic or bucket, whose entries of the source are removed, too; a URL has neither.

    \b
    Examples:
      whalebridge retire node-7 --sink main --config consumers.yaml
      whalebridge retire --stale-for 1d --sink main --dry-run
      whalebridge retire node-7 --sink kafka://localhost:9092/containers --reason 'scaled down'
    """
    import asyncio

    if not sink:
        raise CommandError("--sink is required: the topic or stream of the source", exit_status=WRONG_USAGE)
    if source is None and stale_for is None:
        text = "name a source, or set --stale-for to retire all that have been silent that long"
        raise CommandError(text, exit_status=WRONG_USAGE)
    author = by or f"{_user()}@{socket.gethostname()}"
    for option, text in (("--reason", reason), ("--by", author)):
        if not 0 < len(text) <= MAX_LENGTH or not text.isprintable():
            raise CommandError(f"{option}: use 1 to {MAX_LENGTH} printable characters", exit_status=WRONG_USAGE)
    silence = _MINIMUM if stale_for is None else _parse_duration(stale_for)
    settings = resolve(sink, config)
    if settings.type not in ("kafka", "nats"):
        text = f"sinks of type {settings.type} are not supported; use a Kafka or NATS sink"
        raise CommandError(text, exit_status=WRONG_USAGE)
    reader = create_reader(sink, "beginning", config, follow=False)
    table = None if ":" in sink else sink
    asyncio.run(_retire(reader, settings, _Request(source, silence, reason, author, dry_run, table, config)))


class _Request(NamedTuple):
    """What to retire: one source by name, or all that have been silent for long enough."""

    source: str | None
    silence: timedelta
    reason: str
    by: str
    dry_run: bool
    table: str | None
    """The id of the sink, which may have a state topic or bucket."""
    config: str | None

    def names(self, info: SourceInfo) -> bool:
        """Return whether the source is named, or none is."""
        return self.source in (None, info.source.host, "/".join(info.source))

    def spares(self, info: SourceInfo, now: datetime) -> bool:
        """Return whether the source may still be alive."""
        return info.stale is False or now - info.watermark <= self.silence


def _user() -> str:
    """Return the name of the user, or the number of one without a name, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # the latter since Python 3.13
        return str(os.getuid())


def _parse_duration(text: str) -> timedelta:
    """Parse the value of --stale-for."""
    from pydantic import TypeAdapter

    from config.fields import Duration

    try:
        return TypeAdapter(Duration).validate_python(text)
    except (ValueError, OverflowError):
        raise CommandError(f"--stale-for: invalid value {text!r}; use 15m, 6h, 1d", exit_status=WRONG_USAGE) from None


async def _retire(reader: Reader, settings: Readable, request: _Request) -> None:
    from bridge.core.errors import BridgeError
    from bridge.core.record_encoder import retirement_record
    from bridge.telemetry import logs

    logs.silence()
    now = datetime.now(UTC)

    async def publish(records: list[Record]) -> None:
        if records and not request.dry_run:
            await _publish(settings, records)

    try:
        sources = [each for each in await _read_sources(reader, now, settings) if request.names(each[0])]
        if request.source is not None and not sources:
            raise CommandError(f"no records of source {request.source}; 'whalebridge audit' lists the sources")
        alive = [each for each in sources if each[0].retired is None]
        chosen = [each for each in alive if not request.spares(each[0], now)]
        at = int(now.timestamp() * 1_000_000) * 1000
        await publish([retirement_record(last, request.reason, request.by, at) for _, last in chosen])
        for info, _ in chosen:
            output.write(f"{_describe(info)}: {'would be retired' if request.dry_run else 'retired'}")
        ended = [each for each in sources if each[0].retired is not None]
        left = await _left_in_table(ended, request)
        # Again, so that the sink removes the entries. For consumers of the records, it is a repetition.
        endings = [(info.retired, last) for info, last in left if info.retired]
        await publish([retirement_record(last, each.reason, each.by, at) for each, last in endings])
        for info, _ in left:
            removed = "entries would be removed" if request.dry_run else "entries removed"
            output.write(f"{_describe(info)}: is retired already, {removed}")
    except BridgeError as error:
        raise CommandError.from_error(error) from error
    if request.source is None:
        return
    for info, _ in (each for each in ended if each not in left):
        output.write(f"{_describe(info)}: is retired already")
    if spared := [info for info, _ in alive if request.spares(info, now)]:
        raise CommandError(*(f"{_describe(info)}: not retired, because it may be alive" for info in spared))


async def _left_in_table(ended: list[_LastRecord], request: _Request) -> list[_LastRecord]:
    """Return the retired sources whose entries are still in the sink's state topic or bucket.

    They were retired by URL, or the command was interrupted. An entry that is later is of a source that has returned.
    """
    from bridge.cli import print_error
    from bridge.consumer.state import load_table
    from bridge.core.errors import NotFoundError, TransientError

    if not ended or request.table is None:
        return []
    try:
        table = await load_table(request.table, config=request.config)
    except (ValueError, NotFoundError):  # the sink has none; or it was not created yet
        return []
    except TransientError as error:
        print_error(f"entries that are left of retired sources cannot be listed: {error}")
        return []
    positions = {each.source: each.position for each in table.sources()}
    return [each for each in ended if each[0].source in positions and positions[each[0].source] <= each[0].position]


def _describe(info: SourceInfo) -> str:
    from bridge.telemetry.safe_text import printable

    return printable(f"{'/'.join(info.source)}, last seen at {info.watermark:%Y-%m-%dT%H:%M:%SZ}")


async def _read_sources(reader: Reader, now: datetime, settings: Readable) -> list[_LastRecord]:
    """Return what is known of each source, and its last record."""
    from bridge.cli import print_error
    from bridge.clock import SystemClock
    from bridge.consumer.record_decoder import is_otlp
    from bridge.consumer.record_reader import read_records
    from bridge.consumer.state import State

    state = State()
    last: dict[Source, DecodedRecord] = {}
    async with aclosing(read_records(reader, SystemClock(), print_error)) as batches:
        async for batch in batches:
            for record, data, message in batch:
                if record.is_table_entry:
                    raise table_entry_error("a message there")
                if is_otlp(message.data) and settings.encoding != "otlp":
                    raise CommandError("--sink: the records there have encoding otlp; use the id of a sink with it")
                state.apply(record, data)
                if record.source not in last or record.position >= last[record.source].position:
                    last[record.source] = record
    return [(info, _position_record(last[info.source])) for info in state.sources(now=now)]


def _position_record(record: DecodedRecord) -> Record:
    """Return a record of the same source and position as a record of any type, also of one that is not known."""
    import msgspec

    from bridge.core.record_encoder import parse_record

    document = {
        "version": 1,
        "type": "heartbeat",
        "timestamp": record.timestamp,
        "origin": "live",
        **dict.fromkeys(("id", "project", "container", "exit", "snapshot", "lost")),
        "engine": record.engine,
        "host": record.host,
        "epoch": record.epoch,
        "sequence": record.sequence,
        "attributes": record.attributes or None,
    }
    return parse_record(msgspec.json.encode(document))


async def _publish(settings: Readable, records: list[Record]) -> None:
    from bridge.clock import SystemClock
    from sinks.factory import create_sink

    sink = create_sink(settings, SystemClock())
    try:
        await sink.start()
        await sink.publish(records)
    finally:
        await sink.close()
