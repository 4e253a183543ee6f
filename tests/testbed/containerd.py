"""A private containerd, with folders, sockets and shims of its own, that leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, get_args

from tests.eventually import eventually
from tests.testbed import image, sandbox
from tests.testbed.components import cache_directory
from tests.testbed.install import search_path
from tests.testbed.process import pids_with_arguments, run, suspend_process

Version = Literal["1.6", "2.4"]
VERSIONS: tuple[Version, ...] = get_args(Version)


def components(version: Version) -> tuple[str, ...]:
    """What has to be installed for a Containerd of this version and its nerdctl()."""
    return (f"containerd-{version}", "runc", "busybox", "nerdctl", "cni")


# CRI (one plugin in 1.6, several in 2.4) would set up networking; nri and opt write outside of our folder.
_CONFIG_TEMPLATE = """\
version = 2
root = "{folder}/root"
state = "{folder}/state"
disabled_plugins = [
  "io.containerd.grpc.v1.cri",
  "io.containerd.cri.v1.images",
  "io.containerd.cri.v1.runtime",
  "io.containerd.podsandbox.controller.v1.podsandbox",
  "io.containerd.nri.v1.nri",
]
[grpc]
  address = "{folder}/c.sock"
[ttrpc]
  address = "{folder}/c.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{folder}/opt"
