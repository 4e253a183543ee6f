"""What is in a record: labels by the rules, pods, OOM kills, kinds, foreign events; Docker's containers on request."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import grpc
import jsonschema
import pytest

from bridge.containerd.protos.events_pb2 import PublishRequest
from bridge.containerd.rpc import PUBLISH
from bridge.core.events import json_schema
from bridge.core.tracker import GRACE
from tests.bridge_process import BridgeProcess, Document, check_stream, of_newcomers, transitions
from tests.testbed.containerd import Containerd
from tests.testbed.dockerd import Docker
from tests.testbed.image import NAME as IMAGE

POD = {
    "io.kubernetes.pod.name": "shop-7d4b9",
    "io.kubernetes.pod.namespace": "sales",
    "io.kubernetes.pod.uid": "0e8f3b52-1d8f-4a38-a0b5-4b6f6e9d7c11",
}


# On cgroup v1 nothing orders the event of a process killed for memory and that process's exit.
OUT_OF_MEMORY = ("sh", "-c", "tail /dev/zero; status=$?; sleep 1; exit $status")


def unique(engine: Containerd, stem: str) -> str:
    return f"{stem}-{os.getpid()}-{engine.version.replace('.', '')}"


def told_of(records: list[Document], id_: str) -> list[Document]:
    return [each for each in transitions(records) if each["container"]["id"] == id_]


def test_every_record_fits_the_schema(engine: Containerd, tmp_path: Path) -> None:
    id_ = unique(engine, "schema")
    with BridgeProcess(engine.address, tmp_path) as bridge:
        bridge.wait_live()
        engine.ctr("run", "--rm", "--null-io", IMAGE, id_, "true")
        records = bridge.wait(lambda records: len(told_of(records, id_)) == 2, "start and exit")
    validator = jsonschema.Draft202012Validator(json_schema())
    for record in records:
        validator.validate(record)
    started = told_of(records, id_)[0]
    assert started["host"] == "node-1"
    assert started["engine"]["pid"] == engine.pid
    assert started["engine"]["api"] == engine.address
    assert started["engine"]["version"].startswith(engine.version)
    assert started["container"]["runtime"] == "io.containerd.runc.v2"


def test_labels_pass_the_rules_only(engine: Containerd, tmp_path: Path) -> None:
    id_ = unique(engine, "labels")
    hostile = {"tier": "front", "db-password": "canary-1", "API_TOKEN": "canary-2", "esc": "\x1b[31mr\ned", "ü": "日本"}
    with BridgeProcess(engine.address, tmp_path) as bridge:
        bridge.wait_live()
        engine.run(id_, "sleep", "86400", labels=hostile)
        run = ("run", "-d", "--pull=never", "--net=host", f"--name={id_}-n", "busybox:latest", "true")
        named = engine.nerdctl(*run).stdout.strip()
        records = bridge.wait(
            lambda records: told_of(records, id_) and len(told_of(records, named)) == 2, "both starts and an exit"
        )
        text = bridge.out.read_text() + bridge.log.read_text()
    labels = told_of(records, id_)[0]["container"]["labels"]
    assert labels == {
        "tier": "front",
        "db-password": "[redacted]",
        "API_TOKEN": "[redacted]",
        "esc": "\x1b[31mr\ned",
        "ü": "日本",
    }
    assert "canary" not in text
    assert told_of(records, named)[0]["container"]["labels"] == {"nerdctl/name": f"{id_}-n"}


def test_a_container_killed_for_memory_says_so(engine: Containerd, tmp_path: Path) -> None:
    id_ = unique(engine, "oom")
    with BridgeProcess(engine.address, tmp_path) as bridge:
        bridge.wait_live()
        limit = ("--memory-limit", str(16 * 1024 * 1024))
        # Detached: a client that removes the task the moment it ends makes containerd 2.4 lose the exit event.
        engine.ctr("run", "--detach", "--null-io", *limit, IMAGE, id_, *OUT_OF_MEMORY)
        records = bridge.wait(lambda records: len(told_of(records, id_)) == 2, "start and exit")
    assert told_of(records, id_)[1]["exit"]["status"] == 137
    assert told_of(records, id_)[1]["exit"]["oom"] is True


def test_pods_are_told_from_labels_and_sandboxes_on_request(engine: Containerd, tmp_path: Path) -> None:
    sandbox, container = unique(engine, "sandbox"), unique(engine, "app")
    engine.import_image("k8s.io")
    (tmp_path / "all").mkdir()
    with (
        BridgeProcess(engine.address, tmp_path) as bridge,
        BridgeProcess(
            engine.address, tmp_path / "all", environment={"WHALEBRIDGE_CONTAINERS__KINDS": "container,sandbox"}
        ) as all_,
    ):
        bridge.wait_live()
        all_.wait_live()
        kind = "io.cri-containerd.kind"
        pod_labels = {"app": "shop", "api-token": "canary"}
        engine.run(sandbox, "sleep", "86400", namespace="k8s.io", labels={kind: "sandbox", **POD, **pod_labels})
        app = {kind: "container", **POD, "io.kubernetes.container.name": "web"}
        engine.run(container, "sleep", "86400", namespace="k8s.io", labels=app)
        records = bridge.wait(lambda records: told_of(records, container), "the container's start")
        everything = all_.wait(
            lambda records: told_of(records, container) and told_of(records, sandbox), "the starts of both"
        )
    assert told_of(records, container)[0]["container"]["pod"] == {
        "name": "shop-7d4b9",
        "namespace": "sales",
        "uid": POD["io.kubernetes.pod.uid"],
        "container": "web",
        "labels": {"app": "shop", "api-token": "[redacted]"},
    }
    assert told_of(records, container)[0]["id"] == f"k8s.io/{container}"
    assert told_of(records, sandbox) == []
    assert told_of(everything, sandbox)[0]["container"]["kind"] == "sandbox"


def test_foreign_events_and_another_bridge_do_no_harm(engine: Containerd, tmp_path: Path) -> None:
    """Unknown topics and payloads that are none, and another bridge's marks: counted, told at a bounded rate."""
    id_ = unique(engine, "foreign")
    (tmp_path / "other").mkdir()
    with BridgeProcess(engine.address, tmp_path) as bridge, BridgeProcess(engine.address, tmp_path / "other") as other:
        bridge.wait_live()
        other.wait_live()
        publish(engine, "/tasks/dances", b"")
        for _ in range(50):
            publish(engine, "/tasks/exit", b"\xff\xff\xff garbage")
        engine.ctr("run", "--rm", "--null-io", IMAGE, id_, "true")
        records = bridge.wait(lambda records: len(told_of(records, id_)) == 2, "start and exit")
        other.wait(lambda records: len(told_of(records, id_)) == 2, "start and exit")
        bridge.wait_said("event_topic_unknown")
        bridge.wait_said("event_decode_failed")
        log = bridge.log.read_text()
    check_stream(records)
    assert log.count("event_topic_unknown") == 1
    assert 1 <= log.count("event_decode_failed") <= 2


