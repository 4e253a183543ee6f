"""Finds the type of the file system of a path, from the mounts that Linux reports."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_OCTAL = re.compile(r"\\([0-7]{3})")
_MOUNT_POINT_FIELD = 4


def file_system_type(mountinfo: str, path: str) -> str:
    """Return the type (ext4, tmpfs, nfs4, ...); "" if it is unknown.

    Args:
        mounts: The content of /proc/self/mountinfo.
        path: Absolute, without symbolic links.
    """
    best, found = -1, ""
    for line in mountinfo.splitlines():
        mount, separator, source = line.partition(" - ")
        fields = mount.split()
        if not separator or len(fields) <= _MOUNT_POINT_FIELD:
            continue
        point = PurePosixPath(_OCTAL.sub(lambda code: chr(int(code[1], 8)), fields[_MOUNT_POINT_FIELD]))
        if PurePosixPath(path).is_relative_to(point) and len(point.parts) >= best:  # later mounts hide earlier ones
            best, found = len(point.parts), source.split()[0]
    return found
