"""Kinds of components that the testbed installs: from Go modules, Debian packages, a minimal Debian, jars, npm.

Each component is built in a staging directory and then moved into the cache, so that the cache has no partial ones.
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
    """A component cannot be installed; the message is one line: what is missing and what to do."""


class Component(Protocol):
    """A component of the testbed; it is reinstalled when its recipe changes."""

    @property
    def name(self) -> str:
        """Return the name on the command line."""

    @property
    def recipe(self) -> str:
        """Return everything that determines the installed files, as text."""

    def directories(self) -> list[Path]:
        """Return the directories of its programs."""

    def missing(self) -> list[str]:
        """Return the names of missing programs and files."""

    def install(self, staging: Path) -> None:
        """Build the component in `staging`, then move it into the cache."""


def cache_directory() -> Path:
    """Return the directory of all installed components."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "whalebridge-testbed"


@dataclass(frozen=True)
class GoPrograms:
    """Programs of one Go module at one version, built without cgo into `bin/`."""

    name: str
    module: str
    version: str
    packages: tuple[str, ...]
    tags: str = ""

    @property
    def recipe(self) -> str:
        """Return module, version, packages and build tags."""
        return f"go {self.module}@{self.version} {' '.join(self.packages)} [{self.tags}]"

    @property
    def programs(self) -> tuple[str, ...]:
        """Return the names of the programs: of the main package's directory, or of the module without its /v2."""
        module = re.sub(r"/v\d+$", "", self.module)
        return tuple((module if package == "." else package).rsplit("/", 1)[-1] for package in self.packages)

    def directories(self) -> list[Path]:
        """Return the directory of all Go programs."""
        return [cache_directory() / "bin"]

    def missing(self) -> list[str]:
        """Return the names of missing programs."""
        return _missing(self.programs, self.directories())

    def install(self, staging: Path) -> None:
        """Build in the module's directory; unlike `go install`, this accepts modules with replace directives."""
        _require_go()
        module = f"{self.module}@{self.version}"
        _go_build(_go_download(module, staging), staging, module, self.packages, self.tags)


@dataclass(frozen=True)
class GoModuleFiles:
    """Files of one Go module at one version, in NAME/."""

    name: str
    module: str
    version: str
    files: tuple[str, ...]  # paths in the module

    @property
    def recipe(self) -> str:
        """Return module, version and files."""
        return f"go {self.module}@{self.version} files {' '.join(self.files)}"

    def directories(self) -> list[Path]:
        """Return no directories: there are no programs."""
        return []

    def missing(self) -> list[str]:
        """Return the names of missing files."""
        directory = cache_directory() / self.name
        return [name for name in map(os.path.basename, self.files) if not (directory / name).is_file()]

    def install(self, staging: Path) -> None:
        """Download the module, and copy the files."""
        _require_go()
        source = _go_download(f"{self.module}@{self.version}", staging)
        (staging / "tree").mkdir()
        for file in self.files:
            shutil.copyfile(source / file, staging / "tree" / Path(file).name)
        _move(staging / "tree", cache_directory() / self.name, staging)


@dataclass(frozen=True)
class GoSource:
    """Go programs built in a module of this repository, whose go.sum pins the dependencies.

    `programs` are names of programs and their main packages, which are dependencies of the module. Without `programs`,
    the module itself is the program, with the name of its directory.
    """

    directory: Path
    programs: tuple[tuple[str, str], ...] = ()
    ldflags: str = ""

    @property
    def name(self) -> str:
        """Return the name of the directory."""
        return self.directory.name

    @property
    def recipe(self) -> str:
        """Return a digest of the source."""
        digest = hashlib.sha256(self.ldflags.encode())
        for file in sorted(path for path in self.directory.rglob("*") if path.is_file()):
            digest.update(
                f"{file.relative_to(self.directory)} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode()
            )
        return f"go source {self.name} {digest.hexdigest()[:16]}"

    def directories(self) -> list[Path]:
        """Return the directory of all Go programs."""
        return [cache_directory() / "bin"]

    def missing(self) -> list[str]:
        """Return the names of missing programs."""
        return _missing([name for name, _ in self.programs] or [self.name], self.directories())

    def install(self, staging: Path) -> None:
        """Build the programs."""
        _require_go()
        for name, package in self.programs or ((self.name, "."),):
            _go_build(self.directory, staging, name, (package,), ldflags=self.ldflags, output=name)


