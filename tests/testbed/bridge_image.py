"""Build whalebridge's image by its Dockerfile, with packages from this machine's copies."""

from __future__ import annotations

import hashlib
import shutil
import sys
import tarfile
from pathlib import Path

from bridge import __version__
from tests.testbed.components import cache_directory
from tests.testbed.debian_mirror import DebianMirror
from tests.testbed.dockerd import Docker
from tests.testbed.process import run

COMPONENTS = ("debian-13",)
"""Components that must be installed, in addition to a Docker engine."""

NAME = f"whalebridge:{__version__}"
SOURCE = "https://git.example.org/whalebridge"
CREATED = "2001-02-03T04:05:06+00:00"
_BUILDER = "whalebridge-testbed/debian:trixie-slim"
_PYTHON_VERSION = "3.13"  # Debian 13's
_ROOT = Path(__file__).parents[2]
_LOCKS = tuple(_ROOT / "deploy" / f"requirements-{kind}.lock" for kind in ("build", "runtime"))


def build(docker: Docker, directory: Path) -> None:
    """Build the image; `directory` is for temporary files.

    Only the image in which the Dockerfile's first stage runs differs from a user's build: no container registry is
    needed, because it is a Debian made by debootstrap.
    """
    _download_wheels(_ROOT / "build" / "wheels")
    archive = directory / "debian.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(cache_directory() / "debian" / "debian-13", ".")
    docker.docker("import", str(archive), _BUILDER, timeout=300)
    with DebianMirror() as mirror:
        arguments = {
            "DEBIAN_IMAGE": _BUILDER,
            "DEBIAN_MIRROR": mirror.url,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": "/src/build/wheels",
            "VERSION": __version__,
            "CREATED": CREATED,
            "SOURCE": SOURCE,
        }
        options = [f"--build-arg={name}={value}" for name, value in arguments.items()]
        options += ["--network=host", f"--file={_ROOT}/deploy/Dockerfile", f"--tag={NAME}"]
        docker.docker("build", *options, str(_ROOT), timeout=600)


def _download_wheels(directory: Path) -> None:
    """Download the wheels in the lock files once; pip would contact the index even if all of them exist."""
    key = b"".join([_PYTHON_VERSION.encode(), *(lock.read_bytes() for lock in _LOCKS)])
    digest = hashlib.sha256(key).hexdigest()
    stamp = directory / "stamp"
    if stamp.exists() and stamp.read_text() == digest:
        return
    shutil.rmtree(directory, ignore_errors=True)
    options = ["--quiet", "--no-deps", "--require-hashes", "--no-build-isolation", f"--dest={directory}"]
    options.append(f"--python-version={_PYTHON_VERSION}")
    for lock in _LOCKS:
        run([sys.executable, "-m", "pip", "download", *options, "--requirement", str(lock)], timeout=300)
    stamp.write_text(digest)
