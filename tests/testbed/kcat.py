"""Debian's kcat, unpacked and not installed: where it is, and the libraries that come with it."""

from __future__ import annotations

import os

from tests.testbed.components import cache_directory
from tests.testbed.install import search_path

COMPONENTS = ("kcat",)
"""What has to be installed for it."""


def environment() -> dict[str, str]:
    """The environment in which `kcat` can be called."""
    libraries = os.pathsep.join(map(str, (cache_directory() / "debian" / "kcat").glob("**/*-linux-gnu*")))
    return {**os.environ, "PATH": search_path(*COMPONENTS), "LD_LIBRARY_PATH": libraries}
