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
Sinks = Annotated[
    list[str] | None,
    typer.Option(
        "--sink",
        metavar="[ID=]URL",
        help="Sink for all records; may be repeated: stdout: (the default), file:PATH, kafka://HOST:PORT/TOPIC, "
        "nats://HOST:PORT/SUBJECT.PREFIX; with TLS kafkas:// and tls://. Replaces all sinks of the configuration. "
        "The id defaults to the type: stdout, file, kafka, nats.",
    ),
]
StateDir = Annotated[
    str | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        help="Directory of whalebridge's own for what must outlive the process, records on their way among it. "
        "Default: none, they are in memory.",
    ),
]
Interval = Annotated[
    str | None,
    typer.Option(
        "--snapshot-interval",
        metavar="DURATION",
        help="How long after one snapshot the next is taken at the latest: 90s, 15m, 6h, 1d. Default: 6h.",
    ),
]
LogLevel = Annotated[
    str | None, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error. Default: info.")
]
LogFormat = Annotated[
    str | None,
    typer.Option(
        "--log-format",
        metavar="FORMAT",
        help="console, json, or auto: console on a terminal, json elsewhere. Default: auto.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document instead of lines.")]


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
        raise CommandError(*error.errors, status=WRONG_USAGE) from error


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


def of_run(
    *,
    state_dir: str | None,
    snapshot_interval: str | None,
    log_level: str | None,
    log_format: str | None,
    **others: Any,
) -> Callable[[], Settings]:
    """Return what reads the settings that the options of ``run`` stand for."""
    return reader(
        **others,
        state_dir=state_dir and _absolute(state_dir),
        snapshot={"interval": snapshot_interval},
        log={"level": log_level, "format": log_format},
    )


def _absolute(path: str) -> str:
    """Make a path absolute; only the shell knows what a relative one is relative to. A URL is for others to judge."""
    return path if "://" in path else os.path.abspath(path)


def _given(flags: dict[str, Any]) -> dict[str, Any]:
    """Leave out options that were not given: typer says None of those, or no items."""
    told = {name: _given(value) if isinstance(value, dict) else value for name, value in flags.items()}
    return {name: value for name, value in told.items() if value is not None and value not in ([], {})}
