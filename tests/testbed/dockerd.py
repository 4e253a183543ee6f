"""A Docker engine that uses a containerd of the testbed; its containers are in the namespace `moby`."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

from tests.testbed import image
from tests.testbed.components import cache_directory
from tests.testbed.containerd import Containerd, busybox_path
from tests.testbed.process import Closing, Daemon, run
from tests.testbed.sandbox import LINKS_FILE


class Docker(Daemon, Closing):
    """Debian's dockerd, with its directories below that of its containerd; it runs within the context.

    It has the image `busybox:latest`. Without `ports`, it has no network, and `docker run` needs `--network=host`. With
    `ports`, it has a network bridge, so that ports can be published on this machine.
    """

    def __init__(self, engine: Containerd, *, ports: bool = False) -> None:
        self.engine = engine
        self._ports = ports
        self.directory = engine.directory / "docker"
        super().__init__("dockerd", self.directory / "dockerd.log")
        self.host = f"unix://{self.directory}/d.sock"

    def start(self) -> None:
        """Start dockerd, wait until it responds, and import its image."""
        self.directory.mkdir(exist_ok=True)
        # By default, dockerd writes its key to /etc/docker, and reads the machine's configuration there.
        config = {
            "deprecated-key-path": f"{self.directory}/key.json",
            "containerd": self.engine.address,
            "hosts": [self.host],
            "pidfile": f"{self.directory}/pid",
            "data-root": f"{self.directory}/data",
            "exec-root": f"{self.directory}/exec",  # sandbox.py searches for containers here
            "bridge": _make_bridge(self.engine.directory / LINKS_FILE) if self._ports else "none",
            # A process of dockerd forwards published ports, without changes to the machine's network.
            "iptables": False,
            "ip6tables": False,
            "ip-forward": False,
            "ip-masq": False,
            "cgroup-parent": "/moby",
            "oom-score-adjust": 0,  # the default, -500, requires CAP_SYS_RESOURCE
        }
        (self.directory / "daemon.json").write_text(json.dumps(config))
        self.launch()
        self.wait_ready()
        archive = self.directory / "layer.tar"
        archive.write_bytes(image.layer(busybox_path()))
        self.docker("import", str(archive), "busybox:latest")

    def close(self) -> None:
        """Remove all containers, and stop dockerd."""
        if not self.running:
            return
        try:
            # Otherwise, dockerd waits up to 10 s for each container to exit on SIGTERM.
            if containers := self.docker("ps", "--all", "--quiet").stdout.split():
                self.docker("rm", "--force", *containers)
        finally:
            self.stop()

    def _spawn(self) -> subprocess.Popen[bytes]:
        # The component includes a library that a minimal Debian lacks.
        libraries = ":".join(map(str, (cache_directory() / "debian" / "docker").glob("**/*-linux-gnu*")))
        dockerd = ("env", f"LD_LIBRARY_PATH={libraries}", "dockerd", f"--config-file={self.directory}/daemon.json")
        return self.engine.spawn(*dockerd, log=self.log)

    def _responds(self) -> bool:
        return self.docker("version", check=False).returncode == 0

    def docker(self, *args: str, timeout: float = 60, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run docker; with `check`, a failure raises CommandError with its output."""
        command = ["docker", "--config", str(self.directory), "--host", self.host, *args]
        return run(self.engine.sandboxed_command(*command), env=self.engine.env, timeout=timeout, check=check)


def _make_bridge(links_file: Path) -> str:
    """Create a network bridge with addresses reserved for tests (RFC 2544); sandbox.py removes it."""
    used = {link.name for link in Path("/sys/class/net").iterdir()}  # possibly by another worker of the tests
    number = random.choice([each for each in range(512) if f"whale{each}" not in used])  # noqa: S311 - no secret
    name = f"whale{number}"
    with links_file.open("a") as file:
        file.write(f"{name}\n")
    run(["ip", "link", "add", name, "type", "bridge"])
    run(["ip", "address", "add", f"198.{18 + number // 256}.{number % 256}.1/24", "dev", name])
    run(["ip", "link", "set", name, "up"])
    return name
