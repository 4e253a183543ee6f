"""Test the checks of a socket that need no connection."""

from __future__ import annotations

import os
import pwd
import re
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.cli import preflight, socket_checks
from bridge.cli.check_results import CheckResult
from bridge.cli.preflight import file_system_type
from bridge.cli.socket_checks import WELL_KNOWN_SOCKETS, KnownSocket, inspect_socket, known_sockets
from config.settings import Settings
from tests.golden import Golden


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "c.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o660)
        listener.listen()
        yield path


def single_result(path: str, *, required: bool = True, root: Path = Path("/")) -> CheckResult:
    (result,) = inspect_socket(path, required=required, root=root).results
    return result


def test_missing_socket_is_reported(tmp_path: Path) -> None:
    first_socket = next(iter(WELL_KNOWN_SOCKETS))
    missing = str(tmp_path / "missing")
    assert single_result(missing)[:2] == ("error", missing)
    assert single_result(f"{missing}/c.sock").status == "error"
    assert single_result(missing, required=False)[:2] == ("not_found", missing)
    assert first_socket == "/run/containerd/containerd.sock"


def user_directory(parent: Path, child_pid: str) -> Path:
    """Create the directory of a user who runs a rootless containerd."""
    state = parent / "1000" / "containerd-rootless"
    state.mkdir(parents=True)
    (state / "child_pid").write_text(child_pid)
    return state


@pytest.mark.parametrize("child_pid", ["{pid}", "{pid}\n"])
def test_socket_of_rootless_containerd_is_known(
    child_pid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket_checks, "USER_DIRECTORIES", tmp_path)
    monkeypatch.setattr(socket_checks, "WELL_KNOWN_SOCKETS", {})
    state = user_directory(tmp_path, child_pid.format(pid=os.getpid()))
    user = pwd.getpwuid(os.getuid()).pw_name
    outside, inside = known_sockets().items()
    assert outside == (f"{state.parent}/containerd/containerd.sock", KnownSocket(f"rootless containerd of {user}"))
    assert inside[0] == f"/proc/{os.getpid()}/root/run/containerd/containerd.sock"
    assert inside[1].owner == f"rootless containerd of {user}"
    command = f"nsenter -U --preserve-credentials -m -t $(cat {state}/child_pid) whalebridge run"
    assert inside[1].hint == f"to watch it, run as {user}: {command}"


@pytest.mark.parametrize("child_pid", ["", "x", "-1", "4194305", "1\0", "1 1"])
def test_unusable_child_pid_is_ignored(child_pid: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_checks, "USER_DIRECTORIES", tmp_path)
    user_directory(tmp_path, child_pid)
    assert not [path for path in known_sockets() if path.startswith("/proc")]


def test_child_pid_of_another_user_is_ignored(tmp_path: Path) -> None:
    """As when a containerd was killed, and its process id belongs to another program now."""
    file = user_directory(tmp_path, str(os.getpid())) / "child_pid"
    assert socket_checks._read_child_pid(file, os.getuid()) == os.getpid()
    assert socket_checks._read_child_pid(file, os.getuid() + 1) is None


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_child_pid_that_is_no_file_is_ignored(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_checks, "USER_DIRECTORIES", tmp_path)
    file = user_directory(tmp_path, str(os.getpid())) / "child_pid"
    file.rename(tmp_path / "child_pid")
    make: dict[str, Callable[[], None]] = {
        "link": lambda: file.symlink_to(tmp_path / "child_pid"),
        "fifo": lambda: os.mkfifo(file),
        "directory": file.mkdir,
    }
    make[kind]()
    assert not [path for path in known_sockets() if path.startswith("/proc")]


def test_other_file_at_socket_path_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        assert single_result(str(path))[:2] == ("error", str(path))


def test_accessible_socket_is_ok_and_world_writable_is_warning(listening: str, golden: Golden) -> None:
    inspection = inspect_socket(listening, required=False)
    (result,) = inspection.results
    assert result.status == "ok"
    assert "0660 " in result.message
    golden.entry(
        "socket_checks", "accessible socket", result.to_line(colors=False), OWNER=re.compile("(?<=0660 )[^,]*")
    )
    assert inspection.identity is not None
    os.chmod(listening, 0o666)  # noqa: S103 (the check warns about this mode)
    results = inspect_socket(listening, required=False).results
    assert [result.status for result in results] == ["ok", "warning"]
    golden.entry("socket_checks", "world-writable socket", results[1].to_line(colors=False))


