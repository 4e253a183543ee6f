"""Find what an instance of the testbed left behind."""

from __future__ import annotations

import contextlib
import os
from fnmatch import fnmatch
from pathlib import Path


def find_leaks(directory: Path, container: str = "") -> list[str]:
    """Return the remaining processes, mounts and directory, and the cgroups whose name matches ``container``."""
    left = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line]
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            command = Path("/proc", entry, "cmdline").read_text(errors="replace").replace("\0", " ")
            if str(directory) in command:
                left.append(f"{entry}: {command}")
    # os.walk, unlike Path.glob, tolerates directories that are removed concurrently.
    left += [path for path, _, _ in os.walk("/sys/fs/cgroup") if fnmatch(Path(path).name, container)]
    return [*left, str(directory)] if directory.exists() else left
