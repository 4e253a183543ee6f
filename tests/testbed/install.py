"""Installs what the tests need into a cache outside the checkout, once: a second run only looks at the stamps.

Nothing of the machine itself is changed. Go programs are built from the module proxy into `bin/`; Debian's packages
are downloaded by apt-get and unpacked below `debian/`, so no service is started, no package is replaced or removed, and
they stand side by side with whatever is installed. To add a peer, add a line to COMPONENTS.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_GO = (1, 25)


class InstallError(Exception):
    """Something is missing; the message is one line that says what, and what to do."""


class Component(Protocol):
    """A thing the tests need; its recipe changes whenever it has to be installed anew."""

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def recipe(self) -> str:
        """All that decides what gets installed, as text."""

    @property
    def programs(self) -> tuple[str, ...]:
        """The programs that it brings."""

    def folders(self) -> list[Path]:
        """Where its programs are."""

    def install(self, staging: Path) -> None:
        """Make it in `staging`, then move it into place."""


@dataclass(frozen=True)
class GoPrograms:
    """Programs of one Go module at one version, built without cgo into the flat `bin/`."""

    name: str
    module: str
    version: str
    packages: tuple[str, ...]
    tags: str = ""

    @property
    def recipe(self) -> str:
        """Module, version and what is built of it."""
        return f"go {self.module}@{self.version} {' '.join(self.packages)} [{self.tags}]"

    @property
    def programs(self) -> tuple[str, ...]:
        """Programs are called as the folder of their main package."""
        return tuple(package.rsplit("/", 1)[-1] for package in self.packages)

    def folders(self) -> list[Path]:
        """All Go programs share one folder."""
        return [cache() / "bin"]

    def install(self, staging: Path) -> None:
        """Build inside the module's own folder: unlike `go install` that accepts modules with replace directives."""
        _require_go()
        module = f"{self.module}@{self.version}"
        # Without cgo the programs are static: they run on any distribution, whatever C library built them.
        environment = os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}
        download = ["go", "mod", "download"]
        _run([*download, module], staging, f"download {module}", environment)
        source = Path(json.loads(_run([*download, "-json", module], staging, f"find {module}", environment))["Dir"])
        command = ["go", "build", "-trimpath", "-ldflags=-s -w", f"-tags={self.tags}", "-o", f"{staging}/"]
        _run([*command, *self.packages], source, f"build {module}", environment)
        (cache() / "bin").mkdir(exist_ok=True)
        for program in self.programs:
            (staging / program).replace(cache() / "bin" / program)


@dataclass(frozen=True)
class DebianPackages:
    """Debian packages, unpacked and not installed."""

    name: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]

    @property
    def recipe(self) -> str:
        """The packages; their version is what the machine's Debian has."""
        return f"debian {' '.join(self.packages)}"

    def folders(self) -> list[Path]:
        """Where Debian's packages keep programs."""
        root = cache() / "debian" / self.name
        return [root / folder for folder in ("usr/sbin", "usr/bin", "sbin", "bin", "usr/lib/cni")]

    def install(self, staging: Path) -> None:
        """Download (with fresh package lists if these do not know the packages) and unpack."""
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise InstallError(
                f"apt-get not found: {self.name} is taken from Debian's packages; use Debian 12 or later"
            )
        # The sandbox user of apt could not write into our folder, and apt would warn about it.
        download = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *self.packages]
        try:
            _run(download, staging, "download")
        except InstallError:
            _run(["apt-get", "update", "-q"], staging, "update apt's package lists (root is needed for that)")
            _run(download, staging, f"download Debian's {' '.join(self.packages)}")
        tree = staging / "tree"
        for package in sorted(staging.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(tree)], staging, f"unpack {package.name}")
        place = cache() / "debian" / self.name
        place.parent.mkdir(exist_ok=True)
        if place.exists():
            place.replace(staging / "old")
        tree.replace(place)


_CONTAINERD = ("containerd", "containerd-shim-runc-v2", "ctr")
_CONTAINERD_GO = tuple(f"./cmd/{program}" for program in _CONTAINERD)

