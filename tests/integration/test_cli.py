"""The one-shot commands, and invalid input, on real containerd."""

from __future__ import annotations

import json
import re
import socket
from pathlib import Path
from typing import Any

from tests.bridge_process import BridgeProcess
from tests.eventually import eventually
from tests.integration.commands import ENVIRONMENT, HOSTILE, WHALEBRIDGE, ContainerFactory, assert_one_line, whalebridge
from tests.integration.engines import one_engine
from tests.integration.terminal import Terminal

# --- list ---


def list_containers(container_factory: ContainerFactory, *flags: str) -> dict[str, dict[str, Any]]:
    done = whalebridge("list", "--json", "--containerd", container_factory.address, *flags)
    assert (done.returncode, done.stderr) == (0, "")
    return {each["id"]: each for each in json.loads(done.stdout)}


@one_engine
def test_list_prints_plain_table_when_stdout_is_not_a_terminal(container_factory: ContainerFactory) -> None:
    labels = {
        "nerdctl/name": "web-" + "x" * 200,
        "com.docker.compose.project": "shop",
        "com.docker.compose.service": "web",
    }
    first, second = container_factory.run(labels=labels), container_factory.run("shop")
    container_factory.engine.ctr("tasks", "pause", second, namespace="shop")
    done = whalebridge("list", "--containerd", container_factory.address)
    assert (done.returncode, done.stderr) == (0, "")
    header, *lines = done.stdout.splitlines()
    assert header.split() == ["ID", "NAME", "PROJECT", "SERVICE", "STATUS", "PID", "IMAGE", "CREATED"]
    by_id = {cells[0]: cells for cells in (re.split(r" {2,}", line) for line in lines)}
    assert by_id[first][1:5] == ["web-" + "x" * 200, "shop", "web", "running"]
    assert by_id[first][6] == "docker.io/library/busybox:latest"
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", by_id[first][7])
    assert by_id[f"shop/{second}"][1:5] == [second, "-", "-", "paused"]


def test_list_json_matches_containerd_state(container_factory: ContainerFactory) -> None:
    running, paused = container_factory.run("shop", labels={"color": "größe 容器"}), container_factory.run()
    container_factory.engine.ctr("tasks", "pause", paused)
    stopped = container_factory.run()
    container_factory.engine.ctr("tasks", "kill", "--signal", "SIGKILL", stopped)
    eventually(lambda: container_factory.engine.tasks().get(stopped) == "STOPPED")
    pids = {
        line.split()[0]: int(line.split()[1])
        for line in container_factory.engine.ctr("tasks", "ls").stdout.splitlines()[1:]
    }

    listed = list_containers(container_factory)
    assert stopped not in listed
    assert listed[f"shop/{running}"]["status"] == "running"
    assert listed[f"shop/{running}"]["container"]["labels"]["color"] == "größe 容器"
    assert listed[paused]["status"] == "paused"
    assert listed[paused]["container"]["paused"] is True
    assert listed[paused]["container"]["pid"] == pids[paused]


@one_engine
def test_list_honors_namespace_options(container_factory: ContainerFactory) -> None:
    in_default, in_shop, in_docker = (
        container_factory.run(),
        container_factory.run("shop"),
        container_factory.run("moby"),
    )
    assert {in_default, f"shop/{in_shop}"} <= set(list_containers(container_factory))
    assert f"moby/{in_docker}" not in list_containers(container_factory)
    assert {
        each["container"]["namespace"] for each in list_containers(container_factory, "--namespace", "sh*").values()
    } == {"shop"}
    assert f"moby/{in_docker}" in list_containers(container_factory, "--namespace", "moby")
    assert in_default not in list_containers(container_factory, "--exclude-namespace", "def*")


@one_engine
def test_fault_36_hostile_names_on_terminal(container_factory: ContainerFactory) -> None:
    id_ = container_factory.run(labels={"nerdctl/name": HOSTILE, "evil": HOSTILE})
    table = on_terminal("list", "--containerd", container_factory.address)
    plain = re.sub(r"\x1b\[\d*m", "", table)  # the table's colors
    assert id_ in plain
    for page in (plain, on_terminal("inspect", id_, "--containerd", container_factory.address)):
        assert all(line.isprintable() for line in page.split("\r\n"))
    done = whalebridge("inspect", HOSTILE[:-1], "--containerd", container_factory.address)
    assert done.returncode == 1
    assert done.stderr.rstrip("\n").isprintable()


def on_terminal(*arguments: str) -> str:
    with Terminal([*WHALEBRIDGE, *arguments], ENVIRONMENT, columns=200) as terminal:
        assert terminal.wait_exit() == 0
        return terminal.text


# --- inspect ---


def test_inspect_prints_container_object_of_snapshot_record(
    container_factory: ContainerFactory, tmp_path: Path
) -> None:
    id_ = container_factory.run(
        "shop", prefix="longer", labels={"nerdctl/name": "inspected", "com.docker.compose.project": "p"}
    )
    with BridgeProcess(container_factory.address, tmp_path) as bridge:
        published = {each["id"]: each["container"] for each in bridge.wait_synced() if each["type"] == "present"}
    for name in (f"shop/{id_}", id_, "inspected", "longer", "shop/longer"):
        done = whalebridge("inspect", name, "--containerd", container_factory.address)
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout) == published[f"shop/{id_}"]


@one_engine
def test_inspect_finds_docker_container_only_by_namespaced_id(container_factory: ContainerFactory) -> None:
    id_ = container_factory.run("moby")
    assert whalebridge("inspect", f"moby/{id_}", "--containerd", container_factory.address).returncode == 0
    assert whalebridge("inspect", id_, "--containerd", container_factory.address).returncode == 1


@one_engine
def test_inspect_lists_candidates_when_name_is_ambiguous(container_factory: ContainerFactory) -> None:
    first, second = container_factory.run(prefix="twin"), container_factory.run("shop", prefix="twin")
    done = whalebridge("inspect", "twin", "--containerd", container_factory.address)
    assert_one_line(done, 1, "'twin'", first, f"shop/{second}")


# --- sockets ---


def test_list_suggests_sudo_when_socket_permission_is_denied(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        path.chmod(0)
        unprivileged = ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")  # root without file permissions
        done = whalebridge("list", "--containerd", str(path), prefix=unprivileged)
    assert_one_line(done, 3, str(path), "sudo")
