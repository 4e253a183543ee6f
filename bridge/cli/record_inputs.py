"""Inputs of commands that read published records: a configured sink, a URL, or standard input."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from bridge.cli import options
from bridge.cli.errors import WRONG_USAGE, CommandError

if TYPE_CHECKING:
    from bridge.consumer.reader_factory import Readable
    from bridge.consumer.record_reader import Reader, StartPosition

_CLOCK_TOLERANCE = timedelta(minutes=1)  # a broker's clock may differ from a node's by this
_PROGRESS_SECONDS = 0.5
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)  # brokers interpret earlier times differently


def resolve(target: str, config: str | None) -> Readable:
    """Return the settings of a configured sink, by its id, or of a URL.

    Raises:
        CommandError: There are none, or the target cannot be read.
    """
    from bridge.consumer import reader_factory

    try:
        return reader_factory.resolve(target, lambda: options.load_settings(config=config).sinks)
    except ValueError as error:
        raise CommandError(str(error), exit_status=WRONG_USAGE) from None


def create_reader(target: str, start_position: StartPosition, config: str | None, *, follow: bool) -> Reader:
    """Return a reader for the id of a sink, a URL, or - for standard input.

    Raises:
        CommandError: The target cannot be read.
    """
    from bridge.clock import SystemClock
    from bridge.consumer import reader_factory
    from bridge.consumer.files import StdinReader
    from bridge.core.errors import FatalError

    if target == "-":
        if sys.stdin is None:
            raise CommandError("standard input is closed; redirect a file or a pipe to it")
        return StdinReader()
    settings = resolve(target, config)
    if getattr(settings, "mode", None) == "core" and not (follow and start_position == "end"):
        raise CommandError(
            "core NATS stores no records; only tail can read it, without --since and --no-follow",
            exit_status=WRONG_USAGE,
        )
    if isinstance(start_position, datetime):
        start_position = max(start_position, _EARLIEST + _CLOCK_TOLERANCE) - _CLOCK_TOLERANCE
    try:
        return reader_factory.create_reader(settings, SystemClock(), start_position=start_position, follow=follow)
    except FatalError as error:
        raise CommandError.from_error(error) from error


@contextmanager
def show_progress(reader: Reader) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on standard error, if it is a terminal and reading to the end takes longer than a moment.

    Returns:
        A function that takes the number of messages that were read since its last call.
    """
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    from bridge.clock import SystemClock
    from bridge.core.time import SECOND

    columns = (TextColumn("{task.completed:,.0f} messages read"), BarColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task, now = bar.add_task(""), SystemClock().now
    show_at = now().monotonic + _PROGRESS_SECONDS * SECOND

    def advance(count: int) -> None:
        bar.update(task, total=reader.total, advance=count)
        if not bar.live.is_started and now().monotonic > show_at:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()


def table_entry_error(name: str) -> CommandError:
    """Return the error for a message, called ``name``, of a state topic or bucket, which repeats only some records."""
    return CommandError(f"{name} is an entry of a state topic or bucket; use the topic or stream of the records")
