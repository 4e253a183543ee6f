"""Options that several commands take, and the settings that come of them."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge.cli.failure import WRONG_USAGE, CommandError

if TYPE_CHECKING:
    from config.settings import Settings

Containerd = Annotated[
    str | None,
    typer.Option(
        "--containerd",
        metavar="PATH",
        help="containerd's socket, PATH or unix://PATH. Default: /run/containerd/containerd.sock.",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--namespace",
        metavar="GLOB",
        help="Only namespaces that fit; may be repeated. Default: all but Docker's (moby), which has to be named.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude-namespace", metavar="GLOB", help="No namespaces that fit; may be repeated."),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML file with settings. Default: /etc/whalebridge/config.yaml, where it exists.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of a table.")]


def settings(**given: Any) -> Settings:
    """Return the settings, of which options that were given (see ``reader``) override all others.

    Raises:
        CommandError: Some of them are wrong; all that is wrong is told.
    """
    return settled(reader(**given))


def settled(read: Callable[[], Settings]) -> Settings:
    """Return the settings that ``read`` reads.

    Raises:
        CommandError: Some of them are wrong; all that is wrong is told.
    """
    from config.settings import SettingsError

    try:
        return read()
    except SettingsError as error:
        raise CommandError(*error.mistakes, status=WRONG_USAGE) from error


def reader(
    *,
    config: str | None = None,
    containerd: str | None = None,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    **sections: Any,
) -> Callable[[], Settings]:
    """Return what reads the settings anew each time it is called, and raises a ``SettingsError`` if they are wrong."""
    from config.settings import load

    flags = {
        "containerd": {"address": containerd and _absolute(containerd)},
        "namespaces": {"include": include, "exclude": exclude},
    } | sections
    return partial(load, _given(flags), None if config is None else os.path.abspath(config))


def _absolute(address: str) -> str:
    """Make a path absolute; only the shell knows what a relative one is relative to."""
    return address if "://" in address else os.path.abspath(address)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """Leave out options that were not given: typer says None of those, or no items."""
    told = {name: _given(value) if isinstance(value, dict) else value for name, value in flags.items()}
    return {name: value for name, value in told.items() if value is not None and value not in ([], {})}