def test_a_namespace_that_comes_and_goes(engine: Containerd, tmp_path: Path) -> None:
    with BridgeProcess(engine.address, tmp_path, "--namespace", "come.*", "--exclude-namespace", "*.not") as bridge:
        bridge.wait_live()
        for namespace in ("come.go", "come.not"):
            engine.import_image(namespace)
            engine.ctr("run", "--rm", "--null-io", IMAGE, unique(engine, "guest"), "true", namespace=namespace)
        engine.ctr("images", "rm", IMAGE, namespace="come.go")
        records = bridge.wait(lambda records: len(transitions(records)) == 2, "start and exit")
    assert {each["id"] for each in transitions(records)} == {f"come.go/{unique(engine, 'guest')}"}


@pytest.mark.parametrize("watched", [False, True])
def test_dockers_containers_are_told_on_request_only(
    engine: Containerd, docker: Docker, tmp_path: Path, watched: bool
) -> None:
    flags = ("--namespace", "moby", "--namespace", "default") if watched else ()
    marker = unique(engine, f"marker-{watched}".lower())
    with BridgeProcess(engine.address, tmp_path, *flags) as bridge:
        bridge.wait_live()
        id_ = docker.docker("run", "-d", "--network", "none", "busybox:latest", "true").stdout.strip()
        docker.docker("wait", id_)
        engine.ctr("run", "--rm", "--null-io", IMAGE, marker, "true")
        wanted = (id_, marker) if watched else (marker,)
        records = bridge.wait(lambda records: all(len(told_of(records, each)) == 2 for each in wanted), "the exits")
    assert {each["container"]["id"] for each in of_newcomers(records)} == set(wanted)
    if watched:
        assert told_of(records, id_)[0]["id"] == f"moby/{id_}"


def publish(engine: Containerd, topic: str, value: bytes) -> None:
    """Publish an event as a foreign program would."""
    event = {"type_url": "containerd.events.TaskExit", "value": value}
    request = PublishRequest(topic=topic, event=event)
    with grpc.insecure_channel(
        f"unix://{engine.address}", options=[("grpc.default_authority", "localhost")]
    ) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PUBLISH.path)
        call(request.SerializeToString(), metadata=(("containerd-namespace", "default"),), timeout=10)


def test_a_container_that_outlives_its_record_is_not_dead(engine: Containerd, tmp_path: Path) -> None:
    """Only clients refuse to delete the record of a container that runs; containerd itself does not mind."""
    id_ = unique(engine, "outlives")
    with BridgeProcess(engine.address, tmp_path) as bridge:
        bridge.wait_live()
        engine.run(id_, "sleep", "86400")
        bridge.wait(lambda records: told_of(records, id_), "its start")
        pid = told_of(bridge.records(), id_)[0]["container"]["pid"]
        delete_record(engine, id_)
        time.sleep(GRACE / 1e9 + 1)  # nothing is to happen: there is nothing to wait for
        assert engine.tasks()[id_] == "RUNNING"
        assert [each["type"] for each in told_of(bridge.records(), id_)] == ["started"]
        os.kill(pid, signal.SIGKILL)
        records = bridge.wait(lambda records: len(told_of(records, id_)) == 2, "its exit")
    assert told_of(records, id_)[1]["exit"]["status"] == 137


def delete_record(engine: Containerd, id_: str) -> None:
    request = b"\x0a" + bytes([len(id_)]) + id_.encode()  # DeleteContainerRequest{id}
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix://{engine.address}", options=options) as channel:
        path = "/containerd.services.containers.v1.Containers/Delete"
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        call(request, metadata=(("containerd-namespace", "default"),), timeout=10)