@dataclass(frozen=True)
class DebianPackages:
    """Debian packages that are unpacked, not installed.

    `complete` includes all dependencies that are not installed on the machine.
    """

    name: str
    packages: tuple[str, ...]
    programs: tuple[str, ...]
    complete: bool = False

    @property
    def recipe(self) -> str:
        """Return the packages; their versions are those of the machine's Debian."""
        return f"debian {' '.join(self.packages)}{' and what they need' if self.complete else ''}"

    def directories(self) -> list[Path]:
        """Return the directories of programs in Debian packages."""
        root = cache_directory() / "debian" / self.name
        return [root / name for name in ("usr/sbin", "usr/bin", "sbin", "bin", "usr/lib/cni")]

    def missing(self) -> list[str]:
        """Return the names of missing programs."""
        return _missing(self.programs, self.directories())

    def install(self, staging: Path) -> None:
        """Download and unpack the packages; update the package lists first if a download fails."""
        if not shutil.which("apt-get") or not shutil.which("dpkg-deb"):
            raise InstallError(f"apt-get not found: {self.name} requires Debian packages; use Debian 12 or later")
        # apt's sandbox user cannot write to the staging directory, and apt would warn about it.
        download = ["apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", *self.packages]
        if self.complete:
            (staging / "partial").mkdir()
            options = ["-o", f"Dir::Cache::archives={staging}", "-o", "APT::Sandbox::User=root"]
            download = [
                "apt-get",
                "install",
                "-qy",
                "--download-only",
                "--no-install-recommends",
                *options,
                *self.packages,
            ]
        try:
            _run(download, staging, "download")
        except InstallError:
            _run(["apt-get", "update", "-q"], staging, "update apt's package lists (requires root)")
            _run(download, staging, f"download the Debian packages {' '.join(self.packages)}")
        tree = staging / "tree"
        for package in sorted(staging.glob("*.deb")):
            _run(["dpkg-deb", "-x", str(package), str(tree)], staging, f"unpack {package.name}")
        _move(tree, cache_directory() / "debian" / self.name, staging)


@dataclass(frozen=True)
class MinimalDebian:
    """The root file system of a minimal Debian in debian/NAME; needs root and the component debootstrap."""

    name: str
    release: str
    packages: tuple[str, ...] = ()

    @property
    def recipe(self) -> str:
        """Return the release and the additional packages; the versions are those of the day."""
        return " ".join(("debootstrap", self.release, *self.packages))

    def directories(self) -> list[Path]:
        """Return no directories: this machine cannot use its programs."""
        return []

    def missing(self) -> list[str]:
        """Return the name if it is missing."""
        return [] if (self._root() / "etc" / "debian_version").is_file() else [self.name]

    def install(self, staging: Path) -> None:
        """Run debootstrap."""
        if os.geteuid() != 0:
            raise InstallError(f"root required: {self.name} is made by debootstrap; run the installation as root")
        if shutil.which("wget") is None:
            raise InstallError(
                f"wget not found: debootstrap needs it for {self.name}; install it (apt-get install wget)"
            )
        command, environment = debootstrap(self.release, staging / "tree", self.packages)
        _run(command, staging, f"make a minimal Debian {self.release}", environment)
        for package in (staging / "tree" / "var" / "cache" / "apt" / "archives").glob("*.deb"):
            package.unlink()
        _move(staging / "tree", self._root(), staging)

    def _root(self) -> Path:
        return cache_directory() / "debian" / self.name


def debootstrap(release: str, directory: Path, packages: Sequence[str] = ()) -> tuple[list[str], dict[str, str]]:
    """Return the command that makes a minimal Debian with additional packages in a directory, and its environment."""
    tree = cache_directory() / "debian" / "debootstrap"
    environment = {**os.environ, "DEBOOTSTRAP_DIR": f"{tree}/usr/share/debootstrap"}
    options = ["--variant=minbase", *([f"--include={','.join(packages)}"] if packages else [])]
    return [f"{tree}/usr/sbin/debootstrap", *options, release, str(directory)], environment


