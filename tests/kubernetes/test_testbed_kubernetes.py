"""The testbed's Kubernetes node: it runs pods, and leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.eventually import eventually
from tests.kubernetes.manifests import container, pod
from tests.testbed.kubernetes import COMPONENTS, Node
from tests.testbed.process import pids_with_arguments


def test_testbed_node_becomes_ready_and_leaves_nothing_behind(require_as_root: Callable[..., None]) -> None:
    require_as_root(*COMPONENTS)
    earlier = set(pids_with_arguments("sleep", "2000000000"))  # of an earlier node, still exiting
    with Node() as node:
        node.apply(pod("one", container("main", "sleep 1000"), restart="Always"))
        eventually(lambda: node.get("pod", "one")["status"]["phase"] == "Running", "a pod to run", within=90)
        name = node.directory.name
        assert [path for path in cgroups() if path.endswith(f"/{name}/kubepods")]
        assert link(node).exists()
    assert not node.directory.exists()
    assert not [path for path in cgroups() if name in path.split("/")]
    eventually(lambda: not set(pids_with_arguments("sleep", "2000000000")) - earlier, "the exit of the sandbox")
    assert name not in Path("/proc/self/mountinfo").read_text()
    assert not link(node).exists()


def link(node: Node) -> Path:
    return Path("/sys/class/net", node.link)


def cgroups() -> list[str]:
    """Return all cgroups; unlike Path.glob, os.walk ignores concurrent removals."""
    return [path for path, _, _ in os.walk("/sys/fs/cgroup")]
