"""Holds a mount namespace with a /run/containerd of its own, and cleans up once its standard input ends.

Shims, runc and fifos live in /run/containerd, wherever containerd's own folders are. In a namespace of its own an
instance neither meets another one nor the machine's own containerd there, and its processes can be told by it. The end
of standard input comes also when the tests are killed, so this script is the one way of cleaning up:

    unshare --mount --propagation slave python3 guard.py FOLDER [PLACE...]

Other places that have to be its own can be named.
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
"""What it writes once programs can be started inside."""

LINKS_FILE = "links"
"""The file in the folder that names, a line each, the network interfaces to be removed."""

_PRIVATE_PATHS = (Path("/run/containerd"), Path("/run/docker"))
_CGROUPS = Path("/sys/fs/cgroup")


def main(directory: Path, *private_paths: Path) -> None:
    """Guard until standard input ends, then remove every trace of what ran here."""
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    for place in (*_PRIVATE_PATHS, *private_paths):
        place.mkdir(exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "whalebridge", place], check=True)
    sys.stdout.write(READY)
    sys.stdout.flush()
    sys.stdin.read()
    _wait_until(lambda: not _kill(_namespace_processes()), "kill what ran here")
    # Docker keeps runc's state where it was told to; all others use runc's default.
    roots = [_PRIVATE_PATHS[0] / "runc", *directory.glob("*/exec/runtime-runc")]
    for state in [state for root in roots for state in root.glob("*/*/state.json")]:
        _kill_container([Path(path) for path in json.loads(state.read_text())["cgroup_paths"].values()])
    for namespace in {namespace.name for root in roots for namespace in root.glob("*")}:
        _remove_namespace(namespace)
    _remove_cgroups(directory.name)
    if (directory / LINKS_FILE).exists():
        for link in (directory / LINKS_FILE).read_text().split():
            subprocess.run(["ip", "link", "delete", link], check=False, stderr=subprocess.DEVNULL)  # it may be gone
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    if ours := [mount for mount in mounts if mount.startswith(f"{directory}/")]:
        subprocess.run(["umount", "--lazy", *reversed(ours)], check=True)
    shutil.rmtree(directory)


def _namespace_processes() -> Iterator[int]:
    """The other processes of this namespace: containerd, shims, clients (a container's own are in further ones)."""
    ours = os.readlink("/proc/self/ns/mnt")
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):  # it ended while we looked, or is a zombie
                if os.readlink(entry / "ns/mnt") == ours:
                    yield int(entry.name)


def _kill_container(cgroups: list[Path]) -> None:
    """End what runs in a container, all of which is in its cgroups, without runc: that would call nerdctl's hooks."""

    def processes() -> Iterator[int]:
        for cgroup in cgroups:
            with contextlib.suppress(FileNotFoundError):
                # A frozen process of cgroup v1 dies only when it is thawed; v2 has no such file and needs none.
                if (cgroup / "freezer.state").exists():
                    (cgroup / "freezer.state").write_text("THAWED")
                yield from map(int, (cgroup / "cgroup.procs").read_text().split())

    def removed(cgroup: Path) -> bool:
        with contextlib.suppress(OSError):  # busy: the kernel takes a moment after the last process
            cgroup.rmdir()
        return not cgroup.exists()

    _wait_until(lambda: not _kill(processes()), "kill a container")
    for cgroup in cgroups:
        _wait_until(partial(removed, cgroup), f"remove {cgroup}")


def keep_cgroups(namespace: str, name: str) -> None:
    """Have a cgroup in those of a containerd namespace: another guard that finds them empty would remove them, also
    while runc is about to make a container's in there. Ours removes it, by its name.
    """
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines() if " - cgroup" in line]
    for kept in [Path(mount, namespace, name) for mount in mounts]:
        while not kept.exists():
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                kept.mkdir(parents=True)


def _remove_namespace(namespace: str) -> None:
    """Remove the cgroups of a containerd namespace, unless another containerd has something in there."""
    for path in [_CGROUPS / namespace, *_CGROUPS.glob(f"*/{namespace}")]:
        with contextlib.suppress(OSError):
            path.rmdir()


def _remove_cgroups(name: str) -> None:
    """Remove the cgroups that are called like the folder: what a kubelet has made in them, and those that were kept."""
    # Unlike Path.glob, os.walk does not mind what other guards remove meanwhile.
    for top in [Path(folder) for folder, _, _ in os.walk(_CGROUPS) if Path(folder).name == name]:
        for path, _, _ in os.walk(top, topdown=False):
            Path(path).rmdir()
        with contextlib.suppress(OSError):
            top.parent.rmdir()  # the namespace's, where nobody else has something in there


def _kill(processes: Iterator[int]) -> bool:
    """SIGKILL them; whether there were any."""
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
