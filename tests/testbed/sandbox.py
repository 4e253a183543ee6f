"""Hold a mount namespace with a private /run/containerd, and clean up at the end of standard input.

Shims, runc and fifos use /run/containerd, independent of containerd's directories. In a private namespace, an instance
shares it neither with other instances nor with the machine's containerd, and the namespace identifies its processes.
Standard input also ends if the tests are killed, so only this script cleans up:

    unshare --mount --propagation slave python3 sandbox.py DIRECTORY [PRIVATE_PATH...]

Each PRIVATE_PATH is another directory that is private to the namespace.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

READY = "ready\n"
"""Output of this script when programs can be started in the namespace."""

LINKS_FILE = "links"
"""Name of the file in DIRECTORY that lists the network interfaces to remove, one per line."""

_PRIVATE_PATHS = (Path("/run/containerd"), Path("/run/docker"))
_CGROUPS = Path("/sys/fs/cgroup")


def main(directory: Path, *private_paths: Path) -> None:
    """Wait for the end of standard input, then kill and remove everything that ran in the namespace."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    for path in (*_PRIVATE_PATHS, *private_paths):
        path.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "whalebridge", path], check=True)
        subprocess.run(["mount", "--make-shared", path], check=True)  # as systemd does on a machine
    sys.stdout.write(READY)
    sys.stdout.flush()
    sys.stdin.read()
    _wait_until(lambda: not _kill(_namespace_processes()), "kill the processes of the namespace")
    # Docker passes a directory for its state to runc; all others use runc's default.
    roots = [_PRIVATE_PATHS[0] / "runc", *directory.glob("*/exec/runtime-runc")]
    for state in [state for root in roots for state in root.glob("*/*/state.json")]:
        _kill_container([Path(path) for path in json.loads(state.read_text())["cgroup_paths"].values()])
    for namespace in {namespace.name for root in roots for namespace in root.glob("*")}:
        _remove_namespace(namespace)
    _remove_cgroups(directory.name)
    if (directory / LINKS_FILE).exists():
        for link in (directory / LINKS_FILE).read_text().split():
            subprocess.run(["ip", "link", "delete", link], check=False, stderr=subprocess.DEVNULL)  # it may not exist
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if ours := [mount for mount in mounts if mount.startswith(f"{directory}/")]:
        subprocess.run(["umount", "--lazy", *reversed(ours)], check=True)
    shutil.rmtree(directory)


def _namespace_processes() -> Iterator[int]:
    """Yield the other processes of this namespace: containerd, shims, clients (containers have other namespaces)."""
    ours = os.readlink("/proc/self/ns/mnt")
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it has exited meanwhile, or is a zombie
                if os.readlink(entry / "ns/mnt") == ours:
                    yield int(entry.name)


def _kill_container(cgroups: list[Path]) -> None:
    """Kill the processes in the cgroups of a container, without runc, which would run nerdctl's hooks."""

    def processes() -> Iterator[int]:
        for cgroup in cgroups:
            with contextlib.suppress(FileNotFoundError):
                # With cgroup v1, a frozen process must be thawed to exit; v2 does not have this file.
                if (cgroup / "freezer.state").exists():
                    (cgroup / "freezer.state").write_text("THAWED")
                yield from map(int, (cgroup / "cgroup.procs").read_text().split())

    def removed(cgroup: Path) -> bool:
        with contextlib.suppress(OSError):  # busy for a moment after the last process
            cgroup.rmdir()
        return not cgroup.exists()

    _wait_until(lambda: not _kill(processes()), "kill a container")
    for cgroup in cgroups:
        _wait_until(partial(removed, cgroup), f"remove {cgroup}")


def keep_cgroups(namespace: str, name: str) -> None:
    """Create a cgroup in those of a containerd namespace, to keep these from being removed.

    Otherwise the sandbox of another instance removes them if they are empty, even if runc is about to create the cgroup
    of a container there. The sandbox of this instance removes the created cgroup by its name.
    """
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup" in line]
    for cgroup in [Path(mount, namespace, name) for mount in mounts]:
        while not cgroup.exists():
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                cgroup.mkdir(parents=True)


def _remove_namespace(namespace: str) -> None:
    """Remove the cgroups of a containerd namespace, unless another containerd uses them."""
    for path in [_CGROUPS / namespace, *_CGROUPS.glob(f"*/{namespace}")]:
        with contextlib.suppress(OSError):
            path.rmdir()


def _remove_cgroups(name: str) -> None:
    """Remove the cgroups with the name of the directory, created by a kubelet or by `keep_cgroups`."""
    # Unlike Path.glob, os.walk ignores directories that other sandboxes remove meanwhile.
    for top in [Path(path) for path, _, _ in os.walk(_CGROUPS) if Path(path).name == name]:
        for path, _, _ in os.walk(top, topdown=False):
            Path(path).rmdir()
        with contextlib.suppress(OSError):
            top.parent.rmdir()  # the cgroup of the namespace; fails if another instance uses it


def _kill(processes: Iterator[int]) -> bool:
    """Kill the processes with SIGKILL; return whether there were any."""
    pids = set(processes)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def _wait_until(condition: Callable[[], bool], what: str, timeout: float = 30) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"cannot {what}")
        time.sleep(0.02)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
