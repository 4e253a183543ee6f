"""A Debian 12 machine: systemd as process 1 on a copy of a minimal Debian, with the network of this machine.

It has its own processes, mounts, cgroups (version 2, without controllers) and host name. The files that it changes are
in a directory (an overlay). It ends with the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.eventually import eventually
from tests.testbed.components import cache_directory
from tests.testbed.process import Closing, run

COMPONENTS = ("debian-12",)
"""Components that must be installed."""

_NAMESPACES = ("mount", "pid", "uts", "ipc", "cgroup")
_ENVIRONMENT = {
    "HOME": "/root",
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}

# What a container needs: https://systemd.io/CONTAINER_INTERFACE. Kernel settings are those of this machine, so they are
# read-only, and systemd changes none of them. The old root must go, or processes could leave the machine.
_BOOT = """\
set -e
mount --make-rprivate /
mkdir upper work merged
mount -t overlay overlay -o lowerdir={debian},upperdir=upper,workdir=work merged
cd merged
mount -t proc proc proc
mount --bind proc/sys proc/sys; mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
mkdir dev/pts dev/shm
mount -t devpts -o newinstance,ptmxmode=0666 devpts dev/pts
ln -s pts/ptmx dev/ptmx; ln -s /proc/self/fd dev/fd
mount -t tmpfs -o mode=755 tmpfs run; mount -t tmpfs tmpfs tmp
mkdir -p run/old run/containerd etc/ssl/certs
touch run/containerd/containerd.sock; mount --bind {containerd} run/containerd/containerd.sock
for file in /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt; do if [ -e $file ]; then cp $file .$file; fi; done
echo machine > etc/hostname; hostname machine
pivot_root . run/old; umount --lazy /run/old; rmdir /run/old
exec env -i container=whalebridge PATH=$PATH /usr/lib/systemd/systemd --system --unit=multi-user.target
"""


class DebianMachine(Closing):
    """A machine that runs within the context; `/run/containerd/containerd.sock` is the socket of a given containerd."""

    def __init__(self, containerd: str) -> None:
        self._directory = Path(tempfile.mkdtemp(prefix="whalebridge-machine-", dir="/tmp"))
        (hierarchy,) = [
            Path(fields[4])
            for fields in map(str.split, Path("/proc/self/mountinfo").read_text().splitlines())
            if fields[fields.index("-") + 1] == "cgroup2"
        ][:1]
        self._cgroup = hierarchy / self._directory.name
        self._containerd = containerd
        self._unshare: subprocess.Popen[bytes] | None = None
        self._pid = 0

    def start(self) -> None:
        """Start the machine, and wait until its system manager has started all units."""
        debian = cache_directory() / "debian" / COMPONENTS[0]
        boot = _BOOT.format(debian=debian, containerd=self._containerd)
        self._cgroup.mkdir()
        script = f'echo $$ > {self._cgroup}/cgroup.procs; exec "$@"'
        command = ["unshare", *(f"--{name}" for name in _NAMESPACES), "--fork", "--kill-child", "sh", "-c", boot]
        with (self._directory / "log").open("wb") as log:
            self._unshare = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", "sh", "-c", script, "sh", *command],
                cwd=self._directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                env=os.environ | _ENVIRONMENT,
            )  # fmt: skip
        eventually(self._has_started, f"systemd to start ({self._directory}/log)", within=120)

    def close(self) -> None:
        """Kill all processes of the machine, and remove its files."""
        if self._unshare is not None:
            self._unshare.kill()
            self._unshare.wait(30)
        eventually(self._removes_cgroups, f"the processes in {self._cgroup} to end", within=60)
        shutil.rmtree(self._directory)

    @property
    def root(self) -> Path:
        """The root directory of the machine, for reading: absolute symbolic links lead out of it."""
        return Path(f"/proc/{self._pid}/root")

    def run(
        self, script: str, *, env: Mapping[str, str] | None = None, timeout: float = 60, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Run a shell script as root in /root; with `check`, a failure raises CommandError with its output."""
        namespaces = [f"--{name}" for name in _NAMESPACES]
        command = ["nsenter", f"--target={self._pid}", *namespaces, "--root", "sh", "-ec", f"cd; {script}"]
        command[-3:-3] = ["env", "-i", *(f"{name}={value}" for name, value in {**_ENVIRONMENT, **(env or {})}.items())]
        return run(command, timeout=timeout, check=check)

    def _has_started(self) -> bool:
        if self._unshare is None or self._unshare.poll() is not None:
            raise RuntimeError((self._directory / "log").read_text())
        children = Path(f"/proc/{self._unshare.pid}/task/{self._unshare.pid}/children").read_text().split()
        if not children or Path(f"/proc/{children[0]}/comm").read_text() != "systemd\n":
            return False
        self._pid = int(children[0])
        return self.run("systemctl is-system-running", check=False).stdout.strip() in ("running", "degraded")

    def _removes_cgroups(self) -> bool:
        for path, _, _ in os.walk(self._cgroup, topdown=False):
            with contextlib.suppress(OSError):  # its processes have not ended yet
                Path(path).rmdir()
        return not self._cgroup.exists()
