"""The kinds of things that the testbed installs: Go programs, Debian's packages, jars.

Each is made in a staging folder and then moved into its place in the cache, so that what is there is whole.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

_GO_VERSION = (1, 25)
_JAVA_VERSION = 17


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

    def directories(self) -> list[Path]:
        """Where its programs are."""

    def missing(self) -> list[str]:
        """What of it is not there."""

    def install(self, staging: Path) -> None:
        """Make it in `staging`, then move it into place."""


def cache_directory() -> Path:
    """The folder that holds everything installed here."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "whalebridge-testbed"


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
        """Programs are called as the folder of their main package, the module's own as the module without its /v2."""
        own = re.sub(r"/v\d+$", "", self.module)
        return tuple((own if package == "." else package).rsplit("/", 1)[-1] for package in self.packages)

    def directories(self) -> list[Path]:
        """All Go programs share one folder."""
        return [cache_directory() / "bin"]

    def missing(self) -> list[str]:
        """Those of its programs that are not there."""
        return _missing(self.programs, self.directories())

    def install(self, staging: Path) -> None:
        """Build inside the module's own folder: unlike `go install` that accepts modules with replace directives."""
        module = f"{self.module}@{self.version}"
        download = ["go", "mod", "download"]
        _require_go()
        _run([*download, module], staging, f"download {module}", _go_environment())
        found = json.loads(_run([*download, "-json", module], staging, f"find {module}", _go_environment()))
        _go_build(Path(found["Dir"]), staging, module, self.packages, self.tags)


@dataclass(frozen=True)
class GoSource:
    """Go programs by a module of this repository, whose go.sum pins what they are made of.

    Without `programs` it is the module itself, and its name is the program's; with them, they are other people's main
    packages, by the program's name.
    """

    directory: Path
    programs: tuple[tuple[str, str], ...] = ()
    ldflags: str = ""

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.directory.name

    @property
    def recipe(self) -> str:
        """Every byte of the source."""
        digest = hashlib.sha256(self.ldflags.encode())
        for file in sorted(path for path in self.directory.rglob("*") if path.is_file()):
            digest.update(
                f"{file.relative_to(self.directory)} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode()
            )
        return f"go source {self.name} {digest.hexdigest()[:16]}"

    def directories(self) -> list[Path]:
        """All Go programs share one folder."""
        return [cache_directory() / "bin"]

    def missing(self) -> list[str]:
        """Those of its programs that are not there."""
        return _missing([name for name, _ in self.programs] or [self.name], self.directories())

    def install(self, staging: Path) -> None:
        """Build them."""
        _require_go()
        for name, package in self.programs or ((self.name, "."),):
            _go_build(self.directory, staging, name, (package,), ldflags=self.ldflags, output=name)


@dataclass(frozen=True)
class DebianPackages:
    """Debian packages, unpacked and not installed.

    `complete`: with all packages that they depend on and the machine lacks.
    """

    name: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    complete: bool = False

    @property
    def recipe(self) -> str:
        """The packages; their version is what the machine's Debian has."""
        return f"debian {' '.join(self.packages)}{' and what they need' if self.complete else ''}"

    def directories(self) -> list[Path]:
        """Where Debian's packages keep programs."""
        root = cache_directory() / "debian" / self.name
        return [root / folder for folder in ("usr/sbin", "usr/bin", "sbin", "bin", "usr/lib/cni")]

    def missing(self) -> list[str]:
        """Those of its programs that are not there."""
        return _missing(self.programs, self.directories())

    def install(self, staging: Path) -> None:
        """Download (with fresh package lists if these do not know the packages) and unpack."""
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise InstallError(
                f"apt-get not found: {self.name} is taken from Debian's packages; use Debian 12 or later"
            )
        # The sandbox user of apt could not write into our folder, and apt would warn about it.
        download = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *self.packages]
        if self.complete:
            (staging / "partial").mkdir()
            here = ["-o", f"Dir::Cache::archives={staging}", "-o", "APT::Sandbox::User=root"]
            download = [
                "apt-get",
                "install",
                "-qy",
                "--download-only",
                "--no-install-recommends",
                *here,
                *self.packages,
            ]
        try:
            _run(download, staging, "download")
        except InstallError:
            _run(["apt-get", "update", "-q"], staging, "update apt's package lists (root is needed for that)")
            _run(download, staging, f"download Debian's {' '.join(self.packages)}")
        tree = staging / "tree"
        for package in sorted(staging.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(tree)], staging, f"unpack {package.name}")
        _move(tree, cache_directory() / "debian" / self.name, staging)


