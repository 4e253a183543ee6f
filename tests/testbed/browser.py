"""Debian's Chromium without a window, unpacked and not installed: what a page becomes in a real browser."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.testbed.components import cache_directory

COMPONENTS = ("chromium",)
"""What has to be installed for it."""


def render_dom(url: str, profile: Path) -> str:
    """Load a page, run what it has to be run, and return the document that it has become."""
    return _run("--dump-dom", url, profile=profile)


def screenshot(url: str, profile: Path, path: Path, *, dark: bool = False) -> None:
    """Load a page and make a picture (PNG) of it."""
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    _run(f"--screenshot={path}", "--hide-scrollbars", "--window-size=1200,1400", *scheme, url, profile=profile)


def _run(*arguments: str, profile: Path) -> str:
    root = cache_directory() / "debian" / "chromium"
    libraries = os.pathsep.join(sorted({str(library.parent) for library in root.rglob("*-linux-gnu/**/*.so*")}))
    command = [
        str(root / "usr/lib/chromium/chromium"),  # what is in usr/bin is a script that looks for it elsewhere
        "--headless",
        "--no-sandbox",  # the tests are root's
        "--disable-gpu",
        f"--user-data-dir={profile}",
        *arguments,
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "HOME": str(profile)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    return done.stdout
