"""The real program, run as its users run it: `whalebridge run`, with its standard output or its brokers read along."""

from __future__ import annotations

import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

RecordDict = dict[str, Any]

CONTROL_TYPES = ("snapshot_started", "snapshot_completed")


class BridgeProcess:
    """`whalebridge run` on one containerd; as a context manager it is ended with SIGTERM.

    `sinks`: URLs; without any, records go to standard output, which `records` and what waits for them read.
    """

    def __init__(
        self,
        address: str,
        directory: Path,
        *flags: str,
        sinks: Sequence[str] = (),
        state_dir: Path | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        options = [f"--sink={url}" for url in sinks] + ([f"--state-dir={state_dir}"] if state_dir else [])
        self.command = [sys.executable, "-m", "bridge", "run", "--containerd", address, *options, *flags]
        self.out = directory / "records.jsonl"
        self.log = directory / "log.jsonl"
        # Many run at a time, and the default port is one.
        defaults = {"WHALEBRIDGE_HOST": "node-1", "WHALEBRIDGE_HTTP__LISTEN": "", "PATH": "/usr/bin:/bin"}
        self._environment = defaults | dict(environment or {})
        self._read_bytes = 0
        self._records: list[RecordDict] = []
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start it, perhaps once more: what it writes is appended."""
        with self.out.open("ab") as out, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=self._environment
            )

    def kill(self) -> None:
        """SIGKILL it, whatever it is about."""
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> float:
        """End it as an operator does; return how many seconds that took."""
        began = time.monotonic()
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text()[-3000:]
        return time.monotonic() - began

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            status = self.process.wait(30)
            assert status == 0 or kind is not None, self.log.read_text()

    def log_lines(self, event: str) -> list[RecordDict]:
        """The lines of the log, of all runs, that tell of an event."""
        lines = self.log.read_bytes().split(b"\n")[:-1]  # the last may be half written
        return [line for line in map(msgspec.json.decode, lines) if line["event"] == event]

    def wait_logged(self, event: str, times: int = 1, seconds: float = 60) -> list[RecordDict]:
        """Wait until the log tells of an event that many times."""
        deadline = time.monotonic() + seconds
        while True:
            over = time.monotonic() > deadline or self.process.poll() is not None
            if len(found := self.log_lines(event)) >= times:
                return found
            assert not over, self.log.read_text()[-3000:]
            time.sleep(0.05)

    def records(self) -> list[RecordDict]:
        """All records written so far; each line must be whole and valid."""
        with self.out.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._read_bytes += end
        self._records += map(msgspec.json.decode, data[:end].splitlines())
        return self._records

    def wait(self, predicate: Callable[[list[RecordDict]], object], what: str, seconds: float = 30) -> list[RecordDict]:
        """Wait until the records fit; fail with what is there and what the log says."""
        deadline = time.monotonic() + seconds
        while True:
            over = time.monotonic() > deadline or self.process.poll() is not None  # before looking for the last time
            if predicate(self.records()):
                return self._records
            if over:
                last = [summary(each) for each in self._records[-20:]]
                raise AssertionError(f"no {what} within {seconds} s; {last=}; log: {self.log.read_text()[-3000:]}")
            time.sleep(0.02)

    def wait_synced(self, snapshots: int = 1, seconds: float = 30) -> list[RecordDict]:
        """Wait until that many snapshots are complete."""
        return self.wait(
            lambda records: sum(each["type"] == "snapshot_completed" for each in records) >= snapshots,
            f"snapshot number {snapshots}",
            seconds,
        )


def summary(record: RecordDict) -> tuple[Any, ...]:
    """A record in short, for messages."""
    exit_ = record["exit"] and record["exit"]["status"]
    return (record["sequence"], record["type"], record["origin"], record["id"], exit_)


def transitions(records: list[RecordDict]) -> list[RecordDict]:
    """The lifecycle transitions alone: neither frames nor rows."""
    return [each for each in records if each["type"] in ("started", "exited", "paused", "unpaused")]


def transitions_of_new_containers(records: list[RecordDict]) -> list[RecordDict]:
    """The transitions of whoever was not there at the start: on a shared containerd, others may end at any time."""
    first = itertools.takewhile(lambda each: each["type"] != "snapshot_completed", records)
    there = {each["id"] for each in first if each["type"] == "present"}
    return [each for each in transitions(records) if each["id"] not in there]


def running_after(records: list[RecordDict]) -> dict[str, RecordDict]:
    """What lives after these records, by display id: a consumer's view (docs/events.md has the rules)."""
    alive: dict[str, RecordDict] = {}
    for record in records:
        container = record["container"]
        if record["type"] == "exited":
            known = alive.get(record["id"])
            if known is not None and known["incarnation"] == record["container"]["incarnation"]:
                del alive[record["id"]]
        elif container is not None:
            alive[record["id"]] = container
    return alive


def check_stream(records: list[RecordDict]) -> None:
    """What must hold of any stream: gapless sequences from 1, framed snapshots, well-formed lives."""
    assert [each["sequence"] for each in records] == list(range(1, len(records) + 1))
    assert records[0]["type"] == "snapshot_started"
    check_runs(records)
    open_: RecordDict | None = None
    rows = 0
    for record in records:
        if record["type"] == "snapshot_started":
            open_, rows = record["snapshot"], 0
        elif record["type"] == "snapshot_completed":
            assert open_ is not None
            assert record["snapshot"] == {**open_, "previous": None}
            assert rows == open_["containers"]
            open_ = None
        elif record["type"] == "present":
            assert open_ is not None
            rows += 1


def check_runs(records: list[RecordDict]) -> None:
    """P2: each life begins once, turns in turn, ends once, and nothing is told of it afterwards."""
    states: dict[str, str] = {}
    for record in records:
        container = record["container"]
        if container is None:
            continue
        life = f"{record['id']} {container['incarnation']}"
        state = states.get(life)
        match record["type"]:
            case "started":
                assert state is None, (life, state, record)
                states[life] = "running"
            case "present":
                assert state in (None, "paused" if container["paused"] else "running"), (life, state, record)
                states[life] = "paused" if container["paused"] else "running"
            case "paused":
                assert state == "running", (life, state, record)
                states[life] = "paused"
            case "unpaused":
                assert state == "paused", (life, state, record)
                states[life] = "running"
            case "exited":
                assert state in ("running", "paused"), (life, state, record)
                states[life] = "exited"
