"""The settings of a file as a sink."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from config.fields import needed, setting
from config.sinks.common import EncodedSection


def _path(value: str) -> str:
    if not value.startswith("/") or value.endswith("/") or not value.isprintable():
        raise ValueError("write the absolute path of a file, such as /var/log/whalebridge/events.jsonl")
    return value


class FileSettings(EncodedSection):
    """A file of JSON lines, set aside when it is full: PATH.1 is the youngest of those, then PATH.2 and so on."""

    type: Literal["file"] = setting("file", "The type of this sink.", reason="It is what makes it this one.")
    path: Annotated[str, AfterValidator(_path)] = needed(
        "The file's absolute path. Its folder must be there.", reason="There is no usual place."
    )
    max_bytes: Annotated[int, Field(ge=4096)] = setting(
        104_857_600, "How large a file grows before the next is begun.", unit="bytes", reason="A disk has an end."
    )
    keep: Annotated[int, Field(ge=0, le=10_000)] = setting(
        5, "How many files that are full are kept.", reason="With max_bytes it bounds what all of them take."
    )

    @property
    def target(self) -> str:
        """The path."""
        return self.path


def from_url(_: str, rest: str) -> dict[str, Any]:
    """Read ``file:PATH``, relative to the working directory, and ``file:///PATH``."""
    path = rest.removeprefix("//")
    if not path or (path != rest and not path.startswith("/")):
        raise ValueError("write it as file:PATH, such as file:/var/log/whalebridge/events.jsonl")
    # A slash at the end is kept, so that it is complained of.
    return {"type": "file", "path": os.path.abspath(path) + ("/" if path.endswith("/") else "")}
