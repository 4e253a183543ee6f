"""``whalebridge fleet``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from bridge.cli import options, output
from bridge.cli.errors import WRONG_USAGE, CommandError
from bridge.cli.record_inputs import create_reader, show_progress, table_entry_error

if TYPE_CHECKING:
    from bridge.cli.fleet_view import FleetFilter, FleetScreen
    from bridge.consumer.history import PastState
    from bridge.consumer.record_decoder import DecodedRecord
    from bridge.consumer.record_reader import Reader

Globs: TypeAlias = list[str] | None


def fleet(
    sink: options.Input,
    config: options.Config = None,
    host: Annotated[Globs, typer.Option(metavar="GLOBS", help="Only matching hosts.")] = None,
    namespace: Annotated[Globs, typer.Option(metavar="GLOBS", help="Only matching namespaces of containerd.")] = None,
    project: Annotated[Globs, typer.Option(metavar="GLOBS", help="Only matching compose projects.")] = None,
    pod: Annotated[Globs, typer.Option(metavar="GLOBS", help="Only matching pods, as NAMESPACE/NAME.")] = None,
    image: Annotated[Globs, typer.Option(metavar="GLOBS", help="Only matching images.")] = None,
    status: Annotated[Globs, typer.Option(metavar="LIST", help="Only these: running, paused, unknown.")] = None,
    at: Annotated[
        str | None,
        typer.Option(metavar="WHEN", help="Show a past moment: 15m, 6h, 2d ago; a time such as 2026-11-23T15:21:08Z."),
    ] = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option(metavar="WHEN WHEN", help="Show what has started and ended between two moments, as for --at."),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Print the table once, and end.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Show the running containers of all nodes in a live table.

    They come from published records, and are grouped by project or pod. The state of the containers of a stale source,
    which has been silent for too long, is unknown. Reads the topic from its beginning. Globs are separated by commas,
    or the option is repeated. Ctrl-C stops the command. With --once, --json, --at or --diff, it reads to the present
    end, prints the result, and says on standard error what the records do not show (with --json, in the document).

    With --at, a container runs from its start to its exit, as far as these times are known, otherwise to the time when
    whalebridge noticed the change. Clocks are those of the nodes.

    \b
    Examples:
      whalebridge fleet main
      whalebridge fleet kafka://localhost:9092/containers --project 'shop-*'
      whalebridge fleet main --once --status unknown
      whalebridge fleet main --at 2026-11-23T15:21:08Z --json | jq '.containers[].id'
      whalebridge fleet main --diff 1h 5m
    """
    import asyncio

    from bridge.cli.fleet_view import FleetFilter

    filter_ = FleetFilter(
        options.split_globs("--host", host),
        options.split_globs("--namespace", namespace, namespaces=True),
        options.split_globs("--project", project),
        options.split_globs("--pod", pod),
        options.split_globs("--image", image),
        _states(options.split_globs("--status", status)),
    )
    if diff is not None and (at is not None or filter_.statuses):
        raise CommandError("--diff cannot be combined with --at and --status", exit_status=WRONG_USAGE)
    moments = _moments(at, diff)
    is_live = not (once or as_json or moments)
    if is_live:
        from bridge.cli.live_display import require_terminal

        require_terminal("fleet", "--once or --json")
        if sink == "-":
            raise CommandError("standard input has an end; use --once", exit_status=WRONG_USAGE)
    reader = create_reader(sink, "beginning", config, follow=is_live)
    asyncio.run(_show(reader, sink, filter_) if is_live else _print(reader, filter_, moments, as_json=as_json))


def _states(states: list[str]) -> list[str]:
    from bridge.cli.fleet_view import STATUSES

    for each in states:
        if each not in STATUSES:
            text = f"--status: invalid value {each!r}; use {', '.join(STATUSES)}"
            raise CommandError(text, exit_status=WRONG_USAGE)
    return states