def test_socket_without_listener_is_identified(tmp_path: Path) -> None:
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
    assert inspect_socket(path, required=False).identity is not None


@pytest.fixture
def user_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as user and group 1000, without user and group names."""
    for name in ("geteuid", "getegid"):
        monkeypatch.setattr(os, name, lambda: 1000)
    monkeypatch.setattr(os, "getgroups", list)
    for name in ("_user_name", "_group_name"):
        monkeypatch.setattr(socket_checks, name, str)


def socket_stat(mode: int, user: int, group: int) -> os.stat_result:
    return os.stat_result((stat.S_IFSOCK | mode, 1, 1, 1, user, group, 0, 0, 0, 0))


@pytest.mark.usefixtures("user_1000")
@pytest.mark.parametrize(
    ("label", "enforcing", "named"),
    [
        ("system_u:system_r:container_t:s0:c1,c2\0", "1", "system_u:system_r:container_t:s0:c1,c2"),
        ("docker-default (enforce)\n", None, "docker-default"),
        ("unconfined\n", None, ""),
        (None, None, ""),
    ],
)
def test_permission_error_names_selinux_or_apparmor(
    label: str | None, enforcing: str | None, named: str, tmp_path: Path, golden: Golden
) -> None:
    for path, content in (("proc/self/attr/current", label), ("sys/fs/selinux/enforce", enforcing)):
        if content is not None:
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).write_text(content)
    result = socket_checks._permission_denied("/c.sock", socket_stat(0o660, os.geteuid(), os.getegid()), tmp_path)
    assert (result.status, result.exit_status) == ("error", 1)
    assert named in result.message
    text = result.to_line(colors=False)
    golden.entry("socket_checks", f"denied despite socket mode, {named or 'unknown'}", text)


@pytest.mark.usefixtures("user_1000")
def test_permission_error_explains_socket_mode(tmp_path: Path, golden: Golden) -> None:
    result = socket_checks._permission_denied("/c.sock", socket_stat(0o660, 54321, 54322), tmp_path)
    assert "0660 54321:54322" in result.message
    assert "54321" in (result.hint or "")
    assert "54322 (54322)" in (result.hint or "")
    golden.entry("socket_checks", "denied by socket mode", result.to_line(colors=False))
    result = socket_checks._permission_denied("/c.sock", socket_stat(0o600, 54321, 54322), tmp_path)
    assert "54321" in (result.hint or "")
    assert "54322" not in (result.hint or "")


# --- file systems ---

MOUNTS = """
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /var/lib rw - xfs /dev/vdb rw
24 23 0:22 / /var/lib/with\\040blank rw - tmpfs tmpfs rw
25 23 0:23 / /var/lib/share rw - ext4 /dev/vdc rw
26 23 0:24 / /var/lib/share rw master:3 - nfs4 server:/share rw
27 23 0:25 / /var/lib/a\u2028b\u3000c\udcff rw - ramfs ramfs rw
garbage
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/etc", "ext4"),
        ("/var/lib", "xfs"),
        ("/var/library", "ext4"),
        ("/var/lib/with blank/x", "tmpfs"),
        ("/var/lib/share/a/b", "nfs4"),
        ("/var/lib/a\u2028b\u3000c\udcff/d", "ramfs"),
    ],
)
def test_file_system_is_taken_from_longest_mount_point(path: str, kind: str) -> None:
    assert file_system_type(MOUNTS, path) == kind


def test_file_system_is_empty_without_mounts() -> None:
    assert file_system_type("", "/") == ""


def test_file_system_is_detected_on_current_machine() -> None:
    assert file_system_type(preflight._read_mounts(), "/proc") == "proc"


@pytest.mark.parametrize("content", [None, b"27 23 0:25 / /a\xff rw - tmpfs tmpfs rw\n"])
def test_state_dir_is_checked_without_readable_mounts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    """Without /proc, or with a mount point that is not UTF-8."""
    mounts = tmp_path / "mountinfo"
    if content is not None:
        mounts.write_bytes(content)
    monkeypatch.setattr(preflight, "_MOUNTINFO", mounts)
    settings = Settings(state_dir=str(tmp_path / "state"))
    assert preflight._check_state_dir(settings)[0].status == "ok"
