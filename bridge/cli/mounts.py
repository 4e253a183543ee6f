"""On what kind of file system a path is, from what Linux says of its mounts."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

_OCTAL = re.compile(r"\\([0-7]{3})")
_MOUNT_POINT = 4


def file_system(mounts: str, path: str) -> str:
    """Return the type (ext4, tmpfs, nfs4, ...); "" where it is not known.

    Args:
        mounts: The content of /proc/self/mountinfo.
        path: Absolute, without links in it.
    """
    best, found = -1, ""
    for line in mounts.splitlines():
        mount, separator, source = line.partition(" - ")
        fields = mount.split()
        if not separator or len(fields) <= _MOUNT_POINT:
            continue
        point = PurePosixPath(_OCTAL.sub(lambda code: chr(int(code[1], 8)), fields[_MOUNT_POINT]))
        if PurePosixPath(path).is_relative_to(point) and len(point.parts) >= best:  # a later one covers an earlier one
            best, found = len(point.parts), source.split()[0]
    return found
