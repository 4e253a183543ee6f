"""The man page whalebridge(1), from the help of the commands.

python deploy/man_page.py > whalebridge.1
"""

from __future__ import annotations

import datetime
import os
import sys
from collections.abc import Iterator

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup

from bridge import __version__
from bridge.cli import NAME, app

_PLACES = """\
.SH ENVIRONMENT
Every setting has a variable: \\fBWHALEBRIDGE_LOG__LEVEL\\fR is \\fBlog.level\\fR.
.SH FILES
.TP
.I /etc/whalebridge/config.yaml
Configuration, unless \\fB\\-\\-config\\fR names another file. The command line and the environment have precedence.
.SH EXIT STATUS
.TP
0
Success.
.TP
1
The command failed, or an argument names nothing or more than one thing.
.TP
2
Wrong usage or configuration.
.TP
3
A connection failed.
"""


def main() -> int:
    """Write the page to standard output."""
    sys.stdout.write(man_page(app, int(os.environ.get("SOURCE_DATE_EPOCH", "0"))))
    return 0


def man_page(program: typer.Typer, seconds: int) -> str:
    """Return the page in roff; its date is that of a time in seconds since 1970."""
    group = typer.main.get_group(program)
    date = datetime.datetime.fromtimestamp(seconds, datetime.UTC).date()
    summary = (group.help or "").rstrip(".")
    head = (
        f'.TH {NAME.upper()} 1 {date} "{NAME} {__version__}" "User Commands"\n'
        f".SH NAME\n{NAME} \\- {_escaped(summary[0].lower() + summary[1:])}\n"
        f".SH SYNOPSIS\n.B {NAME}\n.I COMMAND\n[\\fIOPTION\\fR]...\n.SH COMMANDS\n"
    )
    return head + "".join(_command(name, command) for name, command in _commands(group)) + _PLACES


def _commands(group: TyperGroup, prefix: str = "") -> Iterator[tuple[str, TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _commands(command, f"{prefix}{name} ")
        elif isinstance(command, TyperCommand) and not command.hidden:
            yield prefix + name, command


def _command(name: str, command: TyperCommand) -> str:
    """Return the subsection of a command: its usage, its help, its arguments and options."""
    context = typer.Context(command)
    parameters = [(each, each.get_help_record(context)) for each in command.params]
    arguments = [each.metavar or "" for each in command.params if isinstance(each, TyperArgument)]
    usage = " ".join(["[\\fIOPTION\\fR]...", *(f"\\fI{_escaped(each)}\\fR" for each in arguments)])
    lines = [f'.SS "{NAME} {name}"', usage, *_help(command.help or "")]
    for parameter, record in parameters:
        if record is not None:  # it is not hidden
            names, _, placeholder = record[0].partition(" ")
            style = "I" if isinstance(parameter, TyperArgument) else "B"
            label = f"\\f{style}{_escaped(names)}\\fR" + (f" \\fI{_escaped(placeholder)}\\fR" if placeholder else "")
            lines += [".TP", label, _line(" ".join(record[1].split()))]
    return "\n".join(lines) + "\n"


def _help(text: str) -> Iterator[str]:
    """Yield the lines of a help text, whose paragraphs after a backspace keep their line breaks."""
    for paragraph in text.split("\n\n"):
        yield ".PP"
        if paragraph.startswith("\b\n"):
            yield ".nf"
            yield from map(_line, paragraph.splitlines()[1:])
            yield ".fi"
        else:
            yield _line(" ".join(paragraph.split()))


def _line(text: str) -> str:
    """Return a line of text that roff does not take for a request."""
    return f"\\&{_escaped(text)}" if text.startswith((".", "'")) else _escaped(text)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\e").replace("-", "\\-")


if __name__ == "__main__":
    sys.exit(main())
