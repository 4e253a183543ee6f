"""Environment for `systemd-analyze` of Debian's systemd, which is only unpacked."""

from __future__ import annotations

import os

from tests.testbed.components import cache_directory
from tests.testbed.install import search_path

COMPONENTS = ("systemd",)
"""Components that must be installed."""


def environment() -> dict[str, str]:
    """Return the environment for `systemd-analyze`, including the path of the units that ours refers to."""
    tree = cache_directory() / "debian" / "systemd"
    libraries = os.pathsep.join(map(str, [*tree.glob("**/*-linux-gnu"), *tree.glob("**/*-linux-gnu/systemd")]))
    return {
        **os.environ,
        "PATH": search_path(*COMPONENTS),
        "LD_LIBRARY_PATH": libraries,
        "SYSTEMD_UNIT_PATH": f"{tree}/lib/systemd/system:{tree}/usr/lib/systemd/system",
        "SYSTEMD_COLORS": "0",
        "SYSTEMD_PAGER": "",
    }
