"""`whalebridge run` as a process: signals, pipes, and an unavailable containerd."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.integration.commands import ENVIRONMENT, WHALEBRIDGE, ContainerFactory, PipedCommand
from tests.integration.engines import one_engine


class RunningBridge(PipedCommand):
    """`whalebridge run` with pipes for both outputs."""

    def __init__(self, address: str, *flags: str) -> None:
        super().__init__("run", "--containerd", address, *flags)

    def read_until_synced(self) -> None:
        """Read until the first snapshot is complete."""
        for line in self.out:
            if json.loads(line)["type"] == "snapshot_completed":
                return
        raise AssertionError(self.log.read().decode())

    def wait_exit(self, seconds: float = 30) -> tuple[int, list[dict[str, Any]], str]:
        """Wait for the exit; return the exit status, the remaining records and the log."""
        out, log = self.process.communicate(timeout=seconds)
        return self.process.returncode, [json.loads(line) for line in out.splitlines()], log.decode()


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
@one_engine
def test_run_exits_0_on_signal(container_factory: ContainerFactory, signal_number: signal.Signals) -> None:
    with RunningBridge(container_factory.address) as run:
        run.read_until_synced()
        container_factory.run()  # may or may not be published
        run.process.send_signal(signal_number)
        status, _, log = run.wait_exit()  # the remaining lines are complete
    assert status == 0
    for line in log.splitlines():
        json.loads(line)  # every line of the log is JSON


def test_run_exits_0_on_repeated_signals(tmp_path: Path) -> None:
    with RunningBridge(str(tmp_path / "c.sock")) as run:
        run.log.readline()
        while run.process.poll() is None:
            run.process.terminate()
            time.sleep(0.0005)
        status, _, log = run.wait_exit()
    assert status == 0
    for line in log.splitlines():
        json.loads(line)


def test_run_exits_0_on_signal_while_waiting_for_containerd(tmp_path: Path) -> None:
    with RunningBridge(str(tmp_path / "c.sock")) as run:
        assert "c.sock" in run.log.readline().decode()
        run.process.terminate()
        status, records, log = run.wait_exit()
    assert (status, records) == (0, [])
    assert "Traceback" not in log


@one_engine
def test_run_logs_and_waits_when_containerd_is_unavailable(container_factory: ContainerFactory, tmp_path: Path) -> None:
    path = tmp_path / "c.sock"
    with RunningBridge(str(path), "--log-format", "json") as run:
        line = json.loads(run.log.readline())
        assert (line["level"], line["event"]) == ("warning", "containerd_unavailable")
        assert str(path) in line["error"]
        path.symlink_to(container_factory.address)
        started = time.monotonic()
        run.read_until_synced()
        assert time.monotonic() - started < 15  # 5 on an idle machine
        run.process.terminate()
        assert run.wait_exit()[0] == 0


@pytest.mark.parametrize("quiet", [True, False])
@one_engine
def test_run_exits_1_when_stdout_reader_is_gone(container_factory: ContainerFactory, quiet: bool) -> None:
    with RunningBridge(container_factory.address) as run:
        run.read_until_synced()
        run.out.close()
        if not quiet:
            container_factory.run()  # something to write
        status = run.process.wait(30)
        log = run.log.read().decode()
    assert status == 1
    assert log.splitlines()[-1].startswith("whalebridge: standard output: ")
    assert "Traceback" not in log


@one_engine
def test_run_exits_within_deadline_when_stdout_reader_stalls(container_factory: ContainerFactory) -> None:
    container_factory.run(labels={"long": "x" * 4000})
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    command = [*WHALEBRIDGE, "run", "--containerd", container_factory.address]
    with subprocess.Popen(command, stdout=writer, stderr=subprocess.PIPE, env=ENVIRONMENT) as process:
        os.close(writer)
        assert process.stderr
        assert any(b'"synced"' in line for line in process.stderr)
        process.terminate()
        started = time.monotonic()
        process.wait(30)
        log = process.stderr.read().decode()
    os.close(reader)
    assert time.monotonic() - started < 20  # the deadline is 10 s
    assert "Traceback" not in log


@one_engine
def test_run_exits_0_on_signal_when_records_and_log_share_pipe(container_factory: ContainerFactory) -> None:
    """As in `whalebridge run 2>&1 | less`: an idle pager blocks neither the log nor the shutdown."""
    container_factory.run()
    command = [*WHALEBRIDGE, "run", "--containerd", container_factory.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=ENVIRONMENT) as process:
        assert process.stdout
        lines = iter(process.stdout.readline, b"")
        assert any(b'"snapshot_completed"' in line for line in lines)
        process.terminate()
        rest = [json.loads(line) for line in lines]
        assert process.wait(30) == 0
    assert "shutdown_started" in [each.get("event") for each in rest]
