"""What ended in a gap is published from CRI's records, on a real node: crash loops, OOM kills, jobs, init containers.

The runs are compared with what CRI remembers, and the statuses with those that the pods have by their manifests.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest

from bridge.containerd import methods
from bridge.containerd.client import ContainerdClient
from bridge.core.containerd_model import RecordedExit
from bridge.core.label_rules import LabelRules
from tests.bridge_process import BridgeProcess, RecordDict, running_after
from tests.eventually import eventually
from tests.integration.canaries import Canaries, read_files
from tests.integration.delivery import complete_records
from tests.kubernetes.manifests import Manifest, container, pod
from tests.kubernetes.records import pod_of, running_tasks
from tests.proxy_process import ProxyProcess
from tests.scale import scaled
from tests.simulator import wire
from tests.testbed import kubernetes
from tests.testbed.kubernetes import Node

pytestmark = pytest.mark.timeout(3000)

PODS = scaled(reduced=10, full=50)
ROUNDS = scaled(reduced=2, full=10)
KILLS = scaled(reduced=3, full=10)
Ends = dict[str, tuple[int, bool | None]]
# Exit status and OOM kill of each container by name; the names are unique in all kinds of pods.
EXPECTED: Ends = {
    "crashes": (7, None),
    "greedy": (137, True),
    "completes": (0, None),
    "first": (0, None),
    "second": (3, None),
    "killed": (137, None),
}


@pytest.fixture(scope="module")
def plain_node(require_as_root: Callable[..., None]) -> Iterator[Node]:
    """Return a node without the bridge's image."""
    require_as_root(*kubernetes.COMPONENTS)
    with Node() as node:
        yield node


class GapBridge:
    """A bridge beside the node, whose records go to a file."""

    def __init__(self, node: Node, directory: Path, *flags: str) -> None:
        self.node = node
        self.file = directory / "sink.jsonl"
        self.process = BridgeProcess(
            node.host_path(node.address), directory, *flags, sinks=[f"file:{self.file}"], state_dir=directory / "state"
        )

    def records(self) -> list[RecordDict]:
        return complete_records(self.file.read_bytes().split(b"\n")[:-1]) if self.file.exists() else []

    def wait_synced(self, times: int) -> None:
        self.process.wait_logged("synced", times)

    def wait_agrees(self) -> None:
        eventually(
            lambda: set(running_after(self.records())) == running_tasks(self.node),
            "the records to match the running containers", within=90,
        )  # fmt: skip

    def wait_published(self, ids: Sequence[str]) -> None:
        """Wait for the exits of containers: of a task whose start was not seen, the exit event is awaited for 30 s.

        If a busy containerd has lost all events of a run, the next audit finds it.
        """

        def are_published() -> bool:
            ended = {each["container"]["id"] for each in self.records() if each["type"] == "exited"}
            return ended.issuperset(ids)

        eventually(are_published, "the exits of all runs that CRI remembers", within=400)


def pods_of_round(name: str, count: int) -> list[Manifest]:
    """Return pods of all kinds: crash loops, OOM kills, jobs, init containers, a sidecar, and some that stay."""
    kinds: list[Callable[[str], Manifest]] = [
        lambda name: pod(name, container("crashes", "exit 7"), restart="Always", hostNetwork=True),
        lambda name: pod(name, container("greedy", "tail", "/dev/zero", memory="24Mi"), hostNetwork=True),
        lambda name: pod(name, container("completes", "sleep 0.1"), hostNetwork=True),
        lambda name: pod(name, container("second", "exit 3"), initContainers=[container("first", "exit 0")]),
        lambda name: pod(
            name,
            container("completes", "sleep 0.2"),
            initContainers=[{**container("killed", "sleep 1000"), "restartPolicy": "Always"}],
            hostNetwork=True,
        ),
        lambda name: pod(name, container("stays", "sleep 1000"), hostNetwork=True),
    ]
    return [kinds[number % len(kinds)](f"{name}-{number}") for number in range(count)]


def wait_ended(node: Node, name: str) -> None:
    """Wait until the pods of a round have done what their manifests say, and crash loops have begun."""

    def has_ended(item: dict[str, Any]) -> bool:
        status = item["status"]
        names = {each["name"] for each in item["spec"]["containers"]}
        if "stays" in names:
            return bool(status["phase"] == "Running")
        if "crashes" in names:
            return any(each["restartCount"] for each in status.get("containerStatuses", ()))
        return bool(status["phase"] in ("Succeeded", "Failed"))

    def all_ended() -> bool:
        items = [each for each in node.get("pods")["items"] if each["metadata"]["name"].startswith(f"{name}-")]
        return len(items) == PODS and all(map(has_ended, items))

    eventually(all_ended, f"the pods of {name} to end", within=600)


