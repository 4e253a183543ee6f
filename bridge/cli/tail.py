"""``whalebridge tail``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import aclosing, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from bridge.cli import options, output
from bridge.cli.failure import WRONG_USAGE, CommandError

if TYPE_CHECKING:
    from bridge.cli.chosen import Chosen
    from bridge.fleet.documents import Source
    from bridge.fleet.messages import Begin, Reader
    from bridge.fleet.records import Read

Target = Annotated[
    str,
    typer.Argument(
        metavar="SINK",
        help="Id of a configured sink, or a URL: kafka://HOST:PORT/TOPIC, nats://HOST:PORT/SUBJECT.PREFIX, file:PATH; "
        "with TLS kafkas:// and tls://; - for standard input.",
    ),
]
Since = Annotated[
    str | None,
    typer.Option(
        "--since",
        metavar="WHEN",
        help="Start position: 15m, 6h, 2d ago; a time such as 2026-11-23T15:21:08Z (without a zone: local time); or "
        "beginning. Default: now; with --no-follow, beginning.",
    ),
]
Follow = Annotated[bool, typer.Option("--follow/--no-follow", help="Wait for new records at the end, or stop there.")]
Namespaces = Annotated[list[str] | None, typer.Option("--namespace", metavar="GLOB", help="Only matching namespaces.")]
Excluded = Annotated[
    list[str] | None, typer.Option("--exclude-namespace", metavar="GLOB", help="Exclude matching namespaces.")
]
Projects = Annotated[
    list[str] | None, typer.Option("--project", metavar="GLOB", help="Only matching compose projects.")
]
Containers = Annotated[
    list[str] | None, typer.Option("--container", metavar="GLOB", help="Only containers with a matching name or id.")
]
Hosts = Annotated[list[str] | None, typer.Option("--host", metavar="GLOB", help="Only matching hosts.")]
Types = Annotated[
    list[str] | None,
    typer.Option("--type", metavar="GLOB", help="Only matching record types: started, exited, lost and so on."),
]
Duplicates = Annotated[bool, typer.Option("--duplicates", help="Show duplicate records too.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print records as published, one JSON document per line.")]

_BEGINNING = "beginning"
_FROM_NOW_ON = "showing new records only; use --since 15m for earlier ones"
_MARGIN = timedelta(minutes=1)  # a broker's clock may differ from a node's by this
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)  # brokers interpret earlier times differently


def tail(
    sink: Target,
    config: options.Config = None,
    since: Since = None,
    follow: Follow = True,
    namespace: Namespaces = None,
    exclude_namespace: Excluded = None,
    project: Projects = None,
    container: Containers = None,
    host: Hosts = None,
    type_: Types = None,
    duplicates: Duplicates = False,
    as_json: AsJson = False,
) -> None:
    """Read published records, one per line.

    Duplicate records are skipped, and so are heartbeats unless --type matches them. Each filter may be repeated; with a
    filter for namespaces, projects or containers, "lost" is the only control record shown.
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

    from bridge.cli.chosen import Chosen

    beginning = since == _BEGINNING or not (since or follow)
    moment = None if beginning or since is None else _moment(since)
    begin: Begin = "beginning" if beginning else moment or "end"
    reader = _reader(sink, begin, config, follow=follow)
    welcome = _FROM_NOW_ON if begin == "end" and reader.follow and output.to_terminal() else ""
    chosen = Chosen(namespace, exclude_namespace, project, container, host, type_, moment)
    with suppress(KeyboardInterrupt) if reader.follow else nullcontext():  # the regular end of following
        asyncio.run(_tail(reader, chosen, _json_lines if as_json else _lines, duplicates, welcome))


def _moment(since: str) -> datetime:
    """Parse the value of --since."""
    from pydantic import TypeAdapter

    from config.fields import Duration

    try:
        return datetime.now(UTC) - TypeAdapter(Duration).validate_python(since)
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(since).astimezone(UTC)
    except (ValueError, OverflowError):
        raise CommandError(
            f"--since: invalid value {since!r}; use 90s, 15m, 6h, 2d, a time like 2026-11-23T15:21:08Z, or beginning",
            status=WRONG_USAGE,
        ) from None


def _reader(target: str, begin: Begin, config: str | None, *, follow: bool) -> Reader:
    from bridge.clock import SystemClock
    from bridge.core.errors import FatalError
    from bridge.fleet import opening
    from bridge.fleet.files import InputReader
    from config.tail_target import tail_target

    if target == "-":
        return InputReader()
    try:
        settings = tail_target(target, lambda: options.settings(config=config).sinks)
    except ValueError as error:
        raise CommandError(str(error), status=WRONG_USAGE) from None
    if getattr(settings, "mode", None) == "core" and not (follow and begin == "end"):
        raise CommandError(
            "core NATS stores no records, only new records can be read; remove --since and --no-follow",
            status=WRONG_USAGE,
        )
    if isinstance(begin, datetime):
        begin = max(begin, _EARLIEST + _MARGIN) - _MARGIN
    try:
        return opening.reader(settings, SystemClock(), begin=begin, follow=follow)
    except FatalError as error:
        raise CommandError.of(error) from error


async def _tail(
    reader: Reader, chosen: Chosen, show: Callable[[Iterable[Read]], Iterator[str]], duplicates: bool, welcome: str
) -> None:
    from bridge.cli import complain
    from bridge.clock import SystemClock
    from bridge.core.errors import BridgeError
    from bridge.fleet.records import records
    from bridge.fleet.seen import Seen
    from bridge.telemetry import logs

    logs.silence()
    seen: defaultdict[Source, Seen] = defaultdict(Seen)
    try:
        async with aclosing(records(reader, SystemClock(), complain)) as batches:
            async for batch in batches:
                if welcome:
                    complain(welcome)
                    welcome = ""
                new = [each for each in batch if seen[each.document.source].take(each.document) or duplicates]
                if lines := list(show(each for each in new if chosen(each.document))):
                    output.write("\n".join(lines))
    except BridgeError as error:
        raise CommandError.of(error) from error


def _lines(found: Iterable[Read]) -> Iterator[str]:
    import os

    from bridge.cli.line import line

    coloured = output.to_terminal() and not os.environ.get("NO_COLOR")
    return (line(each.document, coloured=coloured) for each in found)


def _json_lines(found: Iterable[Read]) -> Iterator[str]:
    from bridge.telemetry.text import printable_json

    for each in found:
        text = each.data.decode(errors="backslashreplace").replace("\n", " ")
        yield printable_json(text) if output.to_terminal() else text