@dataclass(frozen=True)
class MavenJars:
    """Jars and their dependencies from Maven Central, in NAME/libs/."""

    name: str
    artifacts: tuple[str, ...]  # GROUP:ARTIFACT:VERSION

    @property
    def recipe(self) -> str:
        """Return the artifacts."""
        return f"maven {' '.join(self.artifacts)}"

    def directories(self) -> list[Path]:
        """Return no directories: java runs the jars."""
        return []

    def missing(self) -> list[str]:
        """Return the missing jars, and java if it is missing."""
        libraries = cache_directory() / self.name / "libs"
        jars = ["{}-{}.jar".format(*artifact.split(":")[1:]) for artifact in self.artifacts]
        return [jar for jar in jars if not (libraries / jar).is_file()] + _missing(["java"], None)

    def install(self, staging: Path) -> None:
        """Copy the artifacts and their dependencies with Maven."""
        _require_java(self.name)
        if not shutil.which("mvn"):
            raise InstallError(f"mvn not found: {self.name} requires Maven; run: apt-get install maven")
        (staging / "pom.xml").write_text(_pom(self.artifacts))
        goal = ["dependency:copy-dependencies", "-DincludeScope=runtime", f"-DoutputDirectory={staging}/tree/libs"]
        _run(["mvn", "--batch-mode", "--quiet", *goal], staging, f"download {' '.join(self.artifacts)}")
        _move(staging / "tree", cache_directory() / self.name, staging)


@dataclass(frozen=True)
class NpmPackages:
    """Packages of npm and their dependencies, in NAME/node_modules/; their install scripts do not run."""

    name: str
    packages: tuple[str, ...]  # PACKAGE@VERSION

    @property
    def recipe(self) -> str:
        """Return the packages."""
        return f"npm {' '.join(self.packages)}"

    def directories(self) -> list[Path]:
        """Return no directories: node loads the packages."""
        return []

    def missing(self) -> list[str]:
        """Return the missing packages, and node if it is missing."""
        modules = cache_directory() / self.name / "node_modules"
        packages = [package.rpartition("@")[0] for package in self.packages]
        return [name for name in packages if not (modules / name / "package.json").is_file()] + _missing(["node"], None)

    def install(self, staging: Path) -> None:
        """Install the packages."""
        if not shutil.which("npm"):
            raise InstallError(f"npm not found: {self.name} requires Node.js; run: apt-get install nodejs npm")
        options = ["--ignore-scripts", "--no-audit", "--no-fund", f"--prefix={staging}/tree"]
        _run(["npm", "install", *options, *self.packages], staging, f"download {' '.join(self.packages)}")
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
    dependencies = "".join(f"<dependency>{_coordinates(*artifact.split(':'))}</dependency>" for artifact in artifacts)
    project = _coordinates("whalebridge", "testbed", "1")
    return f"<project><modelVersion>4.0.0</modelVersion>{project}<dependencies>{dependencies}</dependencies></project>"


def _coordinates(group: str, artifact: str, version: str) -> str:
    return f"<groupId>{group}</groupId><artifactId>{artifact}</artifactId><version>{version}</version>"


def _go_environment() -> dict[str, str]:
    # Without cgo, the programs are static and run on any distribution.
    return os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}


def _go_download(module: str, staging: Path) -> Path:
    """Download MODULE@VERSION into Go's module cache, and return its directory there."""
    download = ["go", "mod", "download"]
    _run([*download, module], staging, f"download {module}", _go_environment())
    info = json.loads(_run([*download, "-json", module], staging, f"find {module}", _go_environment()))
    return Path(info["Dir"])


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
    minimum = ".".join(map(str, _GO_VERSION))
    go = shutil.which("go")
    version = re.search(r"go(\d+)\.(\d+)", _run([go, "version"], Path.cwd(), "get Go's version")) if go else None
    if version is None:
        raise InstallError(f"go not found: install Go {minimum} or newer (Debian 12's is too old) and add it to PATH")
    if (int(version[1]), int(version[2])) < _GO_VERSION:
        raise InstallError(
            f"{go}: Go {version[1]}.{version[2]} is too old; install Go {minimum} or newer and put it first on PATH"
        )


def _require_java(what: str) -> None:
    java = shutil.which("java")
    if java is None:
        raise InstallError(
            f"java not found: {what} needs Java {_JAVA_VERSION} or newer; run: apt-get install openjdk-17-jre-headless"
        )
    # `-version` alone writes to stderr.
    version = re.search(r"^\S+ (\d+)", _run([java, "--version"], Path.cwd(), "get Java's version"))
    if version is None or int(version[1]) < _JAVA_VERSION:
        raise InstallError(f"{java} is too old: {what} needs Java {_JAVA_VERSION} or newer; put it first on PATH")


def _run(command: Sequence[str], directory: Path, what: str, environment: dict[str, str] | None = None) -> str:
    try:
        result = subprocess.run(command, cwd=directory, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise InstallError(f"cannot {what}: {error}") from error
    if result.returncode:
        lines = [line for line in (result.stderr or result.stdout).splitlines() if line.strip()] or ["no output"]
        raise InstallError(f"cannot {what}: {lines[-1].strip()} ({' '.join(command)})")
    return result.stdout
