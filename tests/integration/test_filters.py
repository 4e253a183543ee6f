"""Filters, additional events, heartbeats, and the settings reload on SIGHUP, with the real program and containerd."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge import app
from config.settings import load
from tests.bridge_process import BridgeProcess, RecordDict, check_runs, check_stream, transitions
from tests.integration.commands import ContainerFactory
from tests.integration.engines import one_engine, one_engine_factory
from tests.integration.test_records import MEMORY_LIMIT, OUT_OF_MEMORY, unique_id
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE

ADDITIONAL_EVENTS = {"WHALEBRIDGE_CONTAINERS__ADDITIONAL_EVENTS": "created,deleted,oom,renamed"}


def records_about(records: list[RecordDict], id_: str) -> list[RecordDict]:
    return [each for each in records if each["container"] and each["container"]["id"] == id_]


def types_about(records: list[RecordDict], id_: str) -> list[str]:
    return [each["type"] for each in records_about(records, id_)]


def test_additional_events_are_published_on_request(engine: Containerd, tmp_path: Path) -> None:
    name = unique_id(engine, "additional")
    with BridgeProcess(engine.address, tmp_path, environment=ADDITIONAL_EVENTS) as bridge:
        bridge.wait_synced()
        run = ("run", "-d", "--pull=never", "--net=host", f"--name={name}", "busybox:latest", "sleep", "86400")
        id_ = engine.nerdctl(*run).stdout.strip()
        bridge.wait(lambda records: "started" in types_about(records, id_), "start")
        engine.nerdctl("rename", name, f"{name}-new")
        bridge.wait(lambda records: "renamed" in types_about(records, id_), "new name")
        engine.nerdctl("rm", "-f", id_)
        records = bridge.wait(lambda records: "deleted" in types_about(records, id_), "deletion")
    published = records_about(records, id_)
    assert [(each["type"], each["origin"]) for each in published if each["type"] != "exited"] == [
        ("created", "live"),
        ("started", "live"),
        ("renamed", "live"),
        ("deleted", "live"),
    ]
    created, started, renamed = published[:3]
    assert (created["container"]["pid"], created["container"]["incarnation"]) == (0, "")
    assert renamed["container"]["incarnation"] == started["container"]["incarnation"]
    assert [each["container"]["name"] for each in (created, renamed, published[-1])] == [
        name,
        f"{name}-new",
        f"{name}-new",
    ]


def test_additional_events_are_inferred_after_bridge_was_down(engine: Containerd, tmp_path: Path) -> None:
    removed, new, stays = (unique_id(engine, stem) for stem in ("removed", "new", "stays"))
    bridge = BridgeProcess(engine.address, tmp_path, state_dir=tmp_path / "state", environment=ADDITIONAL_EVENTS)
    with bridge:
        bridge.wait_synced()
        for id_ in (removed, stays):
            engine.ctr("container", "create", IMAGE, id_, "true")
        bridge.wait(
            lambda records: types_about(records, removed) == types_about(records, stays) == ["created"], "creations"
        )
    engine.ctr("container", "rm", removed)
    engine.ctr("container", "create", IMAGE, new, "true")
    with bridge:
        records = bridge.wait_synced(2)
    engine.ctr("container", "rm", new)
    engine.ctr("container", "rm", stays)
    assert [(each["type"], each["origin"]) for each in records_about(records, removed)][1:] == [("deleted", "inferred")]
    assert [(each["type"], each["origin"]) for each in records_about(records, new)] == [("created", "inferred")]
    assert types_about(records, stays) == ["created"]


def test_oom_event_precedes_exit(engine: Containerd, tmp_path: Path) -> None:
    id_ = unique_id(engine, "oom-event")
    with BridgeProcess(engine.address, tmp_path, environment=ADDITIONAL_EVENTS) as bridge:
        bridge.wait_synced()
        engine.ctr("run", "--detach", "--null-io", *MEMORY_LIMIT, IMAGE, id_, *OUT_OF_MEMORY)
        records = bridge.wait(lambda records: "exited" in types_about(records, id_), "exit")
    started, *ooms, exited = records_about(records, id_)[1:]
    assert {each["type"] for each in ooms} == {"oom"}
    assert {each["container"]["incarnation"] for each in (started, *ooms, exited)} == {
        started["container"]["incarnation"]
    }


@one_engine
def test_filter_matches_unpublished_label(engine: Containerd, tmp_path: Path) -> None:
    selected, other = unique_id(engine, "selected"), unique_id(engine, "other")
    environment = {"WHALEBRIDGE_CONTAINERS__LABELS__INCLUDE": "tier=fr*", "WHALEBRIDGE_LABELS__EXCLUDE": "tier"}
    with BridgeProcess(engine.address, tmp_path, environment=environment) as bridge:
        bridge.wait_synced()
        engine.run(other, "sleep", "86400", labels={"tier": "back"})
        engine.run(selected, "sleep", "86400", labels={"tier": "front"})
        records = bridge.wait(lambda records: types_about(records, selected), "start")
    assert types_about(records, other) == []
    assert "tier" not in records_about(records, selected)[0]["container"]["labels"]
    check_stream(records)


@one_engine_factory
def test_heartbeat_timestamp_stalls_when_containerd_hangs(
    engine_factory: Callable[[], Containerd], tmp_path: Path
) -> None:
    engine = engine_factory()
    environment = {
        "WHALEBRIDGE_SINKS__STDOUT__TYPE": "stdout",
        "WHALEBRIDGE_SINKS__STDOUT__HEARTBEATS": "true",
        "WHALEBRIDGE_HEARTBEAT__INTERVAL": "1s",
    }

    def heartbeats(records: list[RecordDict]) -> list[RecordDict]:
        return [each for each in records if each["type"] == "heartbeat"]

    with BridgeProcess(engine.address, tmp_path, environment=environment) as bridge:
        bridge.wait_synced()
        records = bridge.wait(
            lambda records: len({each["timestamp"] for each in heartbeats(records)}) > 1, "advancing heartbeats"
        )
        assert {each["sequence"] for each in heartbeats(records)} == {2}, "the position of the snapshot"
        engine.suspend()
        count = len(heartbeats(bridge.wait(lambda records: heartbeats(records)[2:], "heartbeats")))
        records = bridge.wait(lambda records: len(heartbeats(records)) > count + 14, "heartbeats", 60)
        engine.resume()
    assert len({each["timestamp"] for each in heartbeats(records)[-5:]}) == 1


class BridgeProgram:
    """The bridge in this process; tests can change its settings."""

    def __init__(self, path: Path, **flags: Any) -> None:
        self.path = path
        # Another test needs the default port.
        self.flags: dict[str, Any] = {"sinks": {"file": f"file:{path}"}, "http": {"listen": ""}, **flags}

    def run(self) -> asyncio.Task[None]:
        return asyncio.create_task(app.run(load(self.flags), lambda: load(self.flags)))

    def records(self) -> list[RecordDict]:
        """Return the records in the file: complete lines, without duplicates."""
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        return [msgspec.json.decode(each) for each in dict.fromkeys(lines)]

    async def wait(self, predicate: Callable[[list[RecordDict]], object]) -> list[RecordDict]:
        async with asyncio.timeout(30):
            while not predicate(self.records()):  # noqa: ASYNC110 (there is no event for a file)
                await asyncio.sleep(0.02)
        return self.records()


def snapshots(records: list[RecordDict]) -> list[RecordDict]:
    return [each["snapshot"] for each in records if each["type"] == "snapshot_completed"]


@one_engine
async def test_sighup_applies_new_filters_and_sink_settings(engine: Containerd, tmp_path: Path) -> None:
    excluded, kept, added = (unique_id(engine, stem) for stem in ("excluded", "kept", "added"))
    for id_ in (excluded, kept, added):
        engine.run(id_, "sleep", "86400")
    program = BridgeProgram(
        tmp_path / "records.jsonl",
        containerd={"address": engine.address},
        containers={"names": {"include": [excluded, kept]}},
    )
    running = program.run()
    await program.wait(snapshots)
    program.flags |= {"containers": {"names": {"include": [added, kept]}}, "heartbeat": {"interval": "1s"}}
    program.flags["sinks"] = {"file": {"type": "file", "path": str(program.path), "heartbeats": True}}
    os.kill(os.getpid(), signal.SIGHUP)
    await program.wait(lambda records: len(snapshots(records)) > 1)
    engine.ctr("task", "kill", "-s", "SIGKILL", excluded)
    engine.ctr("task", "kill", "-s", "SIGKILL", added)
    await program.wait(lambda records: "exited" in types_about(records, added))
    await program.wait(lambda records: any(each["type"] == "heartbeat" for each in records))
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    records = program.records()
    assert [(each["reason"], each["containers"]) for each in snapshots(records)] == [
        ("start", 2),
        ("filters_changed", 2),
    ]
    assert types_about(records, excluded) == ["present"]
    assert types_about(records, kept) == ["present"] * 2
    assert types_about(records, added) == ["present", "exited"]
    check_stream([each for each in records if each["type"] != "heartbeat"])


@one_engine
def test_sighup_reloads_config_file(engine: Containerd, tmp_path: Path) -> None:
    excluded, kept = unique_id(engine, "file-excluded"), unique_id(engine, "file-kept")
    for id_ in (excluded, kept):
        engine.run(id_, "sleep", "86400")
    file = tmp_path / "whalebridge.yaml"
    file.write_text(f"containers: {{names: {{include: ['{excluded}', '{kept}']}}}}\n")
    with BridgeProcess(engine.address, tmp_path, "--config", str(file)) as bridge:
        bridge.wait_synced()
        file.write_text("containers: {nmes: 5}\nlog: {level: loud}\n")
        bridge.process.send_signal(signal.SIGHUP)
        bridge.wait_logged("settings_reload_failed", 2)
        file.write_text(f"containers: {{names: {{include: ['{kept}']}}}}\nhost: other\n")
        bridge.process.send_signal(signal.SIGHUP)
        records = bridge.wait_synced(2)
        (reloaded,) = bridge.wait_logged("settings_reloaded")
    assert reloaded["changed"] == ["containers.names.include"]
    assert types_about(records, excluded) == ["present"]
    assert types_about(records, kept) == ["present"] * 2
    assert {each["host"] for each in records} == {"node-1"}
    check_runs(records)


@one_engine
async def test_sighup_publishes_snapshot_to_changed_sink_path(engine: Containerd, tmp_path: Path) -> None:
    id_ = unique_id(engine, "elsewhere")
    engine.run(id_, "sleep", "86400")
    flags = {"containerd": {"address": engine.address}, "containers": {"names": {"include": [id_]}}}
    program = BridgeProgram(tmp_path / "records.jsonl", **flags)
    program.flags["sinks"] = {"f": {"type": "file", "path": str(program.path)}}
    running = program.run()
    await program.wait(snapshots)
    program.path = tmp_path / "other.jsonl"
    program.flags["sinks"] = {"f": {"type": "file", "path": str(program.path), "heartbeats": True}}
    program.flags["heartbeat"] = {"interval": "1s"}
    os.kill(os.getpid(), signal.SIGHUP)
    await program.wait(lambda records: any(each["reason"] == "on_demand" for each in snapshots(records)))
    await program.wait(lambda records: any(each["type"] == "heartbeat" for each in records))
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    types = [each["type"] for each in program.records() if each["type"] != "heartbeat"]
    assert types[-3:] == ["snapshot_started", "present", "snapshot_completed"]


@one_engine
async def test_sighup_changes_nothing_when_new_settings_are_invalid(
    engine: Containerd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = BridgeProgram(tmp_path / "records.jsonl", containerd={"address": engine.address})
    running = program.run()
    await program.wait(snapshots)
    program.flags["log"] = {"level": "loud"}
    os.kill(os.getpid(), signal.SIGHUP)
    log = ""
    async with asyncio.timeout(30):
        while "settings_reload_failed" not in log:
            await asyncio.sleep(0.02)
            log += capsys.readouterr().out
    assert "log.level" in log
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert len(snapshots(program.records())) == 1


@one_engine
def test_bridge_warns_until_a_namespace_matches(
    engine: Containerd, container_factory: ContainerFactory, tmp_path: Path
) -> None:
    first, second = (unique_id(engine, stem) for stem in ("first", "second"))
    state_dir = tmp_path / "state"
    with BridgeProcess(engine.address, tmp_path, f"--namespace={first},{second}", state_dir=state_dir) as bridge:
        bridge.wait_synced()
        (line,) = bridge.wait_logged("no_namespace_matches")
        assert line["level"] == "warning"
        assert line["existing"]
        assert not {first, second} & {*line["existing"]}
        assert get_control(state_dir, "/readyz")["degraded"]
        ids = {container_factory.run(second), container_factory.run(first)}
        bridge.wait(lambda records: {each["container"]["id"] for each in transitions(records)} == ids, "both starts")
        assert not get_control(state_dir, "/readyz")["degraded"]


def get_control(state_dir: Path, path: str) -> dict[str, Any]:
    """Return a document of the HTTP endpoint on the control socket."""
    command = ["curl", "--silent", "--unix-socket", f"{state_dir}/control.sock", f"http://localhost{path}"]
    document: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)
    return document