"""


class Containerd:
    """One containerd of the given version; as a context manager it is started, and removed with all that it ran.

    Containers of two instances that live at the same time need different ids: runc names their cgroups NAMESPACE/ID.
    """

    UNSHARE_FLAGS: tuple[str, ...] = ("mount",)
    """The kinds of namespaces that it has for itself, besides its containers'."""

    PRIVATE_PATHS: tuple[str, ...] = ()
    """More places that are its own; it finds them empty."""

    def __init__(self, version: Version, directory: Path | None = None) -> None:
        self.version: Version = version
        # The path of a unix socket ends at 108 bytes: TMPDIR and pytest's folders may be too long.
        self.directory = directory or Path(tempfile.mkdtemp(prefix="whalebridge-", dir="/tmp"))
        self.address = f"{self.directory}/c.sock"
        self.log = self.directory / "containerd.log"
        # What a developer has set for a containerd or Docker of their own must not reach ours.
        foreign = ("CONTAINERD_", "NERDCTL_", "DOCKER_", "COMPOSE_")
        self.env = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
        # Debian's programs and the built ones have the same names: whose come first is whose are used.
        self.env["PATH"] = search_path(*components(version), "docker")
        # containerd and nerdctl leave things there.
        self.env["TMPDIR"] = f"{self.directory}/tmp"
        self._sandbox: subprocess.Popen[str] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of containerd itself."""
        if self._process is None:
            raise RuntimeError("containerd is not running")
        return self._process.pid

    def start(self) -> None:
        """Start it and wait until it answers."""
        if self._sandbox is None:
            self._sandbox = self._start_sandbox()
        config = self.directory / "config.toml"
        config.write_text(self._write_config())
        self._process = self.spawn("containerd", "--config", str(config), log=self.log)
        self.wait_ready()

    def wait_ready(self, timeout: float = 30) -> None:
        """Wait until it answers; where it ended instead, raise with the end of its log."""

        def answers() -> bool:
            if self._process is not None and self._process.poll() is not None:
                raise RuntimeError(f"containerd {self.version} ended: {self.log.read_text()[-2000:]}")
            with socket.socket(socket.AF_UNIX) as client:
                return client.connect_ex(self.host_path(self.address)) == 0

        eventually(answers, f"containerd {self.version} at {self.address}", within=timeout)
        self.ctr("version", timeout=timeout)

    def stop(self) -> None:
        """End it as an operator does (SIGTERM); containers and their shims go on."""
        self._signal_and_wait(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL containerd alone; containers and their shims go on."""
        self._signal_and_wait(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start it."""
        self.stop()
        self.start()

    def suspend(self) -> None:
        """Freeze containerd alone (SIGSTOP): its socket still accepts, and nothing answers."""
        suspend_process(self.pid)

    def resume(self) -> None:
        """End what suspend() began."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End and remove everything that this instance brought about."""
        self.kill()
        if self._sandbox is not None:
            self._sandbox.communicate(timeout=120)  # the end of its standard input is its sign to clean up
            if self._sandbox.returncode:
                raise RuntimeError(f"cleaning up {self.directory} failed: {self._sandbox.args!r}")
            self._sandbox = None
        shutil.rmtree(self.directory, ignore_errors=True)  # still there if it was never started

    def ctr(
        self, *args: str, namespace: str = "default", timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Call containerd's own client; a failure raises CommandError with what it said."""
        return run(self.ctr_command(*args, namespace=namespace), env=self.env, timeout=timeout, check=check)

    def nerdctl(
        self, *args: str, namespace: str = "default", timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Call nerdctl; its `run` needs --pull=never and --net=host, compose files the same in their words."""
        return run(self.nerdctl_command(*args, namespace=namespace), env=self.env, timeout=timeout, check=check)

    def ctr_command(self, *args: str, namespace: str = "default") -> list[str]:
        """The command line of a call of containerd's own client."""
        return self.sandboxed_command("ctr", "--address", self.address, "--namespace", namespace, *args)

    def nerdctl_command(self, *args: str, namespace: str = "default") -> list[str]:
        """The command line of a call of nerdctl, with all of its folders below ours."""
        folders = [f"--data-root={self.directory}/nerdctl", f"--cni-netconfpath={self.directory}/cni"]
        # `compose up` makes a default network, if only on paper, and wants the plugins for it.
        folders += [f"--cni-path={cache_directory()}/debian/cni/usr/lib/cni"]
        return self.sandboxed_command(
            "nerdctl", "--address", self.address, "--namespace", namespace, "--cgroup-manager=cgroupfs", *folders, *args
        )

    def sandboxed_command(self, *command: str) -> list[str]:
        """The command line that runs a program where this containerd runs (see guard.py)."""
        if self._sandbox is None:
            raise RuntimeError("containerd was never started")
        files = {"mount": "mnt"}
        entered = [f"--{kind}=/proc/{self._sandbox.pid}/ns/{files.get(kind, kind)}" for kind in self.UNSHARE_FLAGS]
        return ["nsenter", *entered, "--", *command]

    def host_path(self, path: str) -> str:
        """Where the tests find what is at `path` in there."""
        return f"/proc/{self._sandbox.pid}/root{path}" if self._sandbox else path

    def spawn(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        """Start a program that goes on, where this containerd runs; it is killed by close() at the latest."""
        with log.open("ab") as file:
            # A session of its own: Ctrl-C at a terminal ends the tests alone, which then end it in their order.
            return subprocess.Popen(
                self.sandboxed_command(*command),
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,
            )

    def popen(self, command: list[str]) -> subprocess.Popen[str]:
        """Start a command line made by one of the methods above and read along: both outputs are pipes."""
        return subprocess.Popen(
            command, env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    def import_image(self, namespace: str = "default") -> None:
        """Bring the busybox image (and with it the namespace) into being."""
        sandbox.keep_cgroups(namespace, self.directory.name)
        archive = self.directory / "busybox.tar"
        if not archive.exists():
            archive.write_bytes(image.oci_archive(busybox_path()))
        self.ctr("images", "import", str(archive), namespace=namespace)

    def run(self, id_: str, *command: str, namespace: str = "default", labels: Mapping[str, str] | None = None) -> None:
        """Run a container of the busybox image in the background, as `ctr run --detach` does."""
        options = [f"--label={key}={value}" for key, value in (labels or {}).items()]
        self.ctr("run", "--detach", "--null-io", *options, image.NAME, id_, *command, namespace=namespace)

    def tasks(self, namespace: str = "default") -> dict[str, str]:
        """Containerd's own word on each task of a namespace: its status by the container's id."""
        lines = self.ctr("tasks", "ls", namespace=namespace).stdout.splitlines()[1:]
        return {container: status for container, _, status in (line.split() for line in lines)}

    def shim_pids(self, namespace: str | None = None, container: str | None = None) -> list[int]:
        """The living shims of this containerd, or those of one namespace or container."""
        wanted = ["-address", self.address]
        wanted += ["-namespace", namespace] if namespace is not None else []
        wanted += ["-id", container] if container is not None else []
        return pids_with_arguments(*wanted)

    def _start_sandbox(self) -> subprocess.Popen[str]:
        (self.directory / "tmp").mkdir(parents=True, exist_ok=True)
        isolated = ["unshare", "--propagation", "slave", *(f"--{kind}" for kind in self.UNSHARE_FLAGS)]
        started = subprocess.Popen(
            [*isolated, sys.executable, sandbox.__file__, str(self.directory), *self.PRIVATE_PATHS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        if started.stdout is None or started.stdout.readline() != sandbox.READY:
            started.communicate(timeout=30)
            raise RuntimeError("cannot make a mount namespace of our own: root is needed for that")
        return started

    def _write_config(self) -> str:
        return _CONFIG_TEMPLATE.format(folder=self.directory)

    def _signal_and_wait(self, signal_number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(signal_number)
        process.send_signal(signal.SIGCONT)  # it may be suspended
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(20)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def busybox_path() -> Path:
    """The static busybox of the testbed."""
    return Path(shutil.which("busybox", path=search_path("busybox")) or "busybox")
