"""An example of a sink that a third party adds to whalebridge: it keeps each record in a file of its own.

It is a package like any other: what makes it a sink is the entry point in its metadata, which in pyproject.toml is

    [project.entry-points."whalebridge.sinks"]
    directory = "whalebridge_example"

where ``directory`` is the type in the configuration and the scheme of the URL (``directory:/var/spool/records``), and
the module has ``Settings``, ``parse_url`` and ``make``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge.core.errors import FatalError, TransientError
from bridge.core.records import Record
from config.fields import required_field
from config.sinks.common import EncodedSinkSettings
from sinks.encoding import get_encoding


class Settings(EncodedSinkSettings):
    """Settings of this sink; ``encoding`` and ``heartbeats`` come from the base classes."""

    path: str = required_field("The directory.")


def parse_url(rest: str) -> dict[str, Any]:
    """Return the settings that a URL stands for, by the text after its colon."""
    if not rest:
        raise ValueError("invalid URL; use directory:PATH")
    return {"path": rest}


def make(settings: Settings) -> DirectorySink:
    """Return a sink, not yet started."""
    return DirectorySink(settings)


class DirectorySink:
    """See ``bridge.core.ports.Sink`` for what each method has to do, and which errors mean what."""

    def __init__(self, settings: Settings) -> None:
        self._directory = Path(settings.path)
        self._encode = get_encoding(settings.encoding).encode

    async def start(self) -> None:
        """Look whether the folder is there."""
        if not await asyncio.to_thread(self._directory.is_dir):
            raise FatalError(f"{self._directory} is not a folder; create it")

    async def publish(self, batch: Sequence[Record]) -> None:
        """Write the records; they may come again, and then replace themselves."""
        try:
            await asyncio.to_thread(self._write, batch)
        except OSError as error:
            raise TransientError(f"{self._directory} cannot be written: {error.strerror}") from error

    async def close(self) -> None:
        """There is nothing to let go of."""

    def _write(self, batch: Sequence[Record]) -> None:
        for record in batch:
            document = self._encode(record)
            if document is not None:
                (self._directory / record.id).write_bytes(document)
