"""The dead-letter file: records that a sink rejected, one JSON line each, for inspection by the operator."""

from __future__ import annotations

import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path

import msgspec

from bridge.core.record_encoder import rfc3339
from bridge.core.records import Record

MAX_BYTES = 16 * 1024 * 1024


def write(path: Path, sink: str, records: Iterable[Record], reason: str, now: int, max_bytes: int = MAX_BYTES) -> None:
    """Append records, and sync them to the disk before returning.

    At ``max_bytes`` the file is rotated to ``PATH.1``, replacing the previous one. Together the two files take at most
    2 x ``max_bytes``, unless a single write is larger than ``max_bytes``.
    """
    lines = b"".join(_line(sink, record, reason, now) for record in records)
    size = path.stat().st_size if path.exists() else 0
    if size and size + len(lines) > max_bytes:
        os.replace(path, path.with_name(f"{path.name}.1"))
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size and os.pread(file.fileno(), 1, size - 1) != b"\n":
            lines = b"\n" + lines  # after a power failure, the file can end within a line
        try:
            while lines:
                lines = lines[os.write(file.fileno(), lines) :]
            os.fsync(file.fileno())
        except OSError:
            os.ftruncate(file.fileno(), size)  # removes the partial line, which the next attempt would append to
            raise


def _open(path: Path) -> FileIO:
    flags = os.O_CREAT | os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    return FileIO(os.open(path, flags, 0o600), "a+")


def _line(sink: str, record: Record, reason: str, now: int) -> bytes:
    head = {"time": rfc3339(now), "sink": sink, "reason": reason, "record": msgspec.Raw(record.data)}
    return msgspec.json.encode(head) + b"\n"
