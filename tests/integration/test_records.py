"""Contents of records: labels, pods, OOM kills, kinds; foreign events; Docker's containers if included."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path

import grpc
import jsonschema
import pytest

from bridge.core.records import json_schema
from bridge.core.task_machine import EXIT_GRACE_NS
from bridge.core.time import to_seconds
from tests.bridge_process import BridgeProcess, RecordDict, check_stream, transitions, transitions_of_new_containers
from tests.integration.engines import one_engine
from tests.integration.running import exits, publish_event
from tests.testbed.containerd import Containerd
from tests.testbed.dockerd import Docker
from tests.testbed.image import NAME as IMAGE

POD = {
    "io.kubernetes.pod.name": "shop-7d4b9",
    "io.kubernetes.pod.namespace": "sales",
    "io.kubernetes.pod.uid": "0e8f3b52-1d8f-4a38-a0b5-4b6f6e9d7c11",
}


MEMORY_LIMIT = ("--memory-limit", str(8 * 1024 * 1024))
# containerd before 2.2 notices no OOM kill in the first moments of a container.
CHILD_OUT_OF_MEMORY = ("sh", "-c", "sleep 0.5; tail /dev/zero; exit 3")
OUT_OF_MEMORY = ("sh", "-c", "sleep 0.5; v=aaaaaaaaaaaaaaaa; while true; do v=$v$v; done")


def unique_id(engine: Containerd, prefix: str) -> str:
    return f"{prefix}-{os.getpid()}-{engine.version.replace('.', '')}"


def published_about(records: list[RecordDict], id_: str) -> list[RecordDict]:
    return [each for each in transitions(records) if each["container"]["id"] == id_]


def test_records_match_json_schema(engine: Containerd, tmp_path: Path) -> None:
    id_ = unique_id(engine, "schema")
    with BridgeProcess(engine.address, tmp_path) as bridge:
        bridge.wait_synced()
        engine.ctr("run", "--rm", "--null-io", IMAGE, id_, "true")
        records = bridge.wait(lambda records: len(published_about(records, id_)) == 2, "start and exit")
    validator = jsonschema.Draft202012Validator(json_schema(), format_checker=jsonschema.FormatChecker())
    for record in records:
        validator.validate(record)
    started = published_about(records, id_)[0]
    assert started["host"] == "node-1"
    assert started["engine"]["pid"] == engine.pid
    assert started["engine"]["api"] == engine.address
    assert started["engine"]["version"].startswith(engine.version)
    assert started["container"]["runtime"] == "io.containerd.runc.v2"


@one_engine
def test_record_labels_follow_label_rules(engine: Containerd, tmp_path: Path) -> None:
    id_ = unique_id(engine, "labels")
    hostile = {"tier": "front", "db-password": "canary-1", "API_TOKEN": "canary-2", "esc": "\x1b[31mr\ned", "ü": "日本"}
    with BridgeProcess(engine.address, tmp_path) as bridge:
        bridge.wait_synced()
        engine.run(id_, "sleep", "86400", labels=hostile)
        run = ("run", "-d", "--pull=never", "--net=host", f"--name={id_}-n", "busybox:latest", "true")
        nerdctl_id = engine.nerdctl(*run).stdout.strip()
        records = bridge.wait(
            lambda records: published_about(records, id_) and len(published_about(records, nerdctl_id)) == 2,
            "both starts and an exit",
        )
        text = bridge.out.read_text() + bridge.log.read_text()
    labels = published_about(records, id_)[0]["container"]["labels"]
    assert labels == {
        "tier": "front",
        "db-password": "[redacted]",
        "API_TOKEN": "[redacted]",
        "esc": "\x1b[31mr\ned",
        "ü": "日本",
    }
    assert "canary" not in text
    assert published_about(records, nerdctl_id)[0]["container"]["labels"] == {"nerdctl/name": f"{id_}-n"}


@pytest.mark.parametrize(
    ("command", "status"),
    [pytest.param(OUT_OF_MEMORY, 137, id="initial process"), pytest.param(CHILD_OUT_OF_MEMORY, 3, id="child process")],
)
def test_fault_39_oom_kill_precedes_or_follows_exit(
    command: tuple[str, ...], status: int, engine: Containerd, tmp_path: Path
) -> None:
    """The client removes each container at once, so that containerd 2.4 loses some of the exit events.

    Where a shim watches a cgroup too late, containerd has no OOM event. Then the kill is unknown, or denied if the
    run lasted so long that the shim should have watched. The same applies to an OOM event that arrives too late.
    """
    ids = [unique_id(engine, f"oom-{status}-{number}") for number in range(20)]
    environment = {"WHALEBRIDGE_CONTAINERS__ADDITIONAL_EVENTS": "oom"}
    with BridgeProcess(engine.address, tmp_path, environment=environment) as bridge:
        bridge.wait_synced()
        run = ("run", "--rm", "--null-io", *MEMORY_LIMIT, IMAGE)
        with ThreadPoolExecutor(2) as executor:
            list(executor.map(lambda id_: engine.ctr(*run, id_, *command, check=False), ids))
        records = bridge.wait(lambda records: all(exits(records, id_) for id_ in ids), "exits")
    with_event = set()
    for id_ in ids:
        about = [each for each in records if each["id"] == id_]
        types = [each["type"] for each in about]
        assert (types[0], Counter(types) - Counter(oom=len(types))) == ("started", Counter(started=1, exited=1))
        started, *ooms = about[: types.index("exited")]
        assert {each["container"]["incarnation"] for each in ooms} <= {started["container"]["incarnation"]}
        exit_ = exits(records, id_)[0]["exit"]
        may_be_denied = status != 137 and seconds_between(started["start"]["at"], exit_["at"]) >= 1
        assert exit_["status"] == status
        assert exit_["oom"] is True if ooms else exit_["oom"] is None or (may_be_denied and exit_["oom"] is False)
        if ooms:
            with_event.add(id_)
    assert len(with_event) > len(ids) / 2


def seconds_between(first: str, second: str) -> float:
    return (datetime.fromisoformat(second) - datetime.fromisoformat(first)).total_seconds()


def test_exit_record_denies_oom_kill_only_when_known(engine: Containerd, tmp_path: Path) -> None:
    long, short, killed = (unique_id(engine, f"no-oom-{stem}") for stem in ("long", "short", "killed"))
    with BridgeProcess(engine.address, tmp_path) as bridge:
        bridge.wait_synced()
        engine.run(long, "sh", "-c", "sleep 1.5; exit 3")
        engine.run(short, "true")
        engine.run(killed, "sleep", "86400")
        engine.ctr("tasks", "kill", "--signal=SIGKILL", killed)
        records = bridge.wait(
            lambda records: all(len(published_about(records, id_)) == 2 for id_ in (long, short, killed)), "exits"
        )
    ooms = [published_about(records, id_)[1]["exit"]["oom"] for id_ in (long, short, killed)]
    assert ooms == [False, None, None]


@one_engine
def test_pod_metadata_comes_from_labels_and_sandboxes_are_opt_in(engine: Containerd, tmp_path: Path) -> None:
    sandbox, container = unique_id(engine, "sandbox"), unique_id(engine, "app")
    engine.import_image("k8s.io")
    (tmp_path / "all").mkdir()
    with (
        BridgeProcess(engine.address, tmp_path) as bridge,
        BridgeProcess(
            engine.address, tmp_path / "all", environment={"WHALEBRIDGE_CONTAINERS__KINDS": "container,sandbox"}
        ) as all_bridge,
    ):
        bridge.wait_synced()
        all_bridge.wait_synced()
        kind = "io.cri-containerd.kind"
        pod_labels = {"app": "shop", "api-token": "canary"}
        engine.run(sandbox, "sleep", "86400", namespace="k8s.io", labels={kind: "sandbox", **POD, **pod_labels})
        app = {kind: "container", **POD, "io.kubernetes.container.name": "web"}
        engine.run(container, "sleep", "86400", namespace="k8s.io", labels=app)
        records = bridge.wait(lambda records: published_about(records, container), "the container's start")
        all_kinds = all_bridge.wait(
            lambda records: published_about(records, container) and published_about(records, sandbox),
            "the starts of both",
        )
    assert published_about(records, container)[0]["container"]["pod"] == {
        "name": "shop-7d4b9",
        "namespace": "sales",
        "uid": POD["io.kubernetes.pod.uid"],
        "container": "web",
        "labels": {"app": "shop", "api-token": "[redacted]"},
    }
    assert published_about(records, container)[0]["id"] == f"k8s.io/{container}"
    assert published_about(records, sandbox) == []
    assert published_about(all_kinds, sandbox)[0]["container"]["kind"] == "sandbox"


def test_fault_14_events_are_foreign_or_undecodable(engine: Containerd, tmp_path: Path) -> None:
    """Unknown topics, invalid payloads and markers of another bridge are counted, and logged at a limited rate."""
    id_ = unique_id(engine, "foreign")
    (tmp_path / "other").mkdir()
    with BridgeProcess(engine.address, tmp_path) as bridge, BridgeProcess(engine.address, tmp_path / "other") as other:
        bridge.wait_synced()
        other.wait_synced()
        publish_event(engine, "/tasks/dances", "containerd.events.TaskExit", b"")
        for _ in range(50):
            publish_event(engine, "/tasks/exit", "containerd.events.TaskExit", b"\xff\xff\xff garbage")
        engine.ctr("run", "--rm", "--null-io", IMAGE, id_, "true")
        records = bridge.wait(lambda records: len(published_about(records, id_)) == 2, "start and exit")
        other.wait(lambda records: len(published_about(records, id_)) == 2, "start and exit")
        bridge.wait_logged("event_topic_unknown")
        bridge.wait_logged("event_decode_failed")
        log = bridge.log.read_text()
    check_stream(records)
    assert log.count("event_topic_unknown") == 1
    assert 1 <= log.count("event_decode_failed") <= 2


@one_engine
def test_bridge_watches_namespace_created_while_running(engine: Containerd, tmp_path: Path) -> None:
    with BridgeProcess(engine.address, tmp_path, "--namespace", "new.*", "--exclude-namespace", "*.excluded") as bridge:
        bridge.wait_synced()
        for namespace in ("new.included", "new.excluded"):
            engine.import_image(namespace)
            engine.ctr("run", "--rm", "--null-io", IMAGE, unique_id(engine, "guest"), "true", namespace=namespace)
        engine.ctr("images", "rm", IMAGE, namespace="new.included")
        records = bridge.wait(lambda records: len(transitions(records)) == 2, "start and exit")
    assert {each["id"] for each in transitions(records)} == {f"new.included/{unique_id(engine, 'guest')}"}


@pytest.mark.parametrize("watched", [False, True])
@one_engine
def test_docker_containers_are_published_only_on_request(
    engine: Containerd, docker: Docker, tmp_path: Path, watched: bool
) -> None:
    flags = ("--namespace", "moby", "--namespace", "default") if watched else ()
    marker = unique_id(engine, f"marker-{watched}".lower())
    with BridgeProcess(engine.address, tmp_path, *flags) as bridge:
        bridge.wait_synced()
        id_ = docker.docker("run", "-d", "--network", "none", "busybox:latest", "true").stdout.strip()
        docker.docker("wait", id_)
        engine.ctr("run", "--rm", "--null-io", IMAGE, marker, "true")
        expected = (id_, marker) if watched else (marker,)
        records = bridge.wait(
            lambda records: all(len(published_about(records, each)) == 2 for each in expected), "the exits"
        )
    assert {each["container"]["id"] for each in transitions_of_new_containers(records)} == set(expected)
    if watched:
        assert published_about(records, id_)[0]["id"] == f"moby/{id_}"


def test_exit_is_not_inferred_when_metadata_of_task_is_deleted(engine: Containerd, tmp_path: Path) -> None:
    """Clients do not delete the metadata of a running container; containerd's API allows it."""
    id_ = unique_id(engine, "undeleted")
    with BridgeProcess(engine.address, tmp_path) as bridge:
        bridge.wait_synced()
        engine.run(id_, "sleep", "86400")
        bridge.wait(lambda records: published_about(records, id_), "its start")
        pid = published_about(bridge.records(), id_)[0]["container"]["pid"]
        delete_container(engine, id_)
        time.sleep(to_seconds(EXIT_GRACE_NS) + 1)  # no record is expected, so there is no condition to wait for
        assert engine.tasks()[id_] == "RUNNING"
        assert [each["type"] for each in published_about(bridge.records(), id_)] == ["started"]
        os.kill(pid, signal.SIGKILL)
        records = bridge.wait(lambda records: len(published_about(records, id_)) == 2, "its exit")
    assert published_about(records, id_)[1]["exit"]["status"] == 137


def delete_container(engine: Containerd, id_: str) -> None:
    request = b"\x0a" + bytes([len(id_)]) + id_.encode()  # DeleteContainerRequest{id}
    options = [("grpc.default_authority", "localhost")]
    with grpc.insecure_channel(f"unix://{engine.address}", options=options) as channel:
        path = "/containerd.services.containers.v1.Containers/Delete"
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        call(request, metadata=(("containerd-namespace", "default"),), timeout=10)
