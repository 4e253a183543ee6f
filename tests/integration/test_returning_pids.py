"""A containerd in a pid namespace of its own, as in nodes that are containers: the pids of a container return."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.bridge_process import BridgeProcess, check_stream
from tests.testbed.containerd import VERSIONS, Containerd, Version
from tests.testbed.image import NAME as IMAGE

ID = f"returning-{os.getpid()}"  # runc names cgroups NAMESPACE/ID, whichever containerd it serves
RETURNS = 6
"""Runs that get the pid of an earlier one."""
MAX_RUNS = 120
"""How many threads start before a container's process, and so its pid, varies by some dozens on a busy machine."""


class ContainerdInPidNamespace(Containerd):
    """A containerd whose shims and containers have pids in a namespace that ends with it."""

    def spawn(self, *command: str, log: Path) -> subprocess.Popen[bytes]:
        return super().spawn("unshare", "--pid", "--fork", "--kill-child", "--mount-proc", *command, log=log)

    def set_last_pid(self, pid: int) -> None:
        """Let the next process in the namespace get the pid after ``pid``, if it is free."""
        (child,) = Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()
        script = f"echo {pid} > /proc/sys/kernel/ns_last_pid"
        subprocess.run(["nsenter", f"--target={child}", "--pid", "--mount", "sh", "-c", script], check=True)


@pytest.fixture(params=VERSIONS)
def namespaced(request: pytest.FixtureRequest) -> Iterator[ContainerdInPidNamespace]:
    version: Version = request.param
    with ContainerdInPidNamespace(version) as engine:
        engine.import_image()
        yield engine


def test_fault_37_pid_returns(namespaced: ContainerdInPidNamespace, tmp_path: Path) -> None:
    pids: list[int] = []
    with BridgeProcess(namespaced.address, tmp_path) as bridge:
        bridge.wait_synced()
        namespaced.ctr("containers", "create", IMAGE, ID, "sleep", "86400")
        while len(pids) - len(set(pids)) < RETURNS:
            assert len(pids) < MAX_RUNS, f"pids do not return: {pids}"
            namespaced.set_last_pid(5000)
            namespaced.ctr("tasks", "start", "--detach", "--null-io", ID)
            (line,) = (line for line in namespaced.ctr("tasks", "ls").stdout.splitlines() if line.startswith(ID))
            pids.append(int(line.split()[1]))
            namespaced.ctr("tasks", "kill", "--signal", "SIGKILL", ID)
            bridge.wait(
                lambda records: sum(each["type"] == "exited" for each in records) == len(pids), f"exit {len(pids)}"
            )
            namespaced.ctr("tasks", "delete", "--force", ID, check=False)
        records = bridge.records()
    started = [each["container"] for each in records if each["type"] == "started"]
    assert [each["pid"] for each in started] == pids
    assert len({each["incarnation"] for each in started}) == len(pids)
    check_stream(records)
