"""Options of several commands, and loading the settings with them."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge.cli.errors import WRONG_USAGE, CommandError

if TYPE_CHECKING:
    from config.settings import Settings

Containerd = Annotated[
    str | None,
    typer.Option(
        "--containerd",
        metavar="PATH",
        help="containerd's socket: PATH or unix://PATH. Default: /run/containerd/containerd.sock.",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(
        "--namespace",
        metavar="GLOBS",
        help="Only matching namespaces; separated by commas, or the option is repeated. Default: all except Docker's "
        "(moby), which must be included explicitly.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude-namespace", metavar="GLOBS", help="Exclude matching namespaces; written as --namespace."),
]
Config = Annotated[
    str | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Configuration file (YAML). Default: /etc/whalebridge/config.yaml, if it exists.",
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
        help="Directory for state that survives restarts, including undelivered records. Default: none (in memory).",
    ),
]
Interval = Annotated[
    str | None,
    typer.Option(
        "--snapshot-interval",
        metavar="DURATION",
        help="Maximum time between two snapshots: 90s, 15m, 6h, 1d. Default: 6h.",
    ),
]
LogLevel = Annotated[
    str | None,
    typer.Option("--log-level", metavar="LEVEL", help="Minimum: debug, info, warning, error. Default: info."),
]
LogFormat = Annotated[
    str | None,
    typer.Option(
        "--log-format",
        metavar="FORMAT",
        help="console, json, or auto (console on a terminal, otherwise json). Default: auto.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")]


def load_settings(**given: Any) -> Settings:
    """Return the settings; options (see ``settings_loader``) override all other sources.

    Raises:
        CommandError: Settings are invalid; it has all validation errors.
    """
    return load_or_exit(settings_loader(**given))


def load_or_exit(loader: Callable[[], Settings]) -> Settings:
    """Return the settings that ``loader`` loads.

    Raises:
        CommandError: Settings are invalid; it has all validation errors.
    """
    from config.settings import SettingsError

    try:
        return loader()
    except SettingsError as error:
        raise CommandError(*error.errors, exit_status=WRONG_USAGE) from error


def settings_loader(
    *,
    config: str | None = None,
    containerd: str | None = None,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    **sections: Any,
) -> Callable[[], Settings]:
    """Return a function that loads the settings on each call, and raises a ``SettingsError`` if they are invalid."""
    from config.settings import load

    flags = {
        "containerd": {"address": containerd and _absolute(containerd)},
        "namespaces": {"include": include, "exclude": exclude},
    } | sections
    return partial(load, _drop_unset(flags), None if config is None else os.path.abspath(config))


def run_settings_loader(
    *,
    state_dir: str | None,
    snapshot_interval: str | None,
    log_level: str | None,
    log_format: str | None,
    **others: Any,
) -> Callable[[], Settings]:
    """Return the settings loader for the options of ``run``."""
    return settings_loader(
        **others,
        state_dir=state_dir and _absolute(state_dir),
        snapshot={"interval": snapshot_interval},
        log={"level": log_level, "format": log_format},
    )


def split_globs(option: str, values: list[str] | None, *, namespaces: bool = False) -> list[str]:
    """Return the globs of an option that may be repeated; each value may have several, separated by commas.

    Raises:
        CommandError: A glob is for ``namespaces``, and no namespace can match it.
    """
    from config.fields import check_namespace_glob

    globs = [glob.strip() for value in values or () for glob in value.split(",")]
    try:
        return [check_namespace_glob(glob) for glob in globs] if namespaces else globs
    except ValueError as error:
        raise CommandError(f"{option}: {error}", exit_status=WRONG_USAGE) from error


def _absolute(path: str) -> str:
    """Make a path absolute, relative to the working directory of the shell; URLs are unchanged and checked later."""
    return path if "://" in path else os.path.abspath(path)


def _drop_unset(flags: dict[str, Any]) -> dict[str, Any]:
    """Drop options that are not set: typer passes None or an empty list for them."""
    values = {name: _drop_unset(value) if isinstance(value, dict) else value for name, value in flags.items()}
    return {name: value for name, value in values.items() if value is not None and value not in ([], {})}
