"""The types of settings: how their values are written, parsed and checked."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    WithJsonSchema,
    model_validator,
)

_T = TypeVar("_T")
DURATION = "duration: a whole number and s, m, h or d"
_DURATION = re.compile(r"(\d{1,9})([smhd])")
_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path holds 108 with the closing zero
_NAMESPACE = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")  # containerd's rule
_NAMESPACE_LETTERS = re.compile(r"[A-Za-z0-9._-]*")
_MAX_NAMESPACE_LENGTH = 76
_WILDCARD = re.compile(r"[*?]|\[!?[A-Za-z0-9._-]+\]")
_ATTRIBUTE_NAME = "[a-z][a-z0-9]{0,19}"  # an attribute of CloudEvents, and a label of Prometheus
_RESERVED_ATTRIBUTES = (  # of every CloudEvent
    "data",
    "datacontenttype",
    "dataschema",
    "id",
    "partitionkey",
    "sequence",
    "source",
    "specversion",
    "subject",
    "time",
    "type",
)
MAX_ATTRIBUTES = 16
MAX_ATTRIBUTE_LENGTH = 128  # characters
_JSON_LISTS = ('["', "['")  # a glob may start with a bracket, too


class SettingsModel(BaseModel):
    """A group of settings: immutable, and without unknown names."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_groups(cls, values: object) -> object:
        """Ignore a group without a value, which YAML yields where all lines of the group are comments."""
        if not isinstance(values, dict):
            return values
        groups = {
            name
            for name, field in cls.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        }
        return {name: value for name, value in values.items() if value is not None or name not in groups}


def field(default: Any, description: str, *, reason: str | None = None, unit: str | None = None) -> Any:
    """Declare a setting.

    Args:
        default: The default, or a function that returns it.
        description: What the setting does.
        reason: The reason for the default, unless it is obvious.
        unit: The unit of the value, if any.
    """
    extra = _schema_extra(reason, unit)
    if callable(default):
        return Field(default_factory=default, description=description, json_schema_extra=extra)
    return Field(default=default, description=description, json_schema_extra=extra)


def required_field(description: str, *, unit: str | None = None) -> Any:
    """Declare a setting without a default."""
    return Field(description=description, json_schema_extra=_schema_extra(None, unit))


def _schema_extra(reason: str | None, unit: str | None) -> dict[str, JsonValue]:
    return {name: text for name, text in (("reason", reason), ("unit", unit)) if text}


def mutually_exclusive(model: SettingsModel, *names: str, required: bool = False) -> None:
    """Check that at most one of some settings is set; exactly one if ``required``.

    Raises:
        ValueError: More than one is set, or a required one is missing.
    """
    set_names = [name for name in names if getattr(model, name) is not None]
    if len(set_names) > 1:
        raise ValueError(f"{' and '.join(set_names)} exclude each other; set one of them")
    if required and not set_names:
        raise ValueError(f"none of {' and '.join(names)} is set; set one of them")


def is_host(name: str) -> bool:
    """Return whether a name can be looked up; for others, such as ``a..b``, Python's functions raise no OSError."""
    try:
        name.encode("idna")
    except UnicodeError:
        return False
    return True


def _parse_duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])
    raise ValueError("invalid duration; use a whole number and a unit (s, m, h or d), such as 90s, 15m or 6h")


def format_duration(value: timedelta) -> str:
    """Return a duration in the largest unit that divides it, such as ``90s`` or ``6h``."""
    seconds = int(value.total_seconds())
    unit = next(unit for unit, size in _SECONDS.items() if seconds % size == 0 or unit == "s")
    return f"{seconds // _SECONDS[unit]}{unit}"


def _parse_duration_or_off(value: object) -> object:
    if value is None:
        raise ValueError("no value; use a duration, or off")
    return None if isinstance(value, str) and value.strip().lower() == "off" else value


def between(minimum: str, maximum: str) -> AfterValidator:
    """Return a validator that limits a duration to a range; the limits are written as in settings."""
    low, high = _parse_duration(minimum), _parse_duration(maximum)

    def check(value: timedelta) -> timedelta:
        if not low <= value <= high:
            raise ValueError(f"out of range; use {minimum} to {maximum}")
        return value

    return AfterValidator(check)


