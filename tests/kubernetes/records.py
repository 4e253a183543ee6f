"""Read the records that the bridge on a node has published to NATS, and the tasks that run there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable

import msgspec

from tests.bridge_process import RecordDict
from tests.eventually import eventually
from tests.integration.delivery import read_stream
from tests.testbed.kubernetes import Node

STREAM = "WHALEBRIDGE_CONTAINERS"


class StreamReader:
    """Reads a stream; each call returns all records that it has at that time."""

    def __init__(self, url: str) -> None:
        self.url = url

    def all(self) -> list[RecordDict]:
        """Return all records except heartbeats, in the order of the stream, without duplicates."""
        records = [msgspec.json.decode(each.data) for each in read_stream(self.url, STREAM)]
        return list({(each["epoch"], each["sequence"]): each for each in records}.values())

    def of_pod(self, pod: str) -> list[RecordDict]:
        """Return the records about a pod's containers."""
        return [each for each in self.all() if pod_of(each).get("name") == pod]

    def wait(self, predicate: Callable[[list[RecordDict]], object], what: str, timeout: float = 60) -> list[RecordDict]:
        """Wait until the predicate holds for the records; return them."""
        records: list[RecordDict] = []

        def holds() -> object:
            records[:] = self.all()
            return predicate(records)

        eventually(holds, what, within=timeout)
        return records


def pod_of(record: RecordDict) -> RecordDict:
    """Return the pod in a record, empty if it has none."""
    return (record["container"] or {}).get("pod") or {}


def transitions(records: Iterable[RecordDict]) -> Counter[tuple[str, str, str]]:
    """Count starts and exits by pod, container and type."""
    return Counter(
        (pod_of(each)["name"], pod_of(each)["container"], each["type"])
        for each in records
        if each["type"] in ("started", "exited") and pod_of(each)
    )


def running_tasks(node: Node) -> set[str]:
    """Return the running tasks that containerd lists, without sandboxes."""
    sandboxes = node.ctr("containers", "ls", "-q", 'labels."io.cri-containerd.kind"==sandbox', namespace="k8s.io")
    hidden = set(sandboxes.stdout.split())
    return {
        f"k8s.io/{id_}" for id_, status in node.tasks("k8s.io").items() if status == "RUNNING" and id_ not in hidden
    }
