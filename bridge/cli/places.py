"""The well-known sockets of containerd, and checks of a socket before any call to it."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
from pathlib import Path
from typing import NamedTuple

from bridge.cli.failure import FAILED
from bridge.cli.findings import Finding

SOCKETS = {
    "/run/containerd/containerd.sock": "containerd of most distributions, and Bottlerocket's",
    "/run/k3s/containerd/containerd.sock": "containerd of k3s and rke2",
    "/var/snap/microk8s/common/run/containerd.sock": "containerd of microk8s",
    "/run/k0s/containerd.sock": "containerd of k0s",
    "/run/host-containerd/containerd.sock": "containerd of Bottlerocket's host containers",
}
_ROOT_EQUAL = "access to it is equivalent to root (SECURITY.md)"


class Looked(NamedTuple):
    """The results for a path; ``identity`` (device, inode) is set if the socket can be checked further."""

    findings: list[Finding]
    identity: tuple[int, int] | None = None


def look(path: str, *, named: bool, root: Path = Path("/")) -> Looked:
    """Check whether a path is a socket that accepts connections from this process.

    Args:
        path: The path of the socket.
        required: Whether a missing socket is an error.
        root: The directory that contains ``/sys`` and ``/proc``.
    """
    owner = f" ({SOCKETS[path]})" if path in SOCKETS else ""
    try:
        file_stat = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if named:
            hint = "start containerd, or mount the directory of its socket"
            return Looked([Finding("error", path, "not found", hint, FAILED)])
        return Looked([Finding("not_found", path, f"not found{owner}")])
    except OSError as error:
        return Looked([Finding("error", path, f"cannot be read: {error.strerror}", "run as root", FAILED)])
    if not stat.S_ISSOCK(file_stat.st_mode):
        text = "not a socket" + (", but a directory" if stat.S_ISDIR(file_stat.st_mode) else "")
        return Looked([Finding("error", path, text, "use the path of containerd's socket", FAILED)])
    if _denied(path):
        return Looked([_refusal(path, file_stat, root)])
    results = [Finding("ok", path, f"socket{owner}, {_mode(file_stat)}, accessible")]
    if file_stat.st_mode & stat.S_IWOTH:
        results.append(Finding("warning", path, f"world-writable; {_ROOT_EQUAL}", "run chmod o-rwx"))
    return Looked(results, (file_stat.st_dev, file_stat.st_ino))


def _denied(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(path)
        except PermissionError:
            return True
        except OSError:  # the next call reports the error
            return False
    return False


def _refusal(path: str, found: os.stat_result, root: Path) -> Finding:
    """Return the reason for a denied connection: the socket's mode, or a security module if the mode allows access."""
    me = f"running as {_user(os.geteuid())}"
    if not _mode_lets_in(found):
        hint = f"run as {_user(found.st_uid)}"
        if found.st_mode & stat.S_IWGRP:
            hint += f", or with group {_group(found.st_gid)} ({found.st_gid})"
        return Finding("error", path, f"permission denied: {_mode(found)}, {me}", f"{hint}; {_ROOT_EQUAL}", FAILED)
    text = f"permission denied, although its mode ({_mode(found)}) allows access"
    return Finding("error", path, f"{text}; {_confinement(root)}", status=FAILED)


def _mode_lets_in(found: os.stat_result) -> bool:
    if found.st_uid == os.geteuid():
        return bool(found.st_mode & stat.S_IWUSR)
    if found.st_gid in {os.getegid(), *os.getgroups()}:
        return bool(found.st_mode & stat.S_IWGRP)
    return bool(found.st_mode & stat.S_IWOTH)


def _confinement(root: Path) -> str:
    """Describe the security module that confines this process, as far as the kernel reports it."""
    label = _read(root / "proc/self/attr/current")
    if _read(root / "sys/fs/selinux/enforce") == "1":
        return f"SELinux is enforcing and the process runs as {label}: `ausearch -m avc -ts recent` shows the denial"
    if label.endswith("(enforce)"):
        return f"AppArmor profile {label.removesuffix('(enforce)').strip()} is enforced: allow it to open the socket"
    return "a parent directory or a security module denies access"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:  # the kernel lacks this module
        return ""


def _mode(found: os.stat_result) -> str:
    return f"{stat.S_IMODE(found.st_mode):04o} {_user(found.st_uid)}:{_group(found.st_gid)}"


def _user(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return str(number)


def _group(number: int) -> str:
    try:
        return grp.getgrgid(number).gr_name
    except KeyError:
        return str(number)
