"""The commands that look once, and bad input, on real containerd."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import socket
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from bridge.core.labels import REDACTED
from tests.bridge_process import BridgeProcess
from tests.eventually import eventually
from tests.integration.commands import ENVIRONMENT, HOSTILE, WHALEBRIDGE, Yard, assert_one_line, whalebridge

# --- list ---


def listed(yard: Yard, *flags: str) -> dict[str, dict[str, Any]]:
    done = whalebridge("list", "--json", "--containerd", yard.address, *flags)
    assert (done.returncode, done.stderr) == (0, "")
    return {each["id"]: each for each in json.loads(done.stdout)}


def test_list_is_a_plain_table_where_there_is_no_terminal(yard: Yard) -> None:
    labels = {
        "nerdctl/name": "web-" + "x" * 200,
        "com.docker.compose.project": "shop",
        "com.docker.compose.service": "web",
    }
    first, second = yard.run(labels=labels), yard.run("shop")
    yard.engine.ctr("tasks", "pause", second, namespace="shop")
    done = whalebridge("list", "--containerd", yard.address)
    assert (done.returncode, done.stderr) == (0, "")
    head, *lines = done.stdout.splitlines()
    assert head.split() == ["ID", "NAME", "PROJECT", "SERVICE", "STATUS", "PID", "IMAGE", "CREATED"]
    rows = {cells[0]: cells for cells in (re.split(r" {2,}", line) for line in lines)}
    assert rows[first][1:5] == ["web-" + "x" * 200, "shop", "web", "running"]
    assert rows[first][6] == "docker.io/library/busybox:latest"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", rows[first][7])
    assert rows[f"shop/{second}"][1:5] == [second, "-", "-", "paused"]


def test_list_tells_as_json_what_containerd_tells(yard: Yard) -> None:
    running, paused = yard.run("shop", labels={"color": "größe 容器"}), yard.run()
    yard.engine.ctr("tasks", "pause", paused)
    stopped = yard.run()
    yard.engine.ctr("tasks", "kill", "--signal", "SIGKILL", stopped)
    eventually(lambda: yard.engine.tasks().get(stopped) == "STOPPED")
    pids = {line.split()[0]: int(line.split()[1]) for line in yard.engine.ctr("tasks", "ls").stdout.splitlines()[1:]}

    there = listed(yard)
    assert stopped not in there
    assert there[f"shop/{running}"]["status"] == "running"
    assert there[f"shop/{running}"]["container"]["labels"]["color"] == "größe 容器"
    assert there[paused]["status"] == "paused"
    assert there[paused]["container"]["paused"] is True
    assert there[paused]["container"]["pid"] == pids[paused]


def test_list_asks_the_namespaces_it_is_told_to(yard: Yard) -> None:
    in_default, in_shop, in_docker = yard.run(), yard.run("shop"), yard.run("moby")
    assert {in_default, f"shop/{in_shop}"} <= set(listed(yard))
    assert f"moby/{in_docker}" not in listed(yard)
    assert {each["container"]["namespace"] for each in listed(yard, "--namespace", "sh*").values()} == {"shop"}
    assert f"moby/{in_docker}" in listed(yard, "--namespace", "moby")
    assert in_default not in listed(yard, "--exclude-namespace", "def*")


def test_labels_pass_the_rules(yard: Yard) -> None:
    id_ = yard.run(labels={"nerdctl/name": "web", "nerdctl/mounts": "[]", "db_password": "hunter2"})
    labels = listed(yard)[id_]["container"]["labels"]
    assert labels["db_password"] == REDACTED
    assert "nerdctl/mounts" not in labels
    assert "io.containerd.image.config.stop-signal" not in labels


def test_hostile_names_do_nothing_to_a_terminal(yard: Yard) -> None:
    id_ = yard.run(labels={"nerdctl/name": HOSTILE, "evil": HOSTILE})
    table = on_terminal("list", "--containerd", yard.address)
    plain = re.sub(r"\x1b\[\d*m", "", table)  # our own colours
    assert id_ in plain
    for page in (plain, on_terminal("inspect", id_, "--containerd", yard.address)):
        assert all(line.isprintable() for line in page.split("\r\n"))
    done = whalebridge("inspect", HOSTILE[:-1], "--containerd", yard.address)
    assert done.returncode == 1
    assert done.stderr.rstrip("\n").isprintable()


def on_terminal(*arguments: str) -> str:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, 0x5414, b"\x28\x00\xc8\x00\x00\x00\x00\x00")  # TIOCSWINSZ: 40 lines of 200
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        process = subprocess.Popen([*WHALEBRIDGE, *arguments], stdout=theirs, stderr=subprocess.PIPE, env=ENVIRONMENT)
        os.close(theirs)
        page = b""
        try:
            while data := terminal.read(65536):
                page += data
        except OSError:  # how Linux tells that the other end is closed
            pass
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, b"")
    return page.decode()


# --- inspect ---


def test_inspect_prints_the_object_that_records_call_container(yard: Yard, tmp_path: Path) -> None:
    id_ = yard.run("shop", stem="longer", labels={"nerdctl/name": "inspected", "com.docker.compose.project": "p"})
    with BridgeProcess(yard.address, tmp_path) as bridge:
        rows = {each["id"]: each["container"] for each in bridge.wait_live() if each["type"] == "present"}
    for name in (f"shop/{id_}", id_, "inspected", "longer", "shop/longer"):
        done = whalebridge("inspect", name, "--containerd", yard.address)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == rows[f"shop/{id_}"]


def test_inspect_finds_docker_containers_by_their_namespace_only(yard: Yard) -> None:
    id_ = yard.run("moby")
    assert whalebridge("inspect", f"moby/{id_}", "--containerd", yard.address).returncode == 0
    assert whalebridge("inspect", id_, "--containerd", yard.address).returncode == 1


def test_inspect_says_what_is_ambiguous(yard: Yard) -> None:
    first, second = yard.run(stem="twin"), yard.run("shop", stem="twin")
    done = whalebridge("inspect", "twin", "--containerd", yard.address)
    assert_one_line(done, 1, "'twin'", first, f"shop/{second}")


# --- bad input ---


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (["inspect", "nope"], 1, "'nope'"),
        (["inspect", "nope/nope"], 1, "'nope/nope'"),
        (["list", "--namespace", "nope"], 1, "'nope'"),
        (["inspect"], 2, "NAME_OR_ID"),
        (["list", "--containerd"], 2, "--containerd"),
        (["run", "--sink", "amqp://h/t"], 2, "'amqp'"),
    ],
)
def test_bad_input_is_one_line(yard: Yard, arguments: list[str], status: int, said: str) -> None:
    done = whalebridge(*arguments[:1], *(["--containerd", yard.address] if status == 1 else []), *arguments[1:])
    assert_one_line(done, status, said)


ONCE = [["list"], ["inspect", "x"]]


@pytest.mark.parametrize("command", ONCE)
def test_a_socket_that_is_not_there(command: list[str], tmp_path: Path) -> None:
    path = str(tmp_path / "nothing.sock")
    assert_one_line(whalebridge(*command, "--containerd", path), 3, path, "--containerd PATH")


@pytest.mark.parametrize("command", [*ONCE, ["run", "--log-level", "error"]])
def test_a_file_that_is_no_socket(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.touch()
    assert_one_line(whalebridge(*command, "--containerd", str(path)), 3, str(path))


@pytest.mark.parametrize("command", [*ONCE, ["run", "--log-level", "error"]])
def test_a_socket_without_permission_names_sudo(command: list[str], tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0)
        without = ["setpriv", "--bounding-set", "-dac_override,-dac_read_search"]  # root as others are
        done = whalebridge(*command, "--containerd", str(path), prefix=without)
    assert_one_line(done, 3, str(path), "sudo")


@pytest.mark.parametrize("command", [*ONCE, ["run", "--log-level", "error"]])
@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_a_socket_that_is_no_containerds(command: list[str], answer: bytes, tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        threading.Thread(target=answer_all, args=(server, answer), daemon=True).start()
        done = whalebridge(*command, "--containerd", str(path))
        server.shutdown(socket.SHUT_RDWR)
    assert_one_line(done, 3, str(path))


def answer_all(server: socket.socket, answer: bytes) -> None:
    while True:
        try:
            connection, _ = server.accept()
        except OSError:
            return
        with connection, contextlib.suppress(ConnectionError):  # a client that ends does not wait for it
            connection.recv(1000)
            connection.sendall(answer)