COMPONENTS: tuple[Component, ...] = (
    DebianPackages("busybox", ("busybox-static",), ("busybox",)),
    DebianPackages("runc", ("runc",), ("runc",)),
    DebianPackages("containerd-1.6", ("containerd",), _CONTAINERD),
    DebianPackages("cni", ("containernetworking-plugins",), ("bridge",)),
    DebianPackages("docker", ("docker.io", "libdevmapper1.02.1"), ("dockerd", "docker")),
    GoPrograms("containerd-2.4", "github.com/containerd/containerd/v2", "v2.4.2", _CONTAINERD_GO, tags="no_btrfs"),
    GoPrograms("nerdctl", "github.com/containerd/nerdctl/v2", "v2.1.2", ("./cmd/nerdctl",)),
)


def cache() -> Path:
    """The folder that holds everything installed here."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "whalebridge-testbed"


def missing(names: Iterable[str] = ()) -> list[str]:
    """Those of the named components (none: of all) that are not installed as they should be."""
    return [component.name for component in _select(names) if not _installed(component)]


def search_path(*names: str) -> str:
    """A PATH on which the programs of the named components are found first, in that order."""
    folders = [folder for name in names for folder in _select([name])[0].folders()]
    return os.pathsep.join([*map(str, folders), os.environ.get("PATH", os.defpath)])


def install(names: Iterable[str] = ()) -> None:
    """Install the named components (none: all of them), saying what is done and how long it took."""
    wanted = _select(names)
    if all(map(_installed, wanted)):
        print(f"testbed: {', '.join(component.name for component in wanted)}: already in {cache()}", flush=True)
        return
    cache().mkdir(parents=True, exist_ok=True)
    with _lock(cache() / "lock"):
        for stale in cache().glob("staging-*"):  # of an installation that was killed
            shutil.rmtree(stale)
        for component in wanted:
            if _installed(component):
                continue
            print(f"testbed: {component.name}: installing ({component.recipe}) ...", flush=True)
            started = time.monotonic()
            with tempfile.TemporaryDirectory(dir=cache(), prefix="staging-") as staging:
                component.install(Path(staging))
            _check_programs(component)
            _stamp(component).parent.mkdir(exist_ok=True)
            _stamp(component).write_text(component.recipe)
            print(f"testbed: {component.name}: done in {time.monotonic() - started:.0f} s", flush=True)


def _select(names: Iterable[str]) -> list[Component]:
    known = {component.name: component for component in COMPONENTS}
    names = list(names) or list(known)
    if unknown := [name for name in names if name not in known]:
        raise InstallError(f"unknown component {', '.join(unknown)}: there are {', '.join(known)}")
    return [known[name] for name in names]


def _stamp(component: Component) -> Path:
    return cache() / "stamps" / component.name


def _installed(component: Component) -> bool:
    stamp = _stamp(component)
    return stamp.is_file() and stamp.read_text() == component.recipe and not _absent(component)


def _absent(component: Component) -> list[str]:
    path = os.pathsep.join(map(str, component.folders()))
    return [program for program in component.programs if not shutil.which(program, path=path)]


def _check_programs(component: Component) -> None:
    if absent := _absent(component):
        raise InstallError(f"{component.name} brought no program {', '.join(absent)} ({component.recipe})")


def _require_go() -> None:
    wanted = ".".join(map(str, _GO))
    go = shutil.which("go")
    found = re.search(r"go(\d+)\.(\d+)", _run([go, "version"], Path.cwd(), "ask Go for its version")) if go else None
    if found is None:
        raise InstallError(
            f"go not found: install Go {wanted} or newer (Debian 12's own is too old) and put it on PATH"
        )
    if (int(found[1]), int(found[2])) < _GO:
        raise InstallError(f"{go} is Go {found[1]}.{found[2]}: install {wanted} or newer and put it first on PATH")


def _run(command: Sequence[str], folder: Path, what: str, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InstallError(f"cannot {what}: {error}") from error
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["it said nothing"]
        raise InstallError(f"cannot {what}: {said[-1].strip()} ({' '.join(command)})")
    return done.stdout


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Let one installation run at a time; the kernel frees the lock however its holder ends."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print("testbed: another installation is running, waiting for it ...", flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
