"""Where containerd's sockets are looked for, and what can be told of one before anything is said to it."""

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
    """What the file system and the kernel say of a path; ``identity`` is there where it is worth a closer look."""

    findings: list[Finding]
    identity: tuple[int, int] | None = None


def look(path: str, *, named: bool, root: Path = Path("/")) -> Looked:
    """Look whether there is a socket that we may connect to.

    Args:
        path: Where.
        named: Whether somebody said that it is there; else it may be missing.
        root: What ``/sys`` and ``/proc`` are in.
    """
    whose = f" ({SOCKETS[path]})" if path in SOCKETS else ""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if named:
            todo = "start containerd, or mount the directory of its socket"
            return Looked([Finding("error", path, "not found", todo, FAILED)])
        return Looked([Finding("not_found", path, f"not found{whose}")])
    except OSError as error:
        return Looked([Finding("error", path, f"cannot be read: {error.strerror}", "run as root", FAILED)])
    if not stat.S_ISSOCK(found.st_mode):
        text = "not a socket" + (", but a directory" if stat.S_ISDIR(found.st_mode) else "")
        return Looked([Finding("error", path, text, "use the path of containerd's socket", FAILED)])
    if _denied(path):
        return Looked([_refusal(path, found, root)])
    findings = [Finding("ok", path, f"socket{whose}, {_mode(found)}, accessible")]
    if found.st_mode & stat.S_IWOTH:
        findings.append(Finding("warning", path, f"world-writable; {_ROOT_EQUAL}", "run chmod o-rwx"))
    return Looked(findings, (found.st_dev, found.st_ino))


def _denied(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        try:
            connection.connect(path)
        except PermissionError:
            return True
        except OSError:  # whoever talks to it will say what is wrong
            return False
    return False


def _refusal(path: str, found: os.stat_result, root: Path) -> Finding:
    """Say what keeps us out: the socket's mode, or, where that lets us in, a security module."""
    me = f"running as {_user(os.geteuid())}"
    if not _mode_lets_in(found):
        ways = f"run as {_user(found.st_uid)}"
        if found.st_mode & stat.S_IWGRP:
            ways += f", or with group {_group(found.st_gid)} ({found.st_gid})"
        return Finding("error", path, f"permission denied: {_mode(found)}, {me}", f"{ways}; {_ROOT_EQUAL}", FAILED)
    text = f"permission denied, although its mode ({_mode(found)}) allows access"
    return Finding("error", path, f"{text}; {_confinement(root)}", status=FAILED)


def _mode_lets_in(found: os.stat_result) -> bool:
    if found.st_uid == os.geteuid():
        return bool(found.st_mode & stat.S_IWUSR)
    if found.st_gid in {os.getegid(), *os.getgroups()}:
        return bool(found.st_mode & stat.S_IWGRP)
    return bool(found.st_mode & stat.S_IWOTH)


def _confinement(root: Path) -> str:
    """Name what confines us, as far as the kernel tells."""
    label = _read(root / "proc/self/attr/current")
    if _read(root / "sys/fs/selinux/enforce") == "1":
        return f"SELinux is enforcing and the process runs as {label}: `ausearch -m avc -ts recent` shows the denial"
    if label.endswith("(enforce)"):
        return f"AppArmor profile {label.removesuffix('(enforce)').strip()} is enforced: allow it to open the socket"
    return "a parent directory or a security module denies access"


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:  # this kernel has no such module
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
