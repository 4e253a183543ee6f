"""The kinds of values that settings are made of, and how a person writes them."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

_DURATION = re.compile(r"(\d{1,9})([smhd])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}
_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path holds 108 with the closing zero


class Section(BaseModel):
    """A group of settings: it never changes, and knows every name that may stand in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def setting(default: Any, description: str, *, reason: str, unit: str | None = None) -> Any:
    """Declare a setting: what it is, its default, why that is the default, and its unit where it has one."""
    told: dict[str, JsonValue] = {"reason": reason, "unit": unit}
    if callable(default):
        return Field(default_factory=default, description=description, json_schema_extra=told)
    return Field(default=default, description=description, json_schema_extra=told)


def needed(description: str, *, reason: str, unit: str | None = None) -> Any:
    """Declare a setting without a default; ``reason`` is why there is none."""
    return Field(description=description, json_schema_extra={"reason": reason, "unit": unit})


def _duration(value: object) -> timedelta:
    if isinstance(value, timedelta):
        return value
    if isinstance(value, str) and (found := _DURATION.fullmatch(value.strip())):
        return timedelta(**{_UNITS[found[2]]: int(found[1])})
    raise ValueError("write a whole number and its unit (s, m, h or d), such as 90s, 15m or 6h")


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


Duration = Annotated[timedelta, BeforeValidator(_duration)]
Items = BeforeValidator(_items)
Globs = Annotated[tuple[Annotated[str, AfterValidator(_glob)], ...], Items]
FolderPath = Annotated[str, AfterValidator(_folder)]
HostName = Annotated[str, AfterValidator(_host)]
SocketPath = Annotated[str, AfterValidator(_socket)]
Word = BeforeValidator(lambda value: value.strip().lower() if isinstance(value, str) else value)
