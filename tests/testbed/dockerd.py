"""A Docker engine on top of a testbed's containerd, where its containers show up in namespace `moby`."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.eventually import eventually
from tests.testbed import image
from tests.testbed.components import cache_directory
from tests.testbed.containerd import Containerd, busybox_path
from tests.testbed.process import run
from tests.testbed.sandbox import LINKS_FILE


class Docker:
    """Debian's dockerd with folders below those of its containerd.

    As a context manager it is started with the image `busybox:latest`. Without `ports` it has no network of its own,
    and `run` needs `--network=host`; with them it has a bridge, so that ports can be published on this machine.
    """

    def __init__(self, engine: Containerd, *, ports: bool = False) -> None:
        self.engine = engine
        self._ports = ports
        self.directory = engine.directory / "docker"
        self.host = f"unix://{self.directory}/d.sock"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start dockerd, wait until it answers, and make its image."""
        self.directory.mkdir(exist_ok=True)
        # Its key would go to /etc/docker, and the machine's own configuration would come from there.
        config = {
            "deprecated-key-path": f"{self.directory}/key.json",
            "containerd": self.engine.address,
            "hosts": [self.host],
            "pidfile": f"{self.directory}/pid",
            "data-root": f"{self.directory}/data",
            "exec-root": f"{self.directory}/exec",  # guard.py looks for containers here
            "bridge": _make_bridge(self.engine.directory / LINKS_FILE) if self._ports else "none",
            # A published port is forwarded by a process of dockerd: nothing of the machine's own network changes.
            "iptables": False,
            "ip6tables": False,
            "ip-forward": False,
            "ip-masq": False,
            "cgroup-parent": "/moby",
            "oom-score-adjust": 0,  # the default, -500, takes CAP_SYS_RESOURCE
        }
        file = self.directory / "daemon.json"
        file.write_text(json.dumps(config))
        log = self.directory / "dockerd.log"
        # A library that a small Debian has not comes with it.
        libraries = ":".join(map(str, (cache_directory() / "debian" / "docker").glob("**/*-linux-gnu*")))
        dockerd = ("env", f"LD_LIBRARY_PATH={libraries}", "dockerd", f"--config-file={file}")
        process = self._process = self.engine.spawn(*dockerd, log=log)

        def answers() -> bool:
            if process.poll() is not None:
                raise RuntimeError(f"dockerd ended: {log.read_text()[-2000:]}")
            return self.docker("version", check=False).returncode == 0

        eventually(answers, f"dockerd at {self.host}", within=60)
        root = self.directory / "layer.tar"
        root.write_bytes(image.layer(busybox_path()))
        self.docker("import", str(root), "busybox:latest")

    def stop(self) -> None:
        """Remove every container, and end dockerd."""
        if self._process is None:
            return
        try:
            # It would first wait 10 s for each of them to heed SIGTERM.
            if containers := self.docker("ps", "--all", "--quiet").stdout.split():
                self.docker("rm", "--force", *containers)
            self._process.terminate()
            self._process.wait(20)
        finally:
            self._process.kill()
            self._process.wait(20)
            self._process = None

    def docker(self, *args: str, timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Call Docker's client; a failure raises CommandError with what it said."""
        command = ["docker", "--config", str(self.directory), "--host", self.host, *args]
        return run(self.engine.sandboxed_command(*command), env=self.engine.env, timeout=timeout, check=check)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def _make_bridge(links_file: Path) -> str:
    """A network bridge with some addresses that are set aside for tests (RFC 2544); the guard will remove it."""
    taken = {link.name for link in Path("/sys/class/net").iterdir()}  # also by another worker of the tests
    number = random.choice([each for each in range(512) if f"whale{each}" not in taken])  # noqa: S311 - no secret
    name = f"whale{number}"
    with links_file.open("a") as file:
        file.write(f"{name}\n")
    run(["ip", "link", "add", name, "type", "bridge"])
    run(["ip", "address", "add", f"198.{18 + number // 256}.{number % 256}.1/24", "dev", name])
    run(["ip", "link", "set", name, "up"])
    return name