def _moments(at: str | None, diff: tuple[str, str] | None) -> list[datetime]:
    """Return the moments of --at or --diff, in order."""
    option, texts = ("--diff", diff) if diff else ("--at", () if at is None else (at,))
    moments = [options.parse_moment(option, each) for each in texts]
    if any(each > datetime.now(UTC) for each in moments):
        raise CommandError(f"{option}: a moment is in the future", exit_status=WRONG_USAGE)
    if moments != sorted(set(moments)):
        raise CommandError("--diff: the first moment must be before the second one", exit_status=WRONG_USAGE)
    return moments


async def _read(reader: Reader, apply: Callable[[DecodedRecord], object], notify: Callable[[str], None]) -> int:
    """Apply all records; return their number."""
    from bridge.clock import SystemClock
    from bridge.consumer.record_reader import read_records

    count = 0
    with show_progress(reader) as advance:
        async with aclosing(read_records(reader, SystemClock(), notify)) as batches:
            async for batch in batches:
                for record, _, _ in batch:
                    if record.is_table_entry:
                        raise table_entry_error("a message there")
                    apply(record)
                count += len(batch)
                advance(len(batch))
    return count


async def _print(reader: Reader, filter_: FleetFilter, moments: list[datetime], *, as_json: bool) -> None:
    from bridge.cli import container_table, fleet_view, print_error
    from bridge.consumer.history import PastState, Period
    from bridge.consumer.state import State
    from bridge.core.errors import BridgeError
    from bridge.telemetry import logs

    logs.silence()
    state: State | PastState | Period
    state = Period(*moments) if len(moments) == 2 else PastState(*moments) if moments else State()  # noqa: PLR2004
    try:
        count = await _read(reader, state.apply, print_error)
    except BridgeError as error:
        raise CommandError.from_error(error) from error
    if not count:
        raise CommandError("there are no records: nothing is known")
    is_terminal = output.is_terminal()
    if not isinstance(state, State):
        _check_begin(state.before if isinstance(state, Period) else state)
    if isinstance(state, Period):
        if as_json:
            output.write_json(fleet_view.period_document(state, filter_))
            return
        columns, lines = fleet_view.PERIOD_COLUMNS, fleet_view.period_cells(state, filter_)
        notes = fleet_view.period_notes(state, filter_)
    else:
        view = fleet_view.Fleet.of(state, filter_)
        if as_json:
            output.write_json(view.document())
            return
        columns, lines = fleet_view.COLUMNS, view.cells(short=is_terminal)
        notes = view.notes()
    output.write(container_table.draw(columns, lines, terminal=is_terminal))
    print_error(*notes)


def _check_begin(state: PastState) -> None:
    """Check that the records begin before the moment of a state.

    Raises:
        CommandError: They begin later, so nothing is known of it.
    """
    if state.begins_at is not None and state.begins_at > state.at:
        begin, moment = (f"{each:%Y-%m-%dT%H:%M:%SZ}" for each in (state.begins_at, state.at))
        raise CommandError(f"the records begin at {begin}: nothing is known of {moment}")


async def _show(reader: Reader, target: str, filter_: FleetFilter) -> None:
    from bridge.cli.fleet_view import FleetScreen
    from bridge.cli.live_display import run_until_signal
    from bridge.core.errors import BridgeError
    from bridge.telemetry import logs

    logs.silence()
    try:
        await run_until_signal(_follow(reader, FleetScreen(target, filter_)))
    except BridgeError as error:
        raise CommandError.from_error(error) from error


async def _follow(reader: Reader, screen: FleetScreen) -> None:
    """Show the page from the moment on at which the reader is connected."""
    from bridge.cli.live_display import show
    from bridge.clock import SystemClock
    from bridge.consumer.record_reader import read_records
    from bridge.task_groups import task_group

    async with aclosing(read_records(reader, SystemClock(), screen.notify)) as batches, task_group() as tasks:
        is_shown = False
        async for batch in batches:
            if not is_shown:
                tasks.create_task(show(screen.page, screen.changed))
                is_shown = True
            for record, _, _ in batch:
                if record.is_table_entry:
                    raise table_entry_error("a message there")
                screen.state.apply(record)
            screen.changed.set()
