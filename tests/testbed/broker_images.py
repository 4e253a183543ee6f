"""Images of NATS and Kafka, built offline from the installed components of the testbed.

For testcontainers' NatsContainer and KafkaContainer, they behave like the images `nats` and `confluentinc/cp-kafka`.
"""

from __future__ import annotations

import io
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.testbed.components import cache_directory
from tests.testbed.containerd import busybox_path
from tests.testbed.install import search_path
from tests.testbed.process import run

COMPONENTS = ("nats-server", "kafka", "busybox")
"""Components that must be installed."""

_CONFLUENT = "etc/confluent/docker"
_JAVA = "usr/lib/jvm"
_BUSYBOX_APPLETS = ("sh", "sed", "hostname", "env", "tr", "cut", "sleep", "grep", "cat", "mkdir")
# Libraries of every Linux, and of C++ programs. Java's libraries that need others (for displays and sound) are skipped.
_BASE_LIBRARIES = (
    "libc.so",
    "libm.so",
    "libz.so",
    "libdl.so",
    "librt.so",
    "libpthread.so",
    "libstdc++.so",
    "libgcc_s.so",
)
_SKIPPED_DIRECTORIES = ("jmods", "legal", "man", "docs", "include")

_SCRIPTS = {
    "etc/confluent/docker/bash-config": "",
    # KAFKA_ADVERTISED_LISTENERS=... becomes advertised.listeners=...; testcontainers appends a call of kafka-storage.
    "etc/confluent/docker/configure": r"""#!/bin/sh
set -e
env | grep '^KAFKA_' | while IFS='=' read -r name value; do
    echo "$(echo "${name#KAFKA_}" | tr 'A-Z_' 'a-z.')=$value"
done > /etc/kafka/kafka.properties
echo 'log.dirs=/var/lib/kafka' >> /etc/kafka/kafka.properties
""",
    "bin/kafka-storage": f"""#!/bin/sh
exec /{_JAVA}/bin/java -cp '/kafka/libs/*' kafka.tools.StorageTool "$@"
""",
    "etc/confluent/docker/launch": f"""#!/bin/sh
exec /{_JAVA}/bin/java -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 \\
    -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -Dorg.slf4j.simpleLogger.log.kafka.server=info \\
    -cp '/kafka/libs/*' kafka.Kafka /etc/kafka/kafka.properties
""",
}


@dataclass(frozen=True)
class Image:
    """Arguments of `docker import`: the root file system as a tar archive, and the image's metadata."""

    archive: Path
    repository: str
    tag: str
    changes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Return the image's name with its tag."""
        return f"{self.repository}:{self.tag}"


def nats_image(directory: Path) -> Image:
    """Create an image that contains only a static nats-server."""
    server = shutil.which("nats-server", path=search_path("nats-server"))
    assert server is not None
    archive = directory / "nats.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(server, "nats-server")
        _add_directory(tar, "tmp")
    changes = ('ENTRYPOINT ["/nats-server"]', 'CMD ["--http_port", "8222"]', "EXPOSE 4222 8222")
    return Image(archive, "whalebridge-testbed/nats", "2.15.2", changes)


def kafka_image(directory: Path) -> Image:
    """Create an image with Kafka's jars, the machine's Java without its graphics, and a busybox for the scripts."""
    archive = directory / "kafka.tar"
    with tarfile.open(archive, "w", dereference=True) as tar:
        for name in ("tmp", "etc/kafka", "var/lib/kafka"):
            _add_directory(tar, name)
        tar.add(busybox_path(), "bin/busybox")
        for applet in _BUSYBOX_APPLETS:
            _add_symlink(tar, f"bin/{applet}", "busybox")
        for name, content in _SCRIPTS.items():
            _add_script(tar, name, content)
        tar.add(cache_directory() / "kafka" / "libs", "kafka/libs")
        _add_java(tar)
    return Image(archive, "whalebridge-testbed/cp-kafka", "8.3.1", ('CMD ["/bin/sh"]', "ENV PATH=/bin"))


def _add_java(tar: tarfile.TarFile) -> None:
    home = Path(shutil.which("java") or "java").resolve().parents[1]
    libraries: dict[str, Path] = {}
    for file in sorted(path for path in home.rglob("*") if path.is_file()):
        name = file.relative_to(home)
        if any(name.is_relative_to(skipped) for skipped in _SKIPPED_DIRECTORIES) or (
            name.parts[0] == "bin" and name.name != "java"
        ):
            continue
        if ".so" in file.name or name.name == "java":
            linked = dict(_linked_libraries(file, home))
            if not all(library.startswith((*_BASE_LIBRARIES, "ld-linux")) for library in linked):
                continue
            libraries |= linked
        tar.add(file, f"{_JAVA}/{name}")
    for library, path in libraries.items():
        # Programs contain the path of the dynamic linker, which searches lib first.
        tar.add(path, str(path).lstrip("/") if library.startswith("ld-linux") else f"lib/{library}")


def _linked_libraries(program: Path, home: Path) -> Iterator[tuple[str, Path]]:
    """Yield the names and paths of the system libraries that a program is linked to (without Java's own)."""
    for line in run(["ldd", str(program)], check=False).stdout.splitlines():
        name, _, target = line.partition(" => ")
        path = Path((target or name).split(" (")[0].strip())
        if path.is_absolute() and not path.is_relative_to(home) and path.exists():
            yield path.name if not target else name.strip(), path


def _add_directory(tar: tarfile.TarFile, name: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, 0o1777
    tar.addfile(entry)


def _add_symlink(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)


def _add_script(tar: tarfile.TarFile, name: str, content: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content.encode()), 0o755
    tar.addfile(entry, io.BytesIO(content.encode()))
