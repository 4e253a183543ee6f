"""What is told of a socket before anything is said to it."""

from __future__ import annotations

import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.cli import places
from bridge.cli.findings import Finding
from bridge.cli.mounts import file_system
from bridge.cli.places import SOCKETS, look
from tests.golden import Golden


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
    assert told(missing)[:2] == ("error", missing)
    assert told(f"{missing}/c.sock").verdict == "error"
    assert told(missing, named=False)[:2] == ("not_found", missing)
    assert usual == "/run/containerd/containerd.sock"


def test_what_is_no_socket(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path, tmp_path / "file"):
        assert told(str(path))[:2] == ("error", str(path))


def test_a_socket_that_may_be_opened(listening: str, golden: Golden) -> None:
    looked = look(listening, named=False)
    (finding,) = looked.findings
    assert finding.verdict == "ok"
    assert "0660 " in finding.found
    golden.entry(
        "results", "a socket", finding.line(colors=False), SOCKET=listening, OWNER=re.compile("(?<=0660 )[^,]*")
    )
    assert looked.identity is not None
    os.chmod(listening, 0o666)  # noqa: S103 (that is what is warned of)
    findings = look(listening, named=False).findings
    assert [each.verdict for each in findings] == ["ok", "warning"]
    golden.entry("findings", "a socket for everyone", findings[1].line(colors=False), SOCKET=listening)


def test_a_socket_that_is_not_listened_at_is_worth_a_closer_look(tmp_path: Path) -> None:
    path = str(tmp_path / "dead.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
    assert look(path, named=False).identity is not None


@pytest.fixture
def user_1000(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as user and group 1000, and know no names of users."""
    for name in ("geteuid", "getegid"):
        monkeypatch.setattr(os, name, lambda: 1000)
    monkeypatch.setattr(os, "getgroups", list)
    for name in ("_user", "_group"):
        monkeypatch.setattr(places, name, str)


def found(mode: int, user: int, group: int) -> os.stat_result:
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
def test_who_is_refused_although_the_mode_lets_him_in(
    label: str | None, enforcing: str | None, named: str, tmp_path: Path, golden: Golden
) -> None:
    for path, content in (("proc/self/attr/current", label), ("sys/fs/selinux/enforce", enforcing)):
        if content is not None:
            (tmp_path / path).parent.mkdir(parents=True)
            (tmp_path / path).write_text(content)
    finding = places._refusal("/c.sock", found(0o660, os.geteuid(), os.getegid()), tmp_path)
    assert (finding.verdict, finding.status) == ("error", 1)
    assert named in finding.found
    text = finding.line(colors=False)
    golden.entry("results", f"denied although the mode allows it, {named or 'unknown'}", text)


@pytest.mark.usefixtures("user_1000")
def test_who_is_refused_because_of_the_mode(tmp_path: Path, golden: Golden) -> None:
    finding = places._refusal("/c.sock", found(0o660, 54321, 54322), tmp_path)
    assert "0660 54321:54322" in finding.found
    assert "54321" in (finding.todo or "")
    assert "54322 (54322)" in (finding.todo or "")
    golden.entry("results", "denied by the mode", finding.line(colors=False))
    finding = places._refusal("/c.sock", found(0o600, 54321, 54322), tmp_path)
    assert "54321" in (finding.todo or "")
    assert "54322" not in (finding.todo or "")


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
