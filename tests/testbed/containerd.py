"""A private containerd with its own directories, sockets and shims, which are all removed at the end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, get_args

from tests.testbed import image, sandbox
from tests.testbed.components import cache_directory
from tests.testbed.install import search_path
from tests.testbed.process import Closing, Daemon, pids_with_arguments, run

Version = Literal["1.6", "2.4"]
VERSIONS: tuple[Version, ...] = get_args(Version)


def components(version: Version) -> tuple[str, ...]:
    """Return the components that must be installed for a Containerd of this version and its `nerdctl`."""
    return (f"containerd-{version}", "runc", "busybox", "nerdctl", "cni")


# CRI (one plugin in 1.6, several in 2.4) would set up networking; nri and opt write outside of our directory.
# The restart monitor would kill a container with `--restart=always` that is just being started, as if it had stopped.
_CONFIG_TEMPLATE = """\
version = 2
root = "{directory}/root"
state = "{directory}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.nri.v1.nri",
]
[grpc]
  address = "{directory}/c.sock"
[ttrpc]
  address = "{directory}/c.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{directory}/opt"
[plugins."io.containerd.internal.v1.restart"]
  interval = "1h"
"""


class Containerd(Daemon, Closing):
    """One containerd of the given version; it runs within the context and is removed with its containers on exit.

    Containers and their shims keep running when it is stopped or killed.
    Containers of instances that run at the same time need different ids: runc names their cgroups NAMESPACE/ID.
    """

    UNSHARE_FLAGS: tuple[str, ...] = ("mount",)
    """Kinds of Linux namespaces that this instance does not share with the machine."""

    PRIVATE_PATHS: tuple[str, ...] = ()
    """Additional directories that are private to this instance, and empty at its start."""

    def __init__(self, version: Version, directory: Path | None = None) -> None:
        self.version: Version = version
        # The path of a unix socket has at most 108 bytes: TMPDIR and pytest's directories may be too long.
        self.directory = directory or Path(tempfile.mkdtemp(prefix="whalebridge-", dir="/tmp"))
        super().__init__(f"containerd {version}", self.directory / "containerd.log")
        self.address = f"{self.directory}/c.sock"
        # Remove a developer's settings for other instances of containerd and Docker.
        prefixes = ("CONTAINERD_", "NERDCTL_", "DOCKER_", "COMPOSE_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}
        # Debian's programs and the built ones have the same names; the order of the path selects the version.
        self.env["PATH"] = search_path(*components(version), "docker")
        # containerd and nerdctl leave files in TMPDIR.
        self.env["TMPDIR"] = f"{self.directory}/tmp"
        self._sandbox: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start containerd, and wait until it responds."""
        if self._sandbox is None:
            self._sandbox = self._start_sandbox()
        (self.directory / "config.toml").write_text(self._write_config())
        self.launch()
        self.wait_ready()
        self.ctr("version")

    def _spawn(self) -> subprocess.Popen[bytes]:
        return self.spawn("containerd", "--config", f"{self.directory}/config.toml", log=self.log)

    def _responds(self) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            return client.connect_ex(self.host_path(self.address)) == 0

    def close(self) -> None:
        """Stop and remove everything that this instance started or created."""
        self.kill()
        if self._sandbox is not None:
            self._sandbox.communicate(timeout=120)  # closes its standard input, which starts the cleanup
            if self._sandbox.returncode:
                raise RuntimeError(f"cleaning up {self.directory} failed: {self._sandbox.args!r}")
            self._sandbox = None
        shutil.rmtree(self.directory, ignore_errors=True)  # exists if containerd was never started

    def ctr(
        self, *args: str, namespace: str = "default", timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run ctr; with `check`, a failure raises CommandError with its output."""
        command = self.sandboxed_command("ctr", "--address", self.address, "--namespace", namespace, *args)
        return run(command, env=self.env, timeout=timeout, check=check)

    def nerdctl(
        self, *args: str, namespace: str = "default", timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run nerdctl. `nerdctl run` needs --pull=never and --net=host; compose files need the equivalent."""
        options = ["--address", self.address, "--namespace", namespace, "--cgroup-manager=cgroupfs"]
        options += [f"--data-root={self.directory}/nerdctl", f"--cni-netconfpath={self.directory}/cni"]
        # `compose up` writes the configuration of a default network, which requires the plugins.
        options += [f"--cni-path={cache_directory()}/debian/cni/usr/lib/cni"]
        return run(self.sandboxed_command("nerdctl", *options, *args), env=self.env, timeout=timeout, check=check)

    def sandboxed_command(self, *command: str) -> list[str]:
        """Return the command line that runs a program in the sandbox of this containerd (sandbox.py)."""
        if self._sandbox is None:
            raise RuntimeError("containerd was never started")
        files = {"mount": "mnt"}
        namespaces = [f"--{kind}=/proc/{self._sandbox.pid}/ns/{files.get(kind, kind)}" for kind in self.UNSHARE_FLAGS]
        return ["nsenter", *namespaces, "--", *command]

    def host_path(self, path: str) -> str:
        """Return the path outside of the sandbox for a path in the sandbox."""
        return f"/proc/{self._sandbox.pid}/root{path}" if self._sandbox else path

    def spawn(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a program in the sandbox in the background; close() kills it if it still runs."""
        with log.open("ab") as file:
            # In a new session: Ctrl-C in a terminal interrupts only the tests, which stop the program in order.
            return subprocess.Popen(
                self.sandboxed_command(*command),
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def import_image(self, namespace: str = "default") -> None:
        """Import the busybox image into a namespace, which creates the namespace."""
        sandbox.keep_cgroups(namespace, self.directory.name)
        archive = self.directory / "busybox.tar"
        if not archive.exists():
            archive.write_bytes(image.oci_archive(busybox_path()))
        self.ctr("images", "import", str(archive), namespace=namespace)

    def image_digest(self, name: str, namespace: str = "default") -> str:
        """Return the digest that the name of an image points to."""
        (line,) = self.ctr("images", "ls", f"name=={name}", namespace=namespace).stdout.splitlines()[1:]
        return next(word for word in line.split() if word.startswith("sha256:"))

    def run(self, id_: str, *command: str, namespace: str = "default", labels: Mapping[str, str] | None = None) -> None:
        """Run a container of the busybox image in the background with `ctr run --detach`."""
        options = [f"--label={key}={value}" for key, value in (labels or {}).items()]
        self.ctr("run", "--detach", "--null-io", *options, image.NAME, id_, *command, namespace=namespace)

    def tasks(self, namespace: str = "default") -> dict[str, str]:
        """Return the status of each task of a namespace by container id, according to ctr."""
        lines = self.ctr("tasks", "ls", namespace=namespace).stdout.splitlines()[1:]
        return {container: status for container, _, status in (line.split() for line in lines)}

    def shim_pids(self, namespace: str | None = None, container: str | None = None) -> list[int]:
        """Return the pids of the running shims of this containerd, or only of a namespace or container."""
        arguments = ["-address", self.address]
        arguments += ["-namespace", namespace] if namespace is not None else []
        arguments += ["-id", container] if container is not None else []
        return pids_with_arguments(*arguments)

    def _start_sandbox(self) -> subprocess.Popen[str]:
        (self.directory / "tmp").mkdir(parents=True, exist_ok=True)
        unshare = ["unshare", "--propagation", "slave", *(f"--{kind}" for kind in self.UNSHARE_FLAGS)]
        process = subprocess.Popen(
            [*unshare, sys.executable, sandbox.__file__, str(self.directory), *self.PRIVATE_PATHS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if process.stdout is None or process.stdout.readline() != sandbox.READY:
            process.communicate(timeout=30)
            raise RuntimeError("cannot create a mount namespace; run the tests as root")
        return process

    def _write_config(self) -> str:
        return _CONFIG_TEMPLATE.format(directory=self.directory)


def busybox_path() -> Path:
    """Return the path of the testbed's static busybox."""
    return Path(shutil.which("busybox", path=search_path("busybox")) or "busybox")
