"""An example of a sink that a third party adds to whalebridge: it keeps each record in a file of its own.

It is a package like any other: what makes it a sink is the entry point in its metadata, which in pyproject.toml is

    [project.entry-points."whalebridge.sinks"]
    folder = "whalebridge_example"

where ``folder`` is the type in the configuration and the scheme of the URL (``folder:/var/spool/records``), and the
module has ``Settings``, ``from_url`` and ``make``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge.core.errors import FatalError, TransientError
from bridge.core.events import Record
from config.fields import needed
from config.sinks.common import EncodedSection
from sinks.documents import format_of


class Settings(EncodedSection):
    """The settings of this sink; ``encoding`` and ``name`` come with the base class, mistakes are told as usual."""

    path: str = needed("The folder.", reason="There is no usual place.")

    @property
    def target(self) -> str:
        """What tells it from other sinks of this type."""
        return self.path


def from_url(rest: str) -> dict[str, Any]:
    """Return the settings that a URL stands for, by what follows its colon."""
    if not rest:
        raise ValueError("write it as folder:PATH")
    return {"path": rest}


def make(settings: Settings) -> FolderSink:
    """Return a sink, not yet started."""
    return FolderSink(settings)


class FolderSink:
    """See ``bridge.core.ports.Sink`` for what each method has to do, and which errors mean what."""

    def __init__(self, settings: Settings) -> None:
        self._folder = Path(settings.path)
        self._encode = format_of(settings.encoding).encode

    async def start(self) -> None:
        """Look whether the folder is there."""
        if not await asyncio.to_thread(self._folder.is_dir):
            raise FatalError(f"{self._folder} is not a folder; create it")

    async def publish(self, batch: Sequence[Record]) -> None:
        """Write the records; they may come again, and then replace themselves."""
        try:
            await asyncio.to_thread(self._write, batch)
        except OSError as error:
            raise TransientError(f"{self._folder} cannot be written: {error.strerror}") from error

    async def close(self) -> None:
        """There is nothing to let go of."""

    def _write(self, batch: Sequence[Record]) -> None:
        for record in batch:
            document = self._encode(record)
            if document is not None:
                (self._folder / record.id).write_bytes(document)
