"""Where sockets of containerd are, and checks of a socket before any call to it."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
from pathlib import Path
from typing import NamedTuple

from bridge.cli.check_results import CheckResult
from bridge.cli.errors import FAILED

WELL_KNOWN_SOCKETS = {
    "/run/containerd/containerd.sock": "containerd of most distributions, and Bottlerocket's",
    "/run/k3s/containerd/containerd.sock": "containerd of k3s and rke2",
    "/var/snap/microk8s/common/run/containerd.sock": "containerd of microk8s",
    "/run/k0s/containerd.sock": "containerd of k0s",
    "/run/host-containerd/containerd.sock": "containerd of Bottlerocket's host containers",
}
USER_DIRECTORIES = Path("/run/user")
"""The directories of logged-in users, each named by the user's id and readable for that user only."""

_MAX_PID_LENGTH = 32  # bytes
_ROOT_EQUIVALENT = "access to it is equivalent to root (SECURITY.md)"


class KnownSocket(NamedTuple):
    """Whose socket it is, and how to watch its containerd if the path is not enough."""

    owner: str
    hint: str = ""


def known_sockets() -> dict[str, KnownSocket]:
    """Return the well-known sockets, and those of rootless containerds that this process can see, by path.

    RootlessKit gives containerd a mount namespace of its own, and writes the id of its first process there to the file
    ``child_pid``. nerdctl's ``containerd-rootless.sh`` also makes the socket available outside of that namespace.
    """
    sockets = {path: KnownSocket(owner) for path, owner in WELL_KNOWN_SOCKETS.items()}
    for state in sorted(USER_DIRECTORIES.glob("*/containerd-rootless")):
        uid = state.parent.stat().st_uid
        user = _user_name(uid)
        owner = f"rootless containerd of {user}"
        sockets[f"{state.parent}/containerd/containerd.sock"] = KnownSocket(owner)
        if pid := _read_child_pid(state / "child_pid", uid):
            command = f"nsenter -U --preserve-credentials -m -t $(cat {state}/child_pid) whalebridge run"
            path = f"/proc/{pid}/root/run/containerd/containerd.sock"
            sockets[path] = KnownSocket(owner, f"to watch it, run as {user}: {command}")
    return sockets


def _read_child_pid(path: Path, uid: int) -> int | None:
    """Return the process id in a file that a user has written; None if it is not a process of that user."""
    try:
        # The user may have put anything in its place: a FIFO does not block, and a link is not followed.
        with open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)) as file:
            pid = int(file.read(_MAX_PID_LENGTH))
        return pid if os.stat(f"/proc/{pid}").st_uid == uid else None
    except (OSError, ValueError):  # the containerd is not running, and its socket says so
        return None


class SocketInfo(NamedTuple):
    """The results for a path; ``identity`` (device, inode) is set if the socket can be checked further."""

    results: list[CheckResult]
    identity: tuple[int, int] | None = None


def inspect_socket(
    path: str, *, required: bool, known: KnownSocket | None = None, root: Path = Path("/")
) -> SocketInfo:
    """Check whether a path is a socket that accepts connections from this process.

    Args:
        path: The path of the socket.
        required: Whether a missing socket is an error.
        known: What ``known_sockets`` has for the path.
        root: The directory that contains ``/sys`` and ``/proc``.
    """
    owner = f" ({known.owner})" if known else ""
    try:
        file_stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if required:
            hint = "start containerd, or mount the directory of its socket"
            return SocketInfo([CheckResult("error", path, "not found", hint, FAILED)])
        return SocketInfo([CheckResult("not_found", path, f"not found{owner}")])
    except OSError as error:
        return SocketInfo([CheckResult("error", path, f"cannot be read: {error.strerror}", "run as root", FAILED)])
    if not stat.S_ISSOCK(file_stat.st_mode):
        text = "not a socket" + (", but a directory" if stat.S_ISDIR(file_stat.st_mode) else "")
        return SocketInfo([CheckResult("error", path, text, "use the path of containerd's socket", FAILED)])
    if _is_denied(path):
        return SocketInfo([_permission_denied(path, file_stat, root)])
    results = [
        CheckResult("ok", path, f"socket{owner}, {_format_mode(file_stat)}, accessible", known.hint if known else "")
    ]
    if file_stat.st_mode & stat.S_IWOTH:
        results.append(CheckResult("warning", path, f"world-writable; {_ROOT_EQUIVALENT}", "run chmod o-rwx"))
    return SocketInfo(results, (file_stat.st_dev, file_stat.st_ino))


def _is_denied(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(path)
        except PermissionError:
            return True
        except OSError:  # the next call reports the error
            return False
    return False


def _permission_denied(path: str, file_stat: os.stat_result, root: Path) -> CheckResult:
    """Return the reason for a denied connection: the socket's mode, or a security module if the mode allows access."""
    running_as = f"running as {_user_name(os.geteuid())}"
    if not _mode_allows(file_stat):
        hint = f"run as {_user_name(file_stat.st_uid)}"
        if file_stat.st_mode & stat.S_IWGRP:
            hint += f", or with group {_group_name(file_stat.st_gid)} ({file_stat.st_gid})"
        return CheckResult(
            "error",
            path,
            f"permission denied: {_format_mode(file_stat)}, {running_as}",
            f"{hint}; {_ROOT_EQUIVALENT}",
            FAILED,
        )
    text = f"permission denied, although its mode ({_format_mode(file_stat)}) allows access"
    return CheckResult("error", path, f"{text}; {_describe_confinement(root)}", exit_status=FAILED)


def _mode_allows(file_stat: os.stat_result) -> bool:
    if file_stat.st_uid == os.geteuid():
        return bool(file_stat.st_mode & stat.S_IWUSR)
    if file_stat.st_gid in {os.getegid(), *os.getgroups()}:
        return bool(file_stat.st_mode & stat.S_IWGRP)
    return bool(file_stat.st_mode & stat.S_IWOTH)


def _describe_confinement(root: Path) -> str:
    """Describe the security module that confines this process, as far as the kernel reports it."""
    label = _read_text(root / "proc/self/attr/current")
    if _read_text(root / "sys/fs/selinux/enforce") == "1":
        return f"SELinux is enforcing and the process runs as {label}: `ausearch -m avc -ts recent` shows the denial"
    if label.endswith("(enforce)"):
        return f"AppArmor profile {label.removesuffix('(enforce)').strip()} is enforced: allow it to open the socket"
    return "a parent directory or a security module denies access"


def _read_text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:  # the kernel lacks this module
        return ""


def _format_mode(file_stat: os.stat_result) -> str:
    return f"{stat.S_IMODE(file_stat.st_mode):04o} {_user_name(file_stat.st_uid)}:{_group_name(file_stat.st_gid)}"


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group_name(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
