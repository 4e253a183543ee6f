"""Run `whalebridge run` as a process, and read its records and its log."""

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

from tests.eventually import pause

RecordDict = dict[str, Any]

CONTROL_TYPES = ("snapshot_started", "snapshot_completed")


class BridgeProcess:
    """`whalebridge run` on one containerd; exiting the context stops it with SIGTERM.

    `sinks` are URLs. Without sinks, records go to standard output, from which `records`, `wait` and `wait_synced` read.
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
        # Tests run several bridges at a time, so the HTTP server with its fixed default port is off.
        defaults = {"WHALEBRIDGE_HOST": "node-1", "WHALEBRIDGE_HTTP__LISTEN": "", "PATH": "/usr/bin:/bin"}
        self._environment = defaults | dict(environment or {})
        self._read_bytes = 0
        self._records: list[RecordDict] = []
        self.process: subprocess.Popen[bytes]

    def __enter__(self) -> Self:
        self.start()
        return self

    def start(self) -> None:
        """Start the process, for the first time or again; its output is appended to the files."""
        with self.out.open("ab") as out, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=out, stderr=log, env=self._environment
            )

    def kill(self) -> None:
        """Send SIGKILL, and wait for the exit."""
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> float:
        """Send SIGTERM, expect a clean exit, and return the seconds that it took."""
        started_at = time.monotonic()
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text()[-3000:]
        return time.monotonic() - started_at

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.terminate()
            try:
                status = self.process.wait(30)
            finally:
                self.process.kill()  # if it has not ended
            assert status == 0 or kind is not None, self.log.read_text()

    def log_lines(self, event: str) -> list[RecordDict]:
        """Return the log lines of an event, from all runs."""
        lines = self.log.read_bytes().split(b"\n")[:-1]  # the last line may be incomplete
        return [line for line in map(msgspec.json.decode, lines) if line["event"] == event]

    def wait_logged(self, event: str, times: int = 1, seconds: float = 60) -> list[RecordDict]:
        """Wait until the log has an event `times` times; return these lines."""
        started_at = time.monotonic()
        while True:
            elapsed = time.monotonic() - started_at
            is_last_try = elapsed > seconds or self.process.poll() is not None
            if len(lines := self.log_lines(event)) >= times:
                return lines
            assert not is_last_try, self.log.read_text()[-3000:]
            time.sleep(pause(elapsed))

    def records(self) -> list[RecordDict]:
        """Return all records written so far; each line must be valid."""
        with self.out.open("rb") as file:
            file.seek(self._read_bytes)
            data = file.read()
        end = data.rfind(b"\n") + 1
        self._read_bytes += end
        self._records += map(msgspec.json.decode, data[:end].splitlines())
        return self._records

    def wait(self, predicate: Callable[[list[RecordDict]], object], what: str, seconds: float = 30) -> list[RecordDict]:
        """Wait until the records satisfy the predicate; otherwise, fail with the last records and the log."""
        started_at = time.monotonic()
        while True:
            elapsed = time.monotonic() - started_at
            is_last_try = elapsed > seconds or self.process.poll() is not None  # checked before reading
            if predicate(self.records()):
                return self._records
            if is_last_try:
                last = [summary(each) for each in self._records[-20:]]
                raise AssertionError(f"no {what} within {seconds} s; {last=}; log: {self.log.read_text()[-3000:]}")
            time.sleep(pause(elapsed))

    def wait_synced(self, snapshots: int = 1) -> list[RecordDict]:
        """Wait until `snapshots` snapshots are complete; the program may have to start first."""
        return self.wait(
            lambda records: sum(each["type"] == "snapshot_completed" for each in records) >= snapshots,
            f"snapshot number {snapshots}",
            60,
        )


def summary(record: RecordDict) -> tuple[Any, ...]:
    """Return the main fields of a record, for messages."""
    exit_ = record["exit"] and record["exit"]["status"]
    return (record["sequence"], record["type"], record["origin"], record["id"], exit_)


def transitions(records: list[RecordDict]) -> list[RecordDict]:
    """Return the transitions: neither control records nor snapshot records."""
    return [each for each in records if each["type"] in ("started", "exited", "paused", "unpaused")]


def transitions_of_new_containers(records: list[RecordDict]) -> list[RecordDict]:
    """Return the transitions of containers that are not in the first snapshot.

    On a shared containerd, containers of other tests may exit at any time.
    """
    first_snapshot = itertools.takewhile(lambda each: each["type"] != "snapshot_completed", records)
    preexisting = {each["id"] for each in first_snapshot if each["type"] == "present"}
    return [each for each in transitions(records) if each["id"] not in preexisting]


def running_after(records: list[RecordDict]) -> dict[str, RecordDict]:
    """Return the running containers after these records by display id, as a consumer computes them (docs/events.md)."""
    running: dict[str, RecordDict] = {}
    for record in records:
        container = record["container"]
        if record["type"] == "exited":
            known = running.get(record["id"])
            if known is not None and known["incarnation"] == record["container"]["incarnation"]:
                del running[record["id"]]
        elif container is not None:
            running[record["id"]] = container
    return running


def check_stream(records: list[RecordDict]) -> None:
    """Assert the invariants of a stream: gapless sequences from 1, complete snapshots, valid incarnations."""
    assert [each["sequence"] for each in records] == list(range(1, len(records) + 1))
    assert records[0]["type"] == "snapshot_started"
    check_runs(records)
    open_: RecordDict | None = None
    count = 0
    for record in records:
        if record["type"] == "snapshot_started":
            open_, count = record["snapshot"], 0
        elif record["type"] == "snapshot_completed":
            assert open_ is not None
            assert record["snapshot"] == {**open_, "previous": None}
            assert count == open_["containers"]
            open_ = None
        elif record["type"] == "present":
            assert open_ is not None
            count += 1


def check_runs(records: list[RecordDict]) -> None:
    """Assert P2: each incarnation starts once, alternates between paused and running, and exits once, at its end."""
    states: dict[str, str] = {}
    for record in records:
        container = record["container"]
        if container is None:
            continue
        incarnation = f"{record['id']} {container['incarnation']}"
        state = states.get(incarnation)
        match record["type"]:
            case "started":
                assert state is None, (incarnation, state, record)
                states[incarnation] = "running"
            case "present":
                assert state in (None, "paused" if container["paused"] else "running"), (incarnation, state, record)
                states[incarnation] = "paused" if container["paused"] else "running"
            case "paused":
                assert state == "running", (incarnation, state, record)
                states[incarnation] = "paused"
            case "unpaused":
                assert state == "paused", (incarnation, state, record)
                states[incarnation] = "running"
            case "exited":
                assert state in ("running", "paused"), (incarnation, state, record)
                states[incarnation] = "exited"
