"""Events that are repeated, in the wrong order or misleading, published through containerd as other programs do."""

from __future__ import annotations

import os
import re
import signal
import time
from datetime import datetime
from pathlib import Path

import pytest
from google.protobuf.message import Message

from bridge.containerd.protos.payloads_pb2 import TaskCreate, TaskDelete, TaskExit, TaskStart
from tests.bridge_process import BridgeProcess, RecordDict, check_stream, transitions
from tests.eventually import eventually
from tests.integration.running import init_pid, publish_event
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE

NO_PID = 4_194_304  # above the kernel's limit, so that no real task has these pids


def unique_id(engine: Containerd, prefix: str) -> str:
    return f"{prefix}-{os.getpid()}-{engine.version.replace('.', '')}"


def changes(records: list[RecordDict], id_: str) -> list[tuple[str, int | None]]:
    """Return the transitions of a container, with exit status."""
    return [
        (each["type"], each["exit"] and each["exit"]["status"]) for each in transitions(records) if each["id"] == id_
    ]


def time_of(record: RecordDict) -> int:
    """Return the time of a record in ns."""
    return round(datetime.fromisoformat(record["timestamp"]).timestamp() * 1_000_000) * 1_000


def catches_sigterm(pid: int) -> bool:
    """Return whether a process has a handler for SIGTERM, which an initial process without one ignores."""
    (caught,) = re.findall(r"^SigCgt:\s+(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    return bool(int(caught, 16) & 1 << (signal.SIGTERM - 1))


def publish(engine: Containerd, *events: tuple[Message, int]) -> None:
    """Publish events with the given times, in ns."""
    topics = {TaskCreate: "create", TaskStart: "start", TaskExit: "exit", TaskDelete: "delete"}
    for event, at in events:
        topic, name = f"/tasks/{topics[type(event)]}", event.DESCRIPTOR.full_name
        publish_event(engine, topic, name, event.SerializeToString(), at)


def exit_of(id_: str, pid: int, status: int, at: int, *, process: str = "") -> tuple[TaskExit, int]:
    event = TaskExit(container_id=id_, id=process or id_, pid=pid, exit_status=status)
    event.exited_at.FromNanoseconds(at)
    return event, at


@pytest.mark.parametrize("stopped_task", ["kept", "deleted"])
def test_fault_10_exit_events_are_repeated(engine: Containerd, tmp_path: Path, stopped_task: str) -> None:
    """Start and exit events are repeated; containerd makes up another exit, as for a shim that has died."""
    id_, last = unique_id(engine, f"twice-{stopped_task}"), unique_id(engine, f"last-{stopped_task}")
    with BridgeProcess(engine.address, tmp_path) as bridge:
        bridge.wait_synced()
        engine.run(id_, "sh", "-c", "trap 'exit 3' TERM; sleep 86400 & wait")
        bridge.wait(lambda records: changes(records, id_), "its start")
        pid = init_pid(engine, id_)
        eventually(lambda: catches_sigterm(pid), "the shell to set the trap")
        engine.ctr("task", "kill", "--signal", "SIGTERM", id_)
        bridge.wait(lambda records: len(changes(records, id_)) == 2, "its exit")
        if stopped_task == "deleted":
            engine.ctr("task", "delete", id_)
        started, exited = (time_of(each) for each in transitions(bridge.records()) if each["id"] == id_)
        start, made_up = (TaskStart(container_id=id_, pid=pid), started), exit_of(id_, pid, 137, time.time_ns())
        publish(engine, exit_of(id_, pid, 3, exited), made_up, start, made_up)
        engine.ctr("run", "--rm", "--null-io", IMAGE, last, "true")
        records = bridge.wait(lambda records: len(changes(records, last)) == 2, "the last exit")
    check_stream(records)
    assert changes(records, id_) == [("started", None), ("exited", 3)]


def test_fault_11_events_arrive_in_wrong_order(engine: Containerd, tmp_path: Path) -> None:
    early, deleted, unstarted = (unique_id(engine, prefix) for prefix in ("early", "deleted", "unstarted"))
    first, second = NO_PID + 1, NO_PID + 2
    with BridgeProcess(engine.address, tmp_path) as bridge:
        bridge.wait_synced()
        began = time.time_ns()
        start = TaskStart(container_id=early, pid=first)
        publish(engine, exit_of(early, first, 5, began + 1), (start, began))
        start, delete = (
            TaskStart(container_id=deleted, pid=first),
            TaskDelete(container_id=deleted, id=deleted, pid=first),
        )
        delete.exit_status = 6
        publish(engine, (start, began), (delete, began + 2), exit_of(deleted, first, 6, began + 1))
        create, delete = TaskCreate(container_id=unstarted, pid=first), TaskDelete(container_id=unstarted, id=unstarted)
        publish(engine, (create, began), exit_of(unstarted, first, 7, began + 1), (delete, began + 2))
        create, start = TaskCreate(container_id=unstarted, pid=second), TaskStart(container_id=unstarted, pid=second)
        publish(engine, (create, began + 3), (start, began + 4), exit_of(unstarted, second, 8, began + 5))
        records = bridge.wait(
            lambda records: all(len(changes(records, id_)) == 2 for id_ in (early, deleted, unstarted)), "all runs"
        )
    check_stream(records)
    assert changes(records, early) == [("started", None), ("exited", 5)]
    assert changes(records, deleted) == [("started", None), ("exited", 6)]
    assert changes(records, unstarted) == [("started", None), ("exited", 8)]


def test_fault_12_exec_processes_exit(engine: Containerd, tmp_path: Path) -> None:
    """Exec processes succeed, fail, cannot be started, and exit after the container's init process."""
    id_, last = unique_id(engine, "execs"), unique_id(engine, "last-exec")
    with BridgeProcess(engine.address, tmp_path) as bridge:
        bridge.wait_synced()
        engine.run(id_, "sleep", "86400")
        for number, command in enumerate(("true", "false", "/nonexistent")):
            engine.ctr("task", "exec", "--exec-id", f"e{number}", id_, command, check=False)
        engine.ctr("task", "kill", "--signal", "SIGKILL", id_)
        bridge.wait(lambda records: len(changes(records, id_)) == 2, "its exit")
        publish(engine, exit_of(id_, NO_PID + 3, 9, time.time_ns(), process="late-exec"))
        engine.ctr("run", "--rm", "--null-io", IMAGE, last, "true")
        records = bridge.wait(lambda records: len(changes(records, last)) == 2, "the last exit")
    check_stream(records)
    assert changes(records, id_) == [("started", None), ("exited", 137)]


def test_fault_04_run_within_gap_is_unknown(engine: Containerd, tmp_path: Path) -> None:
    """A container is created, runs and is removed while the bridge is stopped: only the interval can be known."""
    id_ = unique_id(engine, "unseen")
    with BridgeProcess(engine.address, tmp_path, state_dir=tmp_path / "state") as bridge:
        bridge.wait_synced()
        bridge.stop()
        before = time.time()
        engine.ctr("run", "--rm", "--null-io", IMAGE, id_, "true")
        after = time.time()
        bridge.start()
        records = bridge.wait_synced(2)
    snapshot = [each["snapshot"] for each in records if each["type"] == "snapshot_started"][-1]
    assert snapshot["reason"] == "start"
    assert datetime.fromisoformat(snapshot["since"]).timestamp() < before
    assert after < datetime.fromisoformat(snapshot["until"]).timestamp()
    assert changes(records, id_) == []
