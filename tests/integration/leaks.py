"""What an instance of the testbed may leave behind."""

from __future__ import annotations

import contextlib
import os
from fnmatch import fnmatch
from pathlib import Path


def find_leaks(directory: Path, container: str = "") -> list[str]:
    """All that is left of it: processes, mounts, its folder, and cgroups of containers of that name (a pattern)."""
    left = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if str(directory) in line]
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            command = Path("/proc", entry, "cmdline").read_text(errors="replace").replace("\0", " ")
            if str(directory) in command:
                left.append(f"{entry}: {command}")
    # Unlike Path.glob, os.walk does not mind what others remove meanwhile.
    left += [folder for folder, _, _ in os.walk("/sys/fs/cgroup") if fnmatch(Path(folder).name, container)]
    return [*left, str(directory)] if directory.exists() else left