def _split_items(value: object) -> object:
    """Split the text of an environment variable or an option at its commas."""
    if isinstance(value, str):
        if value.lstrip().startswith(_JSON_LISTS):
            raise ValueError("JSON is not supported; separate the items by commas, without brackets and quotes")
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def _check_glob(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("invalid glob; use at least one character, printable ones only")
    return value


def check_namespace_glob(value: str) -> str:
    """Return a glob that the name of a containerd namespace can match.

    Raises:
        ValueError: containerd allows no such name (pkg/identifiers), so the glob would never match.
    """
    literals, wildcards = _WILDCARD.subn("", value)
    possible = _NAMESPACE_LETTERS.fullmatch(literals) if wildcards else _NAMESPACE.fullmatch(value)
    if not possible or len(literals) > _MAX_NAMESPACE_LENGTH:
        raise ValueError(
            "no containerd namespace can match; a glob consists of letters, digits, - _ . (at most "
            f"{_MAX_NAMESPACE_LENGTH}) and the wildcards * ? [...]; separate several globs by commas, or list them "
            "one by one"
        )
    return value


def non_empty(advice: str) -> AfterValidator:
    """Return a validator that rejects an empty list or mapping; ``advice`` says what to write instead."""

    def check(items: _T) -> _T:
        if not items:
            raise ValueError(f"must not be empty; {advice}")
        return items

    return AfterValidator(check)


def _check_selector(value: str) -> str:
    if not value.partition("=")[0] or not value.isprintable():
        raise ValueError("invalid label selector; use KEY or KEY=VALUE, both may be globs")
    return value


def _check_host(value: str) -> str:
    if not value.isprintable() or not value or any(character in value for character in ' /"%'):
        raise ValueError('invalid host name; spaces and / " % are not allowed')
    return value


def _check_attribute_name(value: str) -> str:
    if not re.fullmatch(_ATTRIBUTE_NAME, value):
        raise ValueError("invalid name; use 1 to 20 lowercase letters and digits, and start with a letter")
    if value in _RESERVED_ATTRIBUTES:
        raise ValueError("reserved name: CloudEvents has an attribute of this name; use another one")
    return value


def _check_attribute(value: str) -> str:
    if not 0 < len(value) <= MAX_ATTRIBUTE_LENGTH or not value.isprintable():
        raise ValueError(f"invalid value; use 1 to {MAX_ATTRIBUTE_LENGTH} printable characters")
    return value


def _check_attribute_count(value: dict[str, str]) -> dict[str, str]:
    if len(value) > MAX_ATTRIBUTES:
        raise ValueError(f"too many; use at most {MAX_ATTRIBUTES}")
    return value


def _parse_socket_path(value: str) -> str:
    path = value.removeprefix("unix://")
    if not path.startswith("/") or not path.isprintable():
        raise ValueError(
            "invalid socket path; use an absolute path, such as /run/containerd/containerd.sock, or unix:///PATH"
        )
    if len(path.encode()) > _MAX_SOCKET_PATH_BYTES:
        raise ValueError(
            f"socket path longer than {_MAX_SOCKET_PATH_BYTES} bytes, the kernel's limit; use a symbolic link in /run"
        )
    return path


def _check_directory(value: str) -> str:
    if not value.startswith("/") or not value.isprintable():
        raise ValueError("invalid directory; use an absolute path, such as /var/lib/whalebridge")
    return value


def _check_file(value: str) -> str:
    if not value.startswith("/") or value.endswith("/") or not value.isprintable():
        raise ValueError("invalid file path; use the absolute path of a file, not its content")
    return value


def _check_command(value: tuple[str, ...]) -> tuple[str, ...]:
    if not value or not value[0].startswith("/") or any("\0" in argument for argument in value):
        raise ValueError("invalid command; list the absolute path of a program and its arguments; there is no shell")
    return value


_DURATION_SCHEMA = {"type": "string", "pattern": rf"^\s*{_DURATION.pattern}\s*$"}
_OFF_SCHEMA = {"type": "string", "pattern": rf"^\s*({_DURATION.pattern}|off)\s*$"}

Duration = Annotated[timedelta, BeforeValidator(_parse_duration), WithJsonSchema(_DURATION_SCHEMA)]
OffAllowed = (BeforeValidator(_parse_duration_or_off), WithJsonSchema(_OFF_SCHEMA))
CommaSeparated = BeforeValidator(_split_items)
GlobList = Annotated[tuple[Annotated[str, AfterValidator(_check_glob)], ...], CommaSeparated]
_AT_LEAST_ONE = (
    non_empty("list at least one glob, or remove the setting to match everything"),
    Field(json_schema_extra={"minItems": 1}),
)
NonEmptyGlobList = Annotated[GlobList, *_AT_LEAST_ONE]
NamespaceGlobs = Annotated[tuple[Annotated[str, AfterValidator(check_namespace_glob)], ...], CommaSeparated]
NonEmptyNamespaceGlobs = Annotated[NamespaceGlobs, *_AT_LEAST_ONE]
LabelSelectors = Annotated[tuple[Annotated[str, AfterValidator(_check_selector)], ...], CommaSeparated]
FilePath = Annotated[str, AfterValidator(_check_file)]
"""A file with a secret or a certificate. Messages show the path, never the content."""
DirectoryPath = Annotated[str, AfterValidator(_check_directory)]
Command = Annotated[tuple[str, ...], CommaSeparated, AfterValidator(_check_command)]
"""The absolute path of a program, and its arguments."""
Attributes = Annotated[
    dict[
        Annotated[str, AfterValidator(_check_attribute_name)],
        Annotated[
            str,
            AfterValidator(_check_attribute),
            Field(json_schema_extra={"minLength": 1, "maxLength": MAX_ATTRIBUTE_LENGTH}),
        ],
    ],
    AfterValidator(_check_attribute_count),
    Field(
        json_schema_extra={
            "maxProperties": MAX_ATTRIBUTES,
            "propertyNames": {"pattern": f"^{_ATTRIBUTE_NAME}$", "not": {"enum": [*_RESERVED_ATTRIBUTES]}},
        }
    ),
]
HostName = Annotated[str, AfterValidator(_check_host)]
SocketPath = Annotated[str, AfterValidator(_parse_socket_path)]
LowercaseStr = BeforeValidator(lambda value: value.strip().lower() if isinstance(value, str) else value)
