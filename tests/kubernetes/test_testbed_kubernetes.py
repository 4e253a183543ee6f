"""The node of the testbed runs what it is told to, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.kubernetes.objects import container, pod
from tests.testbed.kubernetes import COMPONENTS, Node
from tests.testbed.process import pids_with_arguments, run, wait_until


def test_a_node_is_ready_and_then_gone(require_all: Callable[..., None]) -> None:
    require_all(*COMPONENTS)
    links = run(["ip", "-brief", "link"]).stdout.splitlines()
    paused = set(pids_with_arguments("sleep", "2000000000"))  # of a node before, which are on their way out
    with Node() as node:
        node.apply(pod("one", container("main", "sleep 1000"), restart="Always"))
        wait_until(lambda: node.get("pod", "one")["status"]["phase"] == "Running", "a pod to run", interval=0.2)
        name = node.directory.name
        assert list(Path("/sys/fs/cgroup").rglob(f"{name}/kubepods"))
        (line,) = [line for line in run(["ip", "-brief", "link"]).stdout.splitlines() if line not in links]
        assert line.startswith("whale")
    assert not node.directory.exists()
    assert not list(Path("/sys/fs/cgroup").rglob(name))
    wait_until(lambda: not set(pids_with_arguments("sleep", "2000000000")) - paused, "the end of the sandbox")
    assert name not in Path("/proc/self/mountinfo").read_text()
    assert line.split("@")[0] not in run(["ip", "-brief", "link"]).stdout
