"""A sink for whalebridge: it writes each record to a separate file of a directory."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bridge.core.errors import FatalError, RejectedRecordError, TransientError
from bridge.core.records import Record
from config.fields import field, required_field
from config.sinks.common import EncodedSinkSettings
from sinks.encoding import get_encoding


class Settings(EncodedSinkSettings):
    """Settings of this sink; ``type``, ``encoding`` and ``heartbeats`` come from the base classes."""

    path: str = required_field("The directory.")
    max_record_bytes: int = field(1_000_000, "Larger records are rejected.", unit="bytes")


def parse_url(rest: str) -> dict[str, Any]:
    """Return the settings for a URL, given the text after its first colon."""
    if not rest:
        raise ValueError("invalid URL; use directory:PATH")
    return {"path": rest}


def make(settings: Settings) -> DirectorySink:
    """Return a sink that is not started yet."""
    return DirectorySink(settings)


class DirectorySink:
    """Write records to a directory; ``bridge.core.ports.Sink`` describes the methods and the errors to raise."""

    def __init__(self, settings: Settings) -> None:
        self._directory = Path(settings.path)
        self._encode = get_encoding(settings.encoding).encode
        self._max_record_bytes = settings.max_record_bytes

    async def start(self) -> None:
        """Check that the directory exists."""
        if not await asyncio.to_thread(self._directory.is_dir):
            raise FatalError(f"{self._directory} is not a directory; create it")

    async def publish(self, batch: Sequence[Record]) -> None:
        """Write the records; a record that is published again replaces its file."""
        too_large = [record for record in batch if len(record.data) > self._max_record_bytes]
        if too_large:
            positions = frozenset((record.epoch, record.sequence) for record in too_large)
            raise RejectedRecordError(f"larger than {self._max_record_bytes} bytes", positions)
        try:
            await asyncio.to_thread(self._write, batch)
        except OSError as error:
            raise TransientError(f"{self._directory} cannot be written: {error.strerror}") from error

    async def close(self) -> None:
        """Do nothing; the sink holds no resources."""

    def _write(self, batch: Sequence[Record]) -> None:
        for record in batch:
            document = self._encode(record)
            if document is not None:  # the encoding whalewatcher has no document for some records
                (self._directory / record.id).write_bytes(document)
