"""The time at which a file was created, which Python's ``os.stat`` does not return on Linux."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path

from bridge.core.time import SECOND

_AT_FDCWD, _NO_FLAGS, _STATX_BTIME = -100, 0, 0x800
_STATX_BYTES = 256
_MASK = struct.Struct("@I")  # stx_mask, the first field of struct statx
_BTIME, _BTIME_OFFSET = struct.Struct("@qI"), 80  # stx_btime: seconds and nanoseconds


def creation_time(path: Path) -> int | None:
    """Return the time in nanoseconds since the Unix epoch; None if the file system does not store it.

    A copy of a file has another one, also if it has the same inode number, which file systems reuse. A clone of the
    disk has the same one.
    """
    statx = getattr(ctypes.CDLL(None), "statx", None)
    buffer = ctypes.create_string_buffer(_STATX_BYTES)
    if statx is None or statx(_AT_FDCWD, os.fsencode(path), _NO_FLAGS, _STATX_BTIME, buffer) != 0:
        return None
    if not _MASK.unpack_from(buffer)[0] & _STATX_BTIME:
        return None
    seconds, nanoseconds = _BTIME.unpack_from(buffer, _BTIME_OFFSET)
    return int(seconds * SECOND + nanoseconds)
