"""Render pages in Debian's Chromium, headless; the package is only unpacked."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from tests.testbed.components import cache_directory

COMPONENTS = ("chromium",)
"""Components that must be installed."""

WIDTH = 1200  # of the window, in pixels
_HEIGHT = 1400


def render_dom(url: str, profile: Path) -> str:
    """Load a page, run its scripts, and return the resulting document."""
    return _run("--dump-dom", f"--window-size={WIDTH},{_HEIGHT}", url, profile=profile)


def screenshot(url: str, profile: Path, path: Path, *, height: int = _HEIGHT, dark: bool = False) -> None:
    """Load a page, and write a screenshot (PNG) of its upper ``height`` pixels."""
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    _run(f"--screenshot={path}", "--hide-scrollbars", f"--window-size={WIDTH},{height}", *scheme, url, profile=profile)


def _run(*arguments: str, profile: Path) -> str:
    root = cache_directory() / "debian" / "chromium"
    libraries = os.pathsep.join(sorted({str(library.parent) for library in root.rglob("*-linux-gnu/**/*.so*")}))
    command = [
        str(root / "usr/lib/chromium/chromium"),  # the script in usr/bin expects an installed package
        "--headless",
        "--no-sandbox",  # Chromium's sandbox does not work as root
        "--disable-gpu",
        f"--user-data-dir={profile}",
        *arguments,
    ]
    environment = {**os.environ, "LD_LIBRARY_PATH": libraries, "HOME": str(profile)}
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    return result.stdout
