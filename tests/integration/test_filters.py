"""Filters, extras and heartbeats of the real program on real containerd, and settings that are read anew at SIGHUP."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bridge import app
from config.settings import load
from tests.bridge_process import BridgeProcess, Document, check_lives, check_stream
from tests.integration.test_records import OUT_OF_MEMORY, unique
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE

ADDITIONAL_EVENTS = {"WHALEBRIDGE_CONTAINERS__ADDITIONAL_EVENTS": "created,deleted,oom,renamed"}


def about(records: list[Document], id_: str) -> list[Document]:
    return [each for each in records if each["container"] and each["container"]["id"] == id_]


def types(records: list[Document], id_: str) -> list[str]:
    return [each["type"] for each in about(records, id_)]


def test_the_way_of_a_record_is_told_to_who_asks_for_it(engine: Containerd, tmp_path: Path) -> None:
    name = unique(engine, "extras")
    with BridgeProcess(engine.address, tmp_path, environment=ADDITIONAL_EVENTS) as bridge:
        bridge.wait_live()
        run = ("run", "-d", "--pull=never", "--net=host", f"--name={name}", "busybox:latest", "sleep", "86400")
        id_ = engine.nerdctl(*run).stdout.strip()
        bridge.wait(lambda records: "started" in types(records, id_), "start")
        engine.nerdctl("rename", name, f"{name}-new")
        bridge.wait(lambda records: "renamed" in types(records, id_), "new name")
        engine.nerdctl("rm", "-f", id_)
        records = bridge.wait(lambda records: "deleted" in types(records, id_), "deletion")
    told = about(records, id_)
    assert [(each["type"], each["origin"]) for each in told if each["type"] != "exited"] == [
        ("created", "live"),
        ("started", "live"),
        ("renamed", "live"),
        ("deleted", "live"),
    ]
    created, started, renamed = told[:3]
    assert (created["container"]["pid"], created["container"]["incarnation"]) == (0, "")
    assert renamed["container"]["incarnation"] == started["container"]["incarnation"]
    assert [each["container"]["name"] for each in (created, renamed, told[-1])] == [name, f"{name}-new", f"{name}-new"]


def test_what_became_of_records_while_nobody_listened_is_inferred(engine: Containerd, tmp_path: Path) -> None:
    gone, new, stays = (unique(engine, stem) for stem in ("gone", "new", "stays"))
    bridge = BridgeProcess(engine.address, tmp_path, state_dir=tmp_path / "state", environment=ADDITIONAL_EVENTS)
    with bridge:
        bridge.wait_live()
        for id_ in (gone, stays):
            engine.ctr("container", "create", IMAGE, id_, "true")
        bridge.wait(lambda records: types(records, gone) == types(records, stays) == ["created"], "creations")
    engine.ctr("container", "rm", gone)
    engine.ctr("container", "create", IMAGE, new, "true")
    with bridge:
        records = bridge.wait_live(2)
    engine.ctr("container", "rm", new)
    engine.ctr("container", "rm", stays)
    assert [(each["type"], each["origin"]) for each in about(records, gone)][1:] == [("deleted", "inferred")]
    assert [(each["type"], each["origin"]) for each in about(records, new)] == [("created", "inferred")]
    assert types(records, stays) == ["created"]


def test_an_oom_is_told_before_the_exit(engine: Containerd, tmp_path: Path) -> None:
    id_ = unique(engine, "oom-extra")
    with BridgeProcess(engine.address, tmp_path, environment=ADDITIONAL_EVENTS) as bridge:
        bridge.wait_live()
        limit = ("--memory-limit", str(16 * 1024 * 1024))
        engine.ctr("run", "--detach", "--null-io", *limit, IMAGE, id_, *OUT_OF_MEMORY)
        records = bridge.wait(lambda records: "exited" in types(records, id_), "exit")
    started, *ooms, exited = about(records, id_)[1:]
    assert {each["type"] for each in ooms} == {"oom"}
    assert {each["container"]["incarnation"] for each in (started, *ooms, exited)} == {
        started["container"]["incarnation"]
    }


def test_a_label_that_is_not_published_may_be_what_a_container_is_chosen_by(engine: Containerd, tmp_path: Path) -> None:
    chosen, other = unique(engine, "chosen"), unique(engine, "other")
    environment = {"WHALEBRIDGE_CONTAINERS__LABELS__INCLUDE": "tier=fr*", "WHALEBRIDGE_LABELS__EXCLUDE": "tier"}
    with BridgeProcess(engine.address, tmp_path, environment=environment) as bridge:
        bridge.wait_live()
        engine.run(other, "sleep", "86400", labels={"tier": "back"})
        engine.run(chosen, "sleep", "86400", labels={"tier": "front"})
        records = bridge.wait(lambda records: types(records, chosen), "start")
    assert types(records, other) == []
    assert "tier" not in about(records, chosen)[0]["container"]["labels"]
    check_stream(records)


@pytest.mark.parametrize("fresh_engine", ["2.4"], indirect=True)  # its version has no part in it
def test_heartbeats_tell_what_is_proven_and_stand_still_while_containerd_hangs(
    fresh_engine: Callable[[], Containerd], tmp_path: Path
) -> None:
    engine = fresh_engine()
    environment = {
        "WHALEBRIDGE_SINKS__STDOUT__TYPE": "stdout",
        "WHALEBRIDGE_SINKS__STDOUT__HEARTBEATS": "true",
        "WHALEBRIDGE_HEARTBEAT__INTERVAL": "1s",
    }

    def beats(records: list[Document]) -> list[Document]:
        return [each for each in records if each["type"] == "heartbeat"]

    with BridgeProcess(engine.address, tmp_path, environment=environment) as bridge:
        bridge.wait_live()
        records = bridge.wait(lambda records: len({each["timestamp"] for each in beats(records)}) > 1, "proofs")
        assert {each["sequence"] for each in beats(records)} == {2}, "those of the snapshot"
        engine.suspend()
        count = len(beats(bridge.wait(lambda records: beats(records)[2:], "heartbeats")))
        records = bridge.wait(lambda records: len(beats(records)) > count + 14, "heartbeats", 60)
        engine.resume()
    assert len({each["timestamp"] for each in beats(records)[-5:]}) == 1


class Program:
    """The bridge in this process, whose settings a test may change."""

    def __init__(self, path: Path, **flags: Any) -> None:
        self.path = path
        # The default port is one, and another test needs it taken.
        self.flags: dict[str, Any] = {"sinks": {"file": f"file:{path}"}, "http": {"listen": ""}, **flags}

    def run(self) -> asyncio.Task[None]:
        return asyncio.create_task(app.run(load(self.flags), lambda: load(self.flags)))

    def records(self) -> list[Document]:
        """What is in the file: whole lines, and one that was written again, once."""
        lines = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        return [msgspec.json.decode(each) for each in dict.fromkeys(lines)]

    async def wait(self, fits: Callable[[list[Document]], object]) -> list[Document]:
        async with asyncio.timeout(30):
            while not fits(self.records()):  # noqa: ASYNC110 (a file has nothing to wait for)
                await asyncio.sleep(0.02)
        return self.records()


def snapshots(records: list[Document]) -> list[Document]:
    return [each["snapshot"] for each in records if each["type"] == "snapshot_completed"]


async def test_sighup_has_other_filters_and_sinks_settings_take_effect(engine: Containerd, tmp_path: Path) -> None:
    leaves, stays, enters = (unique(engine, stem) for stem in ("leaves", "stays", "enters"))
    for id_ in (leaves, stays, enters):
        engine.run(id_, "sleep", "86400")
    program = Program(
        tmp_path / "records.jsonl",
        containerd={"address": engine.address},
        containers={"names": {"include": [leaves, stays]}},
    )
    running = program.run()
    await program.wait(snapshots)
    program.flags |= {"containers": {"names": {"include": [enters, stays]}}, "heartbeat": {"interval": "1s"}}
    program.flags["sinks"] = {"file": {"type": "file", "path": str(program.path), "heartbeats": True}}
    os.kill(os.getpid(), signal.SIGHUP)
    await program.wait(lambda records: len(snapshots(records)) > 1)
    engine.ctr("task", "kill", "-s", "SIGKILL", leaves)
    engine.ctr("task", "kill", "-s", "SIGKILL", enters)
    await program.wait(lambda records: "exited" in types(records, enters))
    await program.wait(lambda records: any(each["type"] == "heartbeat" for each in records))
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    records = program.records()
    assert [(each["reason"], each["containers"]) for each in snapshots(records)] == [
        ("start", 2),
        ("filters_changed", 2),
    ]
    assert types(records, leaves) == ["present"]
    assert types(records, stays) == ["present"] * 2
    assert types(records, enters) == ["present", "exited"]
    check_stream([each for each in records if each["type"] != "heartbeat"])


def test_sighup_has_the_file_of_settings_read_anew(engine: Containerd, tmp_path: Path) -> None:
    leaves, stays = unique(engine, "file-leaves"), unique(engine, "file-stays")
    for id_ in (leaves, stays):
        engine.run(id_, "sleep", "86400")
    file = tmp_path / "whalebridge.yaml"
    file.write_text(f"containers: {{names: {{include: ['{leaves}', '{stays}']}}}}\n")
    with BridgeProcess(engine.address, tmp_path, "--config", str(file)) as bridge:
        bridge.wait_live()
        file.write_text("containers: {nmes: 5}\nlog: {level: loud}\n")
        bridge.process.send_signal(signal.SIGHUP)
        bridge.wait_said("settings_reload_failed", 2)
        file.write_text(f"containers: {{names: {{include: ['{stays}']}}}}\nhost: other\n")
        bridge.process.send_signal(signal.SIGHUP)
        records = bridge.wait_live(2)
        (reloaded,) = bridge.wait_said("settings_reloaded")
    assert reloaded["changed"] == ["containers.names.include"]
    assert types(records, leaves) == ["present"]
    assert types(records, stays) == ["present"] * 2
    assert {each["host"] for each in records} == {"node-1"}
    check_lives(records)


async def test_where_a_sink_writes_to_after_sighup_a_snapshot_follows(engine: Containerd, tmp_path: Path) -> None:
    id_ = unique(engine, "elsewhere")
    engine.run(id_, "sleep", "86400")
    flags = {"containerd": {"address": engine.address}, "containers": {"names": {"include": [id_]}}}
    program = Program(tmp_path / "records.jsonl", **flags)
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
    told = [each["type"] for each in program.records() if each["type"] != "heartbeat"]
    assert told[-3:] == ["snapshot_started", "present", "snapshot_completed"]


async def test_sighup_with_mistakes_changes_nothing(
    engine: Containerd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = Program(tmp_path / "records.jsonl", containerd={"address": engine.address})
    running = program.run()
    await program.wait(snapshots)
    program.flags["log"] = {"level": "loud"}
    os.kill(os.getpid(), signal.SIGHUP)
    said = ""
    async with asyncio.timeout(30):
        while "settings_reload_failed" not in said:
            await asyncio.sleep(0.02)
            said += capsys.readouterr().out
    assert "log.level" in said
    os.kill(os.getpid(), signal.SIGTERM)
    await running
    assert len(snapshots(program.records())) == 1
