"""Build whalebridge's image as users do, but without a network, on a base image made from Debian packages."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
from pathlib import Path

from bridge import __version__
from tests.testbed.components import cache_directory
from tests.testbed.dockerd import Docker
from tests.testbed.process import run

COMPONENTS = ("python-image",)
"""Components that must be installed, in addition to a Docker engine."""

NAME = f"whalebridge:{__version__}"
BASE = "whalebridge-testbed/python:3"
_ROOT = Path(__file__).parents[2]
_LOCKS = tuple(_ROOT / "deploy" / f"requirements-{kind}.lock" for kind in ("build", "runtime"))


def build(docker: Docker, directory: Path) -> None:
    """Build the image; `directory` is for temporary files."""
    _download_wheels(_ROOT / "build" / "wheels")
    archive = directory / "python.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(cache_directory() / "debian" / "python-image", ".")
        entry = tarfile.TarInfo("tmp")
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
        tar.addfile(entry)
    docker.docker("import", str(archive), BASE)
    arguments = [f"PYTHON_IMAGE={BASE}", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/src/build/wheels", f"VERSION={__version__}"]
    options = [f"--build-arg={argument}" for argument in arguments]
    options += ["--network=none", f"--file={_ROOT}/deploy/Dockerfile", f"--tag={NAME}"]
    docker.docker("build", *options, str(_ROOT), timeout=300)


def _download_wheels(directory: Path) -> None:
    """Download the wheels in the lock files once; pip would contact the index even if all of them exist."""
    digest = hashlib.sha256(b"".join(lock.read_bytes() for lock in _LOCKS)).hexdigest()
    stamp = directory / "stamp"
    if stamp.exists() and stamp.read_text() == digest:
        return
    shutil.rmtree(directory, ignore_errors=True)
    options = ["--quiet", "--no-deps", "--require-hashes", "--no-build-isolation", f"--dest={directory}"]
    for lock in _LOCKS:
        run([sys.executable, "-m", "pip", "download", *options, "--requirement", str(lock)], timeout=300)
    stamp.write_text(digest)
