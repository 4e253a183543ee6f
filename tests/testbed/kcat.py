"""Environment for Debian's kcat, which is only unpacked, and its libraries."""

from __future__ import annotations

import os

from tests.testbed.components import cache_directory
from tests.testbed.install import search_path

COMPONENTS = ("kcat",)
"""Components that must be installed."""


def environment() -> dict[str, str]:
    """Return the environment for `kcat`."""
    libraries = os.pathsep.join(map(str, (cache_directory() / "debian" / "kcat").glob("**/*-linux-gnu*")))
    return {**os.environ, "PATH": search_path(*COMPONENTS), "LD_LIBRARY_PATH": libraries}
