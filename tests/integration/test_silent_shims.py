"""Containers whose shims send no events: their starts and exits are published all the same."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest

from tests.bridge_process import BridgeProcess, RecordDict, check_stream
from tests.eventually import eventually
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE

MAX_DELAY = 60.0  # seconds; about 5 on an idle machine. The second audit is 330 s after the start of the bridge.
_numbers = itertools.count()


class SilentContainers:
    """Run containers with a shim that cannot reach containerd's ttrpc socket, and remove them."""

    def __init__(self, engine: Containerd) -> None:
        self.engine = engine
        # containerd accepts the path of a shim instead of the name of a runtime.
        self.shim = engine.directory / "containerd-shim-silent-v2"
        self.shim.write_text(
            f'#!/bin/sh\nexport TTRPC_ADDRESS={engine.directory}/none.ttrpc\nexec containerd-shim-runc-v2 "$@"\n'
        )
        self.shim.chmod(0o755)
        self._ids: list[str] = []

    def create(self, *command: str) -> str:
        """Create a container without a task."""
        id_ = f"silent-{os.getpid()}-{self.engine.version.replace('.', '')}-{next(_numbers)}"
        self.engine.ctr("containers", "create", "--runtime", str(self.shim), IMAGE, id_, *command)
        self._ids.append(id_)
        return id_

    def start(self, id_: str) -> float:
        """Start a container; return the time (seconds since 1970) after which it runs."""
        started_at = time.time()
        self.engine.ctr("tasks", "start", "--detach", "--null-io", id_)
        return started_at

    def kill(self, id_: str) -> float:
        """Kill a container; return the time after which it has exited."""
        killed_at = time.time()
        self.engine.ctr("tasks", "kill", "--signal", "SIGKILL", id_)
        eventually(lambda: self.engine.tasks().get(id_) == "STOPPED", f"exit of {id_}")
        return killed_at

    def remove_all(self) -> None:
        for id_ in self._ids:
            self.engine.ctr("tasks", "delete", "--force", id_, check=False)
            self.engine.ctr("containers", "delete", id_, check=False)


@pytest.fixture
def silent(engine: Containerd) -> Iterator[SilentContainers]:
    containers = SilentContainers(engine)
    yield containers
    containers.remove_all()


def about(records: list[RecordDict], id_: str) -> list[RecordDict]:
    """Return the transitions of a container."""
    types = ("started", "paused", "unpaused", "exited")
    return [each for each in records if each["container"] and each["container"]["id"] == id_ and each["type"] in types]


def wait_for(bridge: BridgeProcess, id_: str, count: int) -> RecordDict:
    """Wait for a container's transitions; return the last of them."""
    records = bridge.wait(lambda records: len(about(records, id_)) >= count, f"transition {count} of {id_}", MAX_DELAY)
    return about(records, id_)[count - 1]


def delay(record: RecordDict, since: float) -> float:
    return datetime.fromisoformat(record["timestamp"]).timestamp() - since


def test_fault_38_shim_is_silent(silent: SilentContainers, tmp_path: Path) -> None:
    """Two runs: the second one follows in the same container."""
    with BridgeProcess(silent.engine.address, tmp_path) as bridge:
        bridge.wait_synced()
        id_, delays = silent.create("sleep", "86400"), []
        for run in range(2):
            started_at = silent.start(id_)
            delays.append(delay(wait_for(bridge, id_, 2 * run + 1), started_at))
            killed_at = silent.kill(id_)
            delays.append(delay(wait_for(bridge, id_, 2 * run + 2), killed_at))
            silent.engine.ctr("tasks", "delete", id_)
        records = bridge.records()
        warnings = bridge.log_lines("start_event_missing")
    assert [(each["type"], each["origin"]) for each in about(records, id_)] == 2 * [
        ("started", "inferred"),
        ("exited", "inferred"),
    ]
    assert {each["exit"]["status"] for each in about(records, id_) if each["exit"]} == {137}
    assert (warnings[0]["id"], warnings[0]["runtime"]) == (id_, str(silent.shim))
    check_stream(records)
    assert max(delays) < MAX_DELAY, delays
