"""What is told of a socket before anything is said to it."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.cli import places
from bridge.cli.findings import Finding
from bridge.cli.mounts import file_system
from bridge.cli.places import SOCKETS, look


@pytest.fixture
def listening(tmp_path: Path) -> Iterator[str]:
    path = str(tmp_path / "c.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        os.chmod(path, 0o660)
        listener.listen()
        yield path


def told(path: str, *, named: bool = True, root: Path = Path("/")) -> Finding:
    (finding,) = look(path, named=named, root=root).findings
    return finding


def test_what_is_not_there(tmp_path: Path) -> None:
    usual = next(iter(SOCKETS))
    missing = str(tmp_path / "missing")
    assert told(missing)[:3] == ("error", missing, "not found")
    assert told(f"{missing}/c.sock").verdict == "error"
    assert told(missing, named=False)[:3] == ("not_found", missing, "not found")
    assert SOCKETS[usual].startswith("containerd of most distributions")


def test_what_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert told(str(tmp_path / "file")).found == "not a socket"
    assert told(str(tmp_path)).found == "not a socket, but a directory"


def test_a_socket_that_may_be_opened(listening: str) -> None:
    looked = look(listening, named=False)
    (finding,) = looked.findings
    assert finding.verdict == "ok"
    assert "socket, 0660 " in finding.found
    assert looked.identity is not None
    os.chmod(listening, 0o666)  # noqa: S103 (that is what is warned of)
    assert [each.verdict for each in look(listening, named=False).findings] == ["ok", "warning"]


def test_a_socket_that_is_not_listened_at_is_worth_a_closer_look(tmp_path: Path) -> None:
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
    assert look(path, named=False).identity is not None


def found(mode: int, user: int, group: int) -> os.stat_result:
    return os.stat_result((stat.S_IFSOCK | mode, 1, 1, 1, user, group, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("label", "enforcing", "said"),
    [
        (
            "system_u:system_r:container_t:s0:c1,c2\0",
            "1",
            "SELinux is enforcing and the process runs as system_u:system_r:con",
        ),
        ("docker-default (enforce)\n", None, "AppArmor profile docker-default is enforced: allow it to open"),
        ("unconfined\n", None, "a security module denies access"),
        (None, None, "a security module denies access"),
    ],
)
def test_who_is_refused_although_the_mode_lets_him_in(
    label: str | None, enforcing: str | None, said: str, tmp_path: Path
) -> None:
    for path, content in (("proc/self/attr/current", label), ("sys/fs/selinux/enforce", enforcing)):
        if content is not None:
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).write_text(content)
    finding = places._refusal("/c.sock", found(0o660, os.geteuid(), os.getegid()), tmp_path)
    assert (finding.verdict, finding.status) == ("error", 1)
    assert said in finding.found


def test_who_is_refused_because_of_the_mode(tmp_path: Path) -> None:
    finding = places._refusal("/c.sock", found(0o660, 54321, 54322), tmp_path)
    assert finding.found.startswith("permission denied: 0660 54321:54322, running as ")
    assert finding.todo.startswith("run as 54321, or with group 54322 (54322); access to it is equivalent to root")
    finding = places._refusal("/c.sock", found(0o600, 54321, 54322), tmp_path)
    assert finding.todo.startswith("run as 54321; ")


# --- file systems ---

MOUNTS = r"""
22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw
23 22 0:21 / /var/lib rw - xfs /dev/vdb rw
24 23 0:22 / /var/lib/with\040blank rw - tmpfs tmpfs rw
25 23 0:23 / /var/lib/share rw - ext4 /dev/vdc rw
26 23 0:24 / /var/lib/share rw master:3 - nfs4 server:/share rw
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
    ],
)
def test_the_file_system_of_a_path(path: str, kind: str) -> None:
    assert file_system(MOUNTS, path) == kind


def test_of_nothing_nothing_is_known() -> None:
    assert file_system("", "/") == ""


def test_this_machine_has_one() -> None:
    assert file_system(Path("/proc/self/mountinfo").read_text(), "/proc") == "proc"
