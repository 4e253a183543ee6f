"""``whalebridge audit``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

from collections.abc import Iterator
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from bridge.cli import options, output
from bridge.cli.errors import CommandError
from bridge.cli.record_inputs import create_reader, show_progress, table_entry_error

if TYPE_CHECKING:
    from bridge.consumer.audit import Audit, Finding, Report
    from bridge.consumer.record_reader import Reader

_MAX_LINES = 20  # findings of a kind that are printed


def audit(
    inputs: Annotated[
        list[str],
        typer.Argument(
            metavar="INPUT...",
            help="Ids of configured sinks, or URLs: kafka://HOST:PORT/TOPIC, nats://HOST:PORT/SUBJECT.PREFIX, "
            "file:PATH; with TLS kafkas:// and tls://; - for standard input.",
        ),
    ],
    config: options.Config = None,
    unordered: Annotated[
        bool,
        typer.Option(
            "--unordered", help="Accept records in any order, as streams without atomic batches may store them."
        ),
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """Check that published records are complete and consistent.

    Proves that they are, or names each defect. Reads all inputs to their present end. Records of several inputs
    (rotated files, copies of a topic) complete one another. Checked are: sequences without holes, unless a lost record
    announces them; repeated records, which must be the same bytes; the order of each source; the runs of each
    container, which start once, are paused and resumed in turn, and exit once; and snapshots, which must agree with the
    records before them. Only values are judged, so a copy without keys and headers will do. What records cannot show is
    listed as unknown. Needs about 0.5 KiB of memory per record.

    Exit status: 0 if there are records, and no defects; 1 if not, or if an input does not exist; 3 if a connection
    failed.

    \b
    Examples:
      whalebridge audit kafka://localhost:9092/containers
      whalebridge audit main --json | jq '.findings[]'
      whalebridge audit file:/var/log/whalebridge/events.jsonl
      kcat -C -e -b localhost:9092 -t containers | whalebridge audit -
    """
    import asyncio

    readers = [create_reader(each, "beginning", config, follow=False) for each in inputs]
    report = asyncio.run(_audit(readers, ordered=not unordered))
    if as_json:
        import msgspec

        output.write_json(msgspec.to_builtins(report))
    else:
        output.write("\n".join(_format(report)))
    if not report.holds:
        raise CommandError


async def _audit(readers: list[Reader], *, ordered: bool) -> Report:
    from bridge.consumer.audit import Audit
    from bridge.core.errors import BridgeError
    from bridge.telemetry import logs

    logs.silence()
    collected = Audit()
    try:
        for number, reader in enumerate(readers):
            await _collect(reader, collected, number, ordered=ordered)
    except BridgeError as error:
        raise CommandError.from_error(error) from error
    return collected.report()


async def _collect(reader: Reader, collected: Audit, number: int, *, ordered: bool) -> None:
    """Read an input to its end."""
    from bridge.clock import SystemClock
    from bridge.consumer.record_decoder import InvalidMessageError, decode
    from bridge.consumer.record_reader import read

    with show_progress(reader) as advance:
        async with aclosing(read(reader, SystemClock())) as batches:
            async for batch in batches:
                for message in batch:
                    try:
                        record, data = decode(message.data)
                    except InvalidMessageError as error:
                        collected.add_invalid(f"message {message.number} of {message.location}", str(error))
                    else:
                        if record.is_table_entry:
                            raise table_entry_error(f"message {message.number} of {message.location}")
                        collected.add(record, data, input_number=number, ordered=ordered)
                advance(len(batch))


def _format(report: Report) -> Iterator[str]:
    """Format a report for people."""
    from bridge.telemetry.safe_text import printable

    for source in report.sources:
        yield printable(
            f"source {source.host}/{source.engine}: {source.records} records from {_position(source.first)} "
            f"({source.first_at}) to {_position(source.last)} ({source.last_at})"
        )
        for text in source.unknown:
            yield printable(f"  unknown: {text}")
    by_kind: dict[str, list[Finding]] = {}
    for finding in report.findings:
        by_kind.setdefault(finding.kind, []).append(finding)
    for kind, findings in by_kind.items():
        for finding in findings[:_MAX_LINES]:
            yield printable(f"{kind}: {_format_finding(finding)}")
        if len(findings) > _MAX_LINES:
            yield f"{kind}: {len(findings) - _MAX_LINES} more; --json lists all"
    total = f"{report.records} records, {report.repeated} repetitions, {report.heartbeats} heartbeats"
    if not report.records:
        yield f"{total}: nothing to check"
    elif report.findings:
        yield f"{total}: {len(report.findings)} {'defect' if len(report.findings) == 1 else 'defects'}"
    else:
        yield f"{total}: no defects"


def _format_finding(finding: Finding) -> str:
    if not finding.epoch:
        return finding.text
    sequences = f"{finding.first}" if finding.first == finding.last else f"{finding.first} to {finding.last}"
    times = f"after {finding.after}" if finding.after else ""
    if finding.before:
        times = f"between {finding.after} and {finding.before}" if finding.after else f"before {finding.before}"
    place = f"{finding.host}/{finding.engine} epoch {finding.epoch} sequence {sequences}"
    return f"{place}: {finding.text}{f' ({times})' if times else ''}"


def _position(position: tuple[int, int]) -> str:
    return f"{position[0]}-{position[1]}"
