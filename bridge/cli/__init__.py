"""The command line: assembles the commands and handles their errors.

Expected errors are lines on standard error that begin with ``whalebridge:``, without a traceback.
Exit status: 0 success; 1 failed, not found or ambiguous; 2 wrong usage or invalid settings; 3 a connection failed.
"""

from __future__ import annotations

import contextlib
import errno
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from bridge import signal_mask
from bridge.cli import output
from bridge.cli.commands import (
    audit,
    check,
    conformance,
    doctor,
    fleet,
    inspect,
    list_,
    proxy,
    retire,
    run,
    schema,
    snapshot,
    tail,
    version,
    watch,
)
from bridge.cli.errors import FAILED, INTERRUPTED, WRONG_USAGE, CommandError
from bridge.telemetry.safe_text import printable

NAME = "whalebridge"
_COMPLETE = "_WHALEBRIDGE_COMPLETE"  # set by typer's completion scripts
_URL_CREDENTIALS = re.compile(r"(://)\S*@")  # in a misplaced URL: error messages may end up in logs

app = typer.Typer(
    help="Publish container lifecycle events from containerd.",
    epilog=f"See '{NAME} COMMAND --help' for details and examples.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, quickly
)


@app.callback()
def _global_options(
    _version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=version.print_and_exit, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("run")(run.run)
app.command("list")(list_.list_)
app.command("inspect")(inspect.inspect)
app.command("watch")(watch.watch)
app.command("tail")(tail.tail)
app.command("fleet")(fleet.fleet)
app.command("audit")(audit.audit)
app.command("retire")(retire.retire)
app.command("conformance")(conformance.conformance)
app.command("check")(check.check)
app.command("doctor")(doctor.doctor)
app.add_typer(schema.app, name="schema")
app.command("snapshot")(snapshot.snapshot)
app.command("proxy")(proxy.proxy)
app.command("version")(version.version)


def main() -> None:
    """Run the command in the process's arguments, and exit.

    Unblocks the signals that are blocked during the start, except for ``run``, which unblocks them when it can stop.
    """
    _open_missing_descriptors()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # for names that the locale cannot encode
    try:
        if sys.argv[1:2] != ["run"]:
            signal_mask.unblock()
        status = execute(sys.argv[1:])
    except KeyboardInterrupt:
        status = INTERRUPTED
    sys.exit(status)


def execute(arguments: Sequence[str]) -> int:
    """Run a command; return the exit status."""
    if not arguments and _COMPLETE not in os.environ:
        execute(["--help"])
        return WRONG_USAGE
    try:
        return _invoke(arguments)
    except CommandError as failure:
        print_error(*failure.lines)
        return failure.exit_status
    except typer.TyperException as error:  # wrong usage
        text = _URL_CREDENTIALS.sub(r"\1...@", error.format_message())
        context = getattr(error, "ctx", None)
        path = NAME if context is None else context.command_path
        print_error(f"{text}{'' if text.endswith(('.', '?')) else '.'} See '{path} --help'.")
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except SystemExit as end:  # raised by typer if the pipe closes while it prints help
        return end.code if isinstance(end.code, int) else FAILED


def _invoke(arguments: Sequence[str]) -> int:
    command = typer.main.get_command(app)
    try:
        return command.main(args=list(arguments), prog_name=NAME, standalone_mode=False) or 0
    except OSError as error:  # typer's help; commands print with ``output``
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        output.discard()
        raise CommandError(f"standard output cannot be written: {error.strerror}") from error


def print_error(*lines: str) -> None:
    """Print error lines to standard error, without control characters."""
    if sys.stderr is None:
        return
    with contextlib.suppress(OSError):
        sys.stderr.writelines(f"{NAME}: {printable(line)}\n" for line in lines)
        sys.stderr.flush()


def _open_missing_descriptors() -> None:
    """Open standard descriptors that were closed at the start, so that no other file gets their numbers."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
