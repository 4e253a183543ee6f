"""The kinds of values that settings are made of, and how a person writes them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

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

DURATION = "duration: a whole number and s, m, h or d"
_DURATION = re.compile(r"(\d{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SECONDS = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path holds 108 with the closing zero
_JSON_LISTS = ('["', "['")  # a glob may begin with a bracket, too


class Section(BaseModel):
    """A group of settings: it never changes, and knows every name that may stand in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _empty_groups_are_none(cls, values: object) -> object:
        """Pass over a group with nothing in it, as is left where all its lines are comments."""
        if not isinstance(values, dict):
            return values
        groups = {
            name
            for name, field in cls.model_fields.items()
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        }
        return {name: value for name, value in values.items() if value is not None or name not in groups}


def setting(default: Any, description: str, *, reason: str, unit: str | None = None) -> Any:
    """Declare a setting: what it is, its default, why that is the default, and its unit where it has one."""
    told = _told(reason, unit)
    if callable(default):
        return Field(default_factory=default, description=description, json_schema_extra=told)
    return Field(default=default, description=description, json_schema_extra=told)


def needed(description: str, *, reason: str, unit: str | None = None) -> Any:
    """Declare a setting without a default; ``reason`` is why there is none."""
    return Field(description=description, json_schema_extra=_told(reason, unit))


def _told(reason: str, unit: str | None) -> dict[str, JsonValue]:
    return {"reason": reason, "unit": unit} if unit else {"reason": reason}


def one_of(section: Section, *names: str, needed: bool = False) -> None:
    """Make sure that at most one of some settings is there (exactly one where it is ``needed``).

    Raises:
        ValueError: That is not so.
    """
    given = [name for name in names if getattr(section, name) is not None]
    if len(given) > 1:
        raise ValueError(f"set one of {' and '.join(given)}, not both")
    if needed and not given:
        raise ValueError(f"set {' or '.join(names)}")


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and (found := _DURATION.fullmatch(value.strip())):
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
    raise ValueError("write a whole number and its unit (s, m, h or d), such as 90s, 15m or 6h")


def written(value: timedelta) -> str:
    """Write a duration as a person does, in the largest unit that leaves nothing over."""
    seconds = int(value.total_seconds())
    unit = next(unit for unit, size in _SECONDS.items() if seconds % size == 0 or unit == "s")
    return f"{seconds // _SECONDS[unit]}{unit}"


def _or_off(value: object) -> object:
    if value is None:
        raise ValueError("it has no value: write a duration, or off")
    return None if isinstance(value, str) and value.strip().lower() == "off" else value


def within(least: str, most: str) -> AfterValidator:
    """Bound a duration; the bounds are written as a person writes them."""
    low, high = _duration(least), _duration(most)

    def check(value: timedelta) -> timedelta:
        if not low <= value <= high:
            raise ValueError(f"it must be from {least} to {most}")
        return value

    return AfterValidator(check)


def _items(value: object) -> object:
    """Read a list from the environment: parted by commas, or numbered from 0 (``INCLUDE__0``)."""
    if isinstance(value, str):
        if value.lstrip().startswith(_JSON_LISTS):
            raise ValueError("write the items themselves, parted by commas, without brackets and quotes")
        return [item.strip() for item in value.split(",") if item.strip()]
    return numbered(value)


def numbered(value: object) -> object:
    """Turn what the environment numbers from 0 into a list."""
    if isinstance(value, dict) and sorted(value) == sorted(map(str, range(len(value)))):
        return [value[str(index)] for index in range(len(value))]
    return value


def _glob(value: str) -> str:
    if not value or not value.isprintable():
        raise ValueError("a glob has at least one character, and printable ones only")
    return value


def _some(globs: tuple[str, ...]) -> tuple[str, ...]:
    if not globs:
        raise ValueError("it is empty, so that nothing would be told; write the globs, or leave it out for all")
    return globs


def _condition(value: str) -> str:
    if not value.partition("=")[0] or not value.isprintable():
        raise ValueError("write a label's KEY, or KEY=VALUE; both may be globs")
    return value


def _host(value: str) -> str:
    if not value.isprintable() or not value or any(character in value for character in ' /"%'):
        raise ValueError('a host name has no spaces, and none of / " % in it; set it to what the node is called')
    return value


def _socket(value: str) -> str:
    path = value.removeprefix("unix://")
    if not path.startswith("/") or not path.isprintable():
        raise ValueError("write the socket's absolute path, such as /run/containerd/containerd.sock, or unix:///PATH")
    if len(path.encode()) > _SOCKET_PATH_BYTES:
        raise ValueError(
            f"the kernel takes {_SOCKET_PATH_BYTES} bytes of a socket's path at most: link to it from /run"
        )
    return path


def _folder(value: str) -> str:
    if not value.startswith("/") or not value.isprintable():
        raise ValueError("write the absolute path of a directory, such as /var/lib/whalebridge")
    return value


def _file(value: str) -> str:
    if not value.startswith("/") or value.endswith("/") or not value.isprintable():
        raise ValueError("write the absolute path of a file, such as /etc/whalebridge/password, not what is in it")
    return value


_DURATION_SCHEMA = {"type": "string", "pattern": rf"^\s*{_DURATION.pattern}\s*$"}
_OFF_SCHEMA = {"type": "string", "pattern": rf"^\s*({_DURATION.pattern}|off)\s*$"}

Duration = Annotated[timedelta, BeforeValidator(_duration), WithJsonSchema(_DURATION_SCHEMA)]
OrOff = (BeforeValidator(_or_off), WithJsonSchema(_OFF_SCHEMA))
Items = BeforeValidator(_items)
Globs = Annotated[tuple[Annotated[str, AfterValidator(_glob)], ...], Items]
SomeGlobs = Annotated[Globs, AfterValidator(_some), Field(json_schema_extra={"minItems": 1})]
Conditions = Annotated[tuple[Annotated[str, AfterValidator(_condition)], ...], Items]
FilePath = Annotated[str, AfterValidator(_file)]
"""A file with something secret, or with a certificate: its path is repeated in messages, its content never may be."""
FolderPath = Annotated[str, AfterValidator(_folder)]
HostName = Annotated[str, AfterValidator(_host)]
SocketPath = Annotated[str, AfterValidator(_socket)]
Word = BeforeValidator(lambda value: value.strip().lower() if isinstance(value, str) else value)
