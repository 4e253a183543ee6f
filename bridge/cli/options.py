"""Options of several commands, and loading the settings with them."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

import inspect
import os
from collections.abc import Callable
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypedDict, Unpack, get_args, get_type_hints

import typer

from bridge.cli.errors import WRONG_USAGE, CommandError

if TYPE_CHECKING:
    from config.settings import Settings

Config = Annotated[
    str | None,
    typer.Option(
        metavar="FILE", help="Configuration file (YAML). Default: /etc/whalebridge/config.yaml, if it exists."
    ),
]
Containerd = Annotated[
    str | None,
    typer.Option(
        metavar="PATH", help="containerd's socket: PATH or unix://PATH. Default: /run/containerd/containerd.sock."
    ),
]
Input = Annotated[
    str,
    typer.Argument(
        metavar="SINK",
        help="Id of a configured sink, or a URL: kafka://HOST:PORT/TOPIC, nats://HOST:PORT/SUBJECT.PREFIX, "
        "file:PATH; with TLS kafkas:// and tls://; - for standard input.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of lines.")]


class ContainerdOptions(TypedDict, total=False):
    """The options of commands that read from containerd."""

    config: Config
    containerd: Containerd
    namespace: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GLOBS",
            help="Only matching namespaces; separated by commas, or the option is repeated. Default: all except "
            "Docker's (moby), which must be included explicitly.",
        ),
    ]
    exclude_namespace: Annotated[
        list[str] | None, typer.Option(metavar="GLOBS", help="Exclude matching namespaces; written as --namespace.")
    ]


class RunOptions(ContainerdOptions, total=False):
    """The options of ``run`` and ``check``."""

    sink: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[ID=]URL",
            help="Sink for all records; may be repeated: stdout: (the default), file:PATH, kafka://HOST:PORT/TOPIC, "
            "nats://HOST:PORT/SUBJECT.PREFIX, http://HOST:PORT/PATH; with TLS kafkas://, tls:// and https://. Replaces "
            "all sinks of the configuration. The id defaults to the type: stdout, file, kafka, nats, http.",
        ),
    ]
    state_dir: Annotated[
        str | None,
        typer.Option(
            metavar="DIR",
            help="Directory for state that survives restarts, including undelivered records. Default: none "
            "(in memory).",
        ),
    ]
    snapshot_interval: Annotated[
        str | None,
        typer.Option(metavar="DURATION", help="Maximum time between two snapshots: 90s, 15m, 6h, 1d. Default: 6h."),
    ]
    log_level: Annotated[
        str | None, typer.Option(metavar="LEVEL", help="Minimum: debug, info, warning, error. Default: info.")
    ]
    log_format: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT", help="console, json, or auto (console on a terminal, otherwise json). Default: auto."
        ),
    ]


def shared(command: Callable[..., None]) -> Callable[..., None]:
    """Replace ``**given`` of a command by a parameter for each option of its type, as typer expects."""
    signature = inspect.signature(command, eval_str=True)
    *own, given = signature.parameters.values()
    (options,) = get_args(given.annotation)
    hints = get_type_hints(options, include_extras=True)
    parameters = [
        *(inspect.Parameter(name, given.KEYWORD_ONLY, default=None, annotation=hint) for name, hint in hints.items()),
        *(parameter.replace(kind=given.KEYWORD_ONLY) for parameter in own),
    ]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined] # inspect reads it
    return command


def load_settings(**given: Unpack[RunOptions]) -> Settings:
    """Return the settings; options override all other sources.

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


def settings_loader(**given: Unpack[RunOptions]) -> Callable[[], Settings]:
    """Return a function that loads the settings on each call, and raises a ``SettingsError`` if they are invalid."""
    from config.settings import load

    containerd, state_dir = given.get("containerd"), given.get("state_dir")
    options = {
        "containerd": {"address": containerd and _absolute(containerd)},
        "namespaces": {"include": given.get("namespace"), "exclude": given.get("exclude_namespace")},
        "sinks": given.get("sink"),
        "state_dir": state_dir and _absolute(state_dir),
        "snapshot": {"interval": given.get("snapshot_interval")},
        "log": {"level": given.get("log_level"), "format": given.get("log_format")},
    }
    return partial(load, _drop_unset(options), config_path(**given))


def config_path(**given: Unpack[RunOptions]) -> str | None:
    """Return the absolute path of ``--config``; None if it is not given."""
    config = given.get("config")
    return None if config is None else os.path.abspath(config)


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


def matches(globs: list[str] | None, *values: str) -> bool:
    """Return whether a glob matches a value; no globs match everything."""
    return not globs or any(fnmatchcase(value, glob) for glob in globs for value in values)


def parse_moment(option: str, text: str, *, or_else: str = "") -> datetime:
    """Parse a time, or a duration before now; ``or_else`` names what else the option may be, for the message.

    Raises:
        CommandError: The text is neither.
    """
    from pydantic import TypeAdapter

    from config.fields import Duration

    try:
        return datetime.now(UTC) - TypeAdapter(Duration).validate_python(text)
    except (ValueError, OverflowError):
        pass
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
        raise CommandError(
            f"{option}: invalid value {text!r}; use 90s, 15m, 6h, 2d, {'' if or_else else 'or '}"
            f"a time like 2026-11-23T15:21:08Z{or_else}",
            exit_status=WRONG_USAGE,
        ) from None


def _absolute(path: str) -> str:
    """Make a path absolute, relative to the working directory of the shell; URLs are unchanged and checked later."""
    return path if "://" in path else os.path.abspath(path)


def _drop_unset(flags: dict[str, Any]) -> dict[str, Any]:
    """Drop options that are not set: typer passes None or an empty list for them."""
    values = {name: _drop_unset(value) if isinstance(value, dict) else value for name, value in flags.items()}
    return {name: value for name, value in values.items() if value is not None and value not in ([], {})}