def remembered(node: Node) -> dict[str, RecordedExit]:
    """Return CRI's records of the containers that have exited, by id."""

    async def recorded() -> dict[str, RecordedExit]:
        async with ContainerdClient(node.host_path(node.address), LabelRules.keep_all()) as client:
            exits = [await client.recorded_exit(key, 10) for key in await client.exited_containers(10) or ()]
            return {each.key.id: each for each in exits if each is not None}

    return asyncio.run(recorded())


def check_round(records: list[RecordDict], recorded: dict[str, RecordedExit], name: str) -> int:
    """Check that each container of a round is published once, as its manifest says; return the number.

    If containerd was killed at that moment, CRI may not know the status of a container, or that it was started.
    """
    by_id: dict[str, list[RecordDict]] = defaultdict(list)
    for each in records:
        if each["type"] in ("started", "exited", "present") and each["container"]:
            by_id[each["container"]["id"]].append(each)
    checked = 0
    for id_, record in recorded.items():
        published = by_id[id_]
        if record.started_at is None and not published:
            continue
        if published and not pod_of(published[0])["name"].startswith(f"{name}-"):
            continue
        types = [each["type"] for each in published if each["type"] != "present"]
        assert types == ["started", "exited"], (id_, types, record)
        assert len({each["container"]["incarnation"] for each in published}) == 1
        pod_info, exit_ = pod_of(published[-1]), published[-1]["exit"]
        assert pod_info["labels"]["app"] == pod_info["name"]
        if record.exit_status is None:
            continue
        status, oom = EXPECTED[pod_info["container"]]
        assert (exit_["status"], exit_["at"] is None) == (status, False), (pod_info, exit_, record)
        assert exit_["oom"] is True if oom else exit_["oom"] is not True, (pod_info, exit_, record)
        checked += 1
    return checked


def both(before: dict[str, RecordedExit], after: dict[str, RecordedExit], applied_at: int) -> dict[str, RecordedExit]:
    """Return what was remembered twice, without the containers of earlier rounds and tests."""
    return {
        id_: record
        for id_, record in after.items()
        if id_ in before and (record.started_at is None or record.started_at > applied_at)
    }


def remove(node: Node, name: str) -> None:
    names = [each["metadata"]["name"] for each in node.get("pods")["items"]]
    mine = [each for each in names if each.startswith(f"{name}-")]
    node.kubectl("delete", "pods", *mine, "--wait=true", "--grace-period=1", timeout=400)


@contextmanager
def busy_cores(*, busy: bool) -> Iterator[None]:
    """Keep all cores busy."""
    count = os.cpu_count() or 1 if busy else 0
    loops = [subprocess.Popen(["sh", "-c", "while :; do :; done"]) for _ in range(count)]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


def test_fault_47_pods_end_while_bridge_is_stopped(plain_node: Node, tmp_path: Path) -> None:
    """The bridge is also killed at random moments while it synchronizes; in every other round, the cores are busy."""
    node, bridge = plain_node, GapBridge(plain_node, tmp_path)
    bridge.process.start()
    bridge.wait_synced(1)
    bridge.process.stop()
    counts = []
    for number in range(ROUNDS):
        name = f"stopped{number}"
        applied_at = time.time_ns()
        node.apply(*pods_of_round(name, PODS))
        wait_ended(node, name)
        before = remembered(node)
        with busy_cores(busy=number % 2 == 1):
            for _ in range(random.randint(0, KILLS)):  # noqa: S311 (moments of a fault)
                bridge.process.start()
                time.sleep(random.uniform(0.3, 2.5))  # noqa: S311
                bridge.process.kill()
            synced = len(bridge.process.log_lines("synced"))
            bridge.process.start()
            bridge.wait_synced(synced + 1)
            recorded = both(before, remembered(node), applied_at)
        bridge.wait_agrees()
        counts.append(check_round(bridge.records(), recorded, name))
        print(f"{name}: {counts[-1]} of {len(recorded)} runs that CRI remembers", flush=True)
        bridge.process.stop()
        remove(node, name)
    assert min(counts) >= PODS // 2


