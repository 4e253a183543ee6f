"""Settings of the sinks without a broker: files and standard output."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from config.fields import field, required_field
from config.sinks.common import EncodedSinkSettings


def _check_path(value: str) -> str:
    if not value.startswith("/") or value.endswith("/") or not value.isprintable():
        raise ValueError("invalid file path; use an absolute path, such as /var/log/whalebridge/events.jsonl")
    return value


class FileSettings(EncodedSinkSettings):
    """A file of JSON lines, rotated when it is full: PATH.1 is the newest rotated file, then PATH.2 and so on."""

    type: Literal["file"] = field("file", "Type of the sink.")
    path: Annotated[str, AfterValidator(_check_path)] = required_field(
        "Absolute path of the file. Its directory must exist."
    )
    max_bytes: Annotated[int, Field(ge=4096)] = field(104_857_600, "Size at which the file is rotated.", unit="bytes")
    max_files: Annotated[int, Field(ge=0, le=10_000)] = field(5, "Number of rotated files to keep.")


class StdoutSettings(EncodedSinkSettings):
    """Standard output: one JSON document per line."""

    type: Literal["stdout"] = field("stdout", "Type of the sink.")


def parse_stdout_url(_: str, rest: str) -> dict[str, Any]:
    """Parse ``stdout:``."""
    if rest:
        raise ValueError("invalid URL; use stdout:, with nothing after the colon")
    return {"type": "stdout"}


def parse_file_url(_: str, rest: str) -> dict[str, Any]:
    """Parse ``file:PATH``, relative to the working directory, and ``file:///PATH``."""
    path = rest.removeprefix("//")
    if not path or (path != rest and not path.startswith("/")):
        raise ValueError("invalid URL; use file:PATH, such as file:/var/log/whalebridge/events.jsonl")
    # A slash at the end is kept, so that validation reports it.
    return {"type": "file", "path": os.path.abspath(path) + ("/" if path.endswith("/") else "")}
