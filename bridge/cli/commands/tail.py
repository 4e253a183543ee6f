"""``whalebridge tail``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, nullcontext, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, NamedTuple, TypeAlias

import typer

from bridge.cli import options, output
from bridge.cli.errors import CommandError
from bridge.cli.record_inputs import create_reader

if TYPE_CHECKING:
    from bridge.consumer.record_decoder import DecodedRecord, Source
    from bridge.consumer.record_reader import Reader, ReadRecord, StartPosition

Globs: TypeAlias = list[str] | None

_BEGINNING = "beginning"
_SECOND_LENGTH = len("2026-11-23T15:21:08")
_NEW_RECORDS_NOTICE = "showing new records only; use --since 15m for earlier ones"


def tail(
    sink: options.Input,
    config: options.Config = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="WHEN",
            help="Start position: 15m, 6h, 2d ago; a time such as 2026-11-23T15:21:08Z (without a zone: local time); "
            "or beginning. Default: now; with --no-follow, beginning.",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Wait for new records at the end, or stop there.")] = True,
    namespace: Annotated[Globs, typer.Option(metavar="GLOBS", help="Only matching namespaces.")] = None,
    exclude_namespace: Annotated[Globs, typer.Option(metavar="GLOBS", help="Exclude matching namespaces.")] = None,
    project: Annotated[Globs, typer.Option(metavar="GLOBS", help="Only matching compose projects.")] = None,
    container: Annotated[
        Globs, typer.Option(metavar="GLOBS", help="Only containers with a matching name or id.")
    ] = None,
    host: Annotated[Globs, typer.Option(metavar="GLOBS", help="Only matching hosts.")] = None,
    type_: Annotated[
        Globs,
        typer.Option("--type", metavar="GLOBS", help="Only matching record types: started, exited, lost and so on."),
    ] = None,
    duplicates: Annotated[bool, typer.Option("--duplicates", help="Show duplicate records too.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print records as published, one JSON document per line.")
    ] = False,
) -> None:
    """Read published records, one per line.

    Duplicate records are skipped, and so are heartbeats unless --type matches them. Globs are separated by commas, or
    the option is repeated; with a filter for namespaces, projects or containers, "lost" is the only control record
    shown.
    The id of a sink stands for its settings in the configuration (--config, environment), including credentials;
    a URL has no credentials.
    Nothing is left on the broker: no consumer group, no offsets, no durable consumer. Ctrl-C stops the command; the
    exit status then is 0, with --no-follow 130.

    \b
    Examples:
      whalebridge tail main
      whalebridge tail kafka://localhost:9092/containers
      whalebridge tail nats://localhost:4222/containers --since 15m --project web-shop
      whalebridge tail file:/var/log/whalebridge/events.jsonl --no-follow --type exited
      kcat -C -e -b localhost:9092 -t containers | whalebridge tail - --json | jq .id
    """
    import asyncio

    beginning = since == _BEGINNING or not (since or follow)
    moment = None if beginning or since is None else options.parse_moment("--since", since, or_else=", or beginning")
    start_position: StartPosition = "beginning" if beginning else moment or "end"
    reader = create_reader(sink, start_position, config, follow=follow)
    notice = _NEW_RECORDS_NOTICE if start_position == "end" and reader.follow and output.is_terminal() else ""
    record_filter = RecordFilter(
        options.split_globs("--namespace", namespace, namespaces=True),
        options.split_globs("--exclude-namespace", exclude_namespace, namespaces=True),
        options.split_globs("--project", project),
        options.split_globs("--container", container),
        options.split_globs("--host", host),
        options.split_globs("--type", type_),
        moment,
    )
    with suppress(KeyboardInterrupt) if reader.follow else nullcontext():  # the regular end of following
        asyncio.run(_tail(reader, record_filter, _format_json_lines if as_json else _format_lines, duplicates, notice))


async def _tail(
    reader: Reader,
    record_filter: RecordFilter,
    format_records: Callable[[Iterable[ReadRecord]], Iterator[str]],
    show_duplicates: bool,
    notice: str,
) -> None:
    from bridge.cli import print_error
    from bridge.clock import SystemClock
    from bridge.consumer.dedup import Deduplicator
    from bridge.consumer.record_reader import read_records
    from bridge.core.errors import BridgeError
    from bridge.telemetry import logs

    logs.silence()
    deduplicators: defaultdict[Source, Deduplicator] = defaultdict(Deduplicator)
    try:
        async with aclosing(read_records(reader, SystemClock(), print_error)) as batches:
            async for batch in batches:
                if notice:
                    print_error(notice)
                    notice = ""
                accepted = [
                    read for read in batch if deduplicators[read.record.source].accept(read.record) or show_duplicates
                ]
                if lines := list(format_records(read for read in accepted if record_filter(read.record))):
                    output.write("\n".join(lines))
    except BridgeError as error:
        raise CommandError.from_error(error) from error


def _format_lines(records: Iterable[ReadRecord]) -> Iterator[str]:
    from bridge.cli.record_format import format_record

    colored = output.is_colored()
    return (format_record(each.record, colored=colored) for each in records)


def _format_json_lines(records: Iterable[ReadRecord]) -> Iterator[str]:
    from bridge.telemetry.safe_text import printable_json

    for each in records:
        text = each.data.decode(errors="backslashreplace").replace("\n", " ")
        yield printable_json(text) if output.is_terminal() else text


class RecordFilter(NamedTuple):
    """Matches records by globs; a filter that is not set matches everything."""

    namespaces: Globs = None
    excluded_namespaces: Globs = None
    projects: Globs = None
    containers: Globs = None
    hosts: Globs = None
    types: Globs = None
    since: datetime | None = None

    def __call__(self, record: DecodedRecord) -> bool:
        """Return whether a record matches all filters."""
        if self.since is not None and record.timestamp[:_SECOND_LENGTH] < _format_timestamp(self.since):
            return False
        if record.type == "heartbeat" and not self.types:
            return False
        return (
            options.matches(self.hosts, record.host)
            and options.matches(self.types, record.type)
            and self._matches_container(record)
        )

    def _matches_container(self, record: DecodedRecord) -> bool:
        container = record.container
        if container is None:  # a loss may affect matching containers
            return record.type == "lost" or not (self.namespaces or self.projects or self.containers)
        return (
            options.matches(self.namespaces, container.namespace)
            and not (self.excluded_namespaces and options.matches(self.excluded_namespaces, container.namespace))
            and options.matches(self.projects, container.project)
            and options.matches(self.containers, container.name, container.id, record.id or "")
        )


def _format_timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat()[:_SECOND_LENGTH]  # strftime writes years before 1000 without zeros