def test_fault_47_pods_end_while_containerd_restarts(plain_node: Node, tmp_path: Path) -> None:
    node, bridge = plain_node, GapBridge(plain_node, tmp_path)
    counts = []
    with bridge.process:
        bridge.wait_synced(1)
        for number in range(ROUNDS):
            name = f"restarted{number}"
            applied_at = time.time_ns()
            node.apply(*pods_of_round(name, PODS))
            time.sleep(random.uniform(1, PODS / 2))  # noqa: S311
            with busy_cores(busy=number % 2 == 1):
                node.kill()
                time.sleep(random.uniform(0, 5))  # noqa: S311
                node.start()
                bridge.wait_synced(number + 2)
            wait_ended(node, name)
            before = remembered(node)
            bridge.wait_agrees()
            recorded = both(before, remembered(node), applied_at)
            bridge.wait_published([id_ for id_, each in recorded.items() if each.started_at is not None])
            counts.append(check_round(bridge.records(), recorded, name))
            print(f"{name}: {counts[-1]} of {len(recorded)} runs that CRI remembers", flush=True)
            remove(node, name)
    assert min(counts) >= PODS // 4


def test_annotations_environment_and_log_paths_are_not_read(plain_node: Node, tmp_path: Path) -> None:
    """CRI's responses contain them, but not what passes the proxy, nor anything that the bridge writes."""
    node, canaries = plain_node, Canaries()
    environment = [{"name": "TOKEN", "value": canaries.new("environment")}]
    # kubelet passes the path on as an annotation of the container.
    main = {**container("completes", "sleep 0.2"), "terminationMessagePath": f"/dev/{canaries.new('annotation')}"}
    annotated = pod("canary", {**main, "env": environment}, hostNetwork=True)
    annotated["metadata"]["annotations"] = {"note": canaries.new("pod annotation")}
    canaries.adopt("log path", "/var/log/pods/")
    with ProxyProcess(node.host_path(node.address), tmp_path) as proxy:
        bridge = BridgeProcess(
            proxy.address, tmp_path, "--log-level=debug", sinks=[f"file:{tmp_path}/sink.jsonl"],
            state_dir=tmp_path / "state",
        )  # fmt: skip
        bridge.start()
        bridge.wait_logged("synced")
        bridge.stop()
        node.apply(annotated)
        eventually(
            lambda: node.get("pod", "canary")["status"]["phase"] == "Succeeded", "the end of the pod", within=120
        )
        (status,) = node.get("pod", "canary")["status"]["containerStatuses"]
        id_ = status["state"]["terminated"]["containerID"].removeprefix("containerd://")
        with bridge:
            bridge.wait_logged("synced", 2)
        records = [json.loads(line) for line in (tmp_path / "sink.jsonl").read_bytes().splitlines()]
        ends = [
            each["exit"]["status"] for each in records if each["type"] == "exited" and each["container"]["id"] == id_
        ]
        assert ends == [0]
        requests: dict[str, tuple[methods.Method[Any], bytes]] = {
            "list": (methods.CRI_CONTAINERS, methods.CRI_CONTAINERS_REQUEST.SerializeToString()),
            "status": (methods.CRI_STATUS, wire.field(1, id_)),
            "pods": (methods.CRI_PODS, b""),
            "verbose": (methods.CRI_STATUS, wire.field(1, id_) + b"\x10\x01"),
        }
        direct = {name: call(node.host_path(node.address), *request) for name, request in requests.items()}
        leaks = {leak.partition(" in ")[0] for leak in canaries.find_leaks(direct)}
        assert leaks == {"annotation", "environment", "log path", "pod annotation"}, "the test looks for nothing"
        with pytest.raises(grpc.RpcError, match="INVALID_ARGUMENT"):
            call(proxy.address, *requests.pop("verbose"))
        passed = {name: call(proxy.address, *request) for name, request in requests.items()}
        assert all(id_.encode() in passed[name] for name in ("list", "status"))
        assert wire.field(2, "canary") in passed["pods"]
    assert canaries.find_leaks({**passed, **read_files(tmp_path)}) == []
    node.kubectl("delete", "pod", "canary", "--wait=true", "--grace-period=1")


def call(address: str, method: methods.Method[Any], request: bytes) -> bytes:
    with grpc.insecure_channel(methods.target(address)) as channel:
        multi_callable: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method.path)
        return multi_callable(request, timeout=10)