@dataclass(frozen=True)
class MavenJars:
    """Jars and all they depend on, from Maven's central repository, flat in NAME/libs/."""

    name: str
    artifacts: tuple[str, ...]  # GROUP:ARTIFACT:VERSION

    @property
    def recipe(self) -> str:
        """The artifacts that are asked for."""
        return f"maven {' '.join(self.artifacts)}"

    def directories(self) -> list[Path]:
        """No programs: java runs the jars."""
        return []

    def missing(self) -> list[str]:
        """Those of the artifacts, and java, that are not there."""
        libraries = cache_directory() / self.name / "libs"
        jars = ["{}-{}.jar".format(*artifact.split(":")[1:]) for artifact in self.artifacts]
        return [jar for jar in jars if not (libraries / jar).is_file()] + _missing(["java"], None)

    def install(self, staging: Path) -> None:
        """Let Maven find and copy what the artifacts depend on."""
        _require_java(self.name)
        if not shutil.which("mvn"):
            raise InstallError(f"mvn not found: {self.name} is taken from Maven's repository; apt-get install maven")
        (staging / "pom.xml").write_text(_pom(self.artifacts))
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={staging}/tree/libs"]
        _run(["mvn", "--batch-mode", "--quiet", *goal], staging, f"download {' '.join(self.artifacts)}")
        _move(staging / "tree", cache_directory() / self.name, staging)


def _missing(programs: Sequence[str], directories: list[Path] | None) -> list[str]:
    path = None if directories is None else os.pathsep.join(map(str, directories))
    return [program for program in programs if not shutil.which(program, path=path)]


def _move(built: Path, destination: Path, staging: Path) -> None:
    destination.parent.mkdir(exist_ok=True)
    if destination.exists():
        destination.replace(staging / "old")
    built.replace(destination)


def _pom(artifacts: Sequence[str]) -> str:
    wanted = "".join(f"<dependency>{_coordinates(*artifact.split(':'))}</dependency>" for artifact in artifacts)
    own = _coordinates("whalebridge", "testbed", "1")
    return f"<project><modelVersion>4.0.0</modelVersion>{own}<dependencies>{wanted}</dependencies></project>"


def _coordinates(group: str, artifact: str, version: str) -> str:
    return f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"


def _go_environment() -> dict[str, str]:
    # Without cgo the programs are static: they run on any distribution, whatever C library built them.
    return os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}


def _go_build(
    source: Path, staging: Path, what: str, packages: Sequence[str], tags: str = "", ldflags: str = "", output: str = ""
) -> None:
    (staging / "bin").mkdir(exist_ok=True)
    command = ["go", "build", "-trimpath", f"-ldflags=-s -w {ldflags}", f"-tags={tags}"]
    _run([*command, "-o", f"{staging}/bin/{output}", *packages], source, f"build {what}", _go_environment())
    (cache_directory() / "bin").mkdir(exist_ok=True)
    for program in (staging / "bin").iterdir():
        program.replace(cache_directory() / "bin" / program.name)


def _require_go() -> None:
    wanted = ".".join(map(str, _GO_VERSION))
    go = shutil.which("go")
    found = re.search(r"go(\d+)\.(\d+)", _run([go, "version"], Path.cwd(), "ask Go for its version")) if go else None
    if found is None:
        raise InstallError(
            f"go not found: install Go {wanted} or newer (Debian 12's own is too old) and put it on PATH"
        )
    if (int(found[1]), int(found[2])) < _GO_VERSION:
        raise InstallError(f"{go} is Go {found[1]}.{found[2]}: install {wanted} or newer and put it first on PATH")


def _require_java(what: str) -> None:
    java = shutil.which("java")
    if java is None:
        raise InstallError(
            f"java not found: {what} needs Java {_JAVA_VERSION} or newer; apt-get install openjdk-17-jre-headless"
        )
    # `-version` alone writes to stderr.
    found = re.search(r"^\S+ (\d+)", _run([java, "--version"], Path.cwd(), "ask Java for its version"))
    if found is None or int(found[1]) < _JAVA_VERSION:
        raise InstallError(f"{java} is too old: {what} needs Java {_JAVA_VERSION} or newer, first on PATH")


def _run(command: Sequence[str], directory: Path, what: str, environment: dict[str, str] | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InstallError(f"cannot {what}: {error}") from error
    if done.returncode:
        said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()] or ["it said nothing"]
        raise InstallError(f"cannot {what}: {said[-1].strip()} ({' '.join(command)})")
    return done.stdout
