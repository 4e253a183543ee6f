"""systemd's own checks of a unit: the machine's, where systemd-analyze is installed, else Debian's, unpacked."""

from __future__ import annotations

import os

from tests.testbed.components import cache_directory
from tests.testbed.install import search_path

COMPONENTS = ("systemd",)
"""What has to be installed for it."""


def environment() -> dict[str, str]:
    """The environment in which `systemd-analyze` can be called; the units that ours names are found in it."""
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
