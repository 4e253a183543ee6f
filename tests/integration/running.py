"""Compare the running containers of containerd with those of the records, reach processes, and publish events."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.containerd.protos.envelopes_pb2 import Envelopes
from tests.bridge_process import RecordDict, running_after, transitions
from tests.eventually import eventually
from tests.testbed.containerd import Containerd
from tests.testbed.process import suspend_process


def listed_containers(engine: Containerd, *namespaces: str) -> dict[str, bool]:
    """Return the running containers that containerd lists: by display id, whether the container is paused."""
    return {
        id_ if namespace == "default" else f"{namespace}/{id_}": status == "PAUSED"
        for namespace in namespaces or ("default",)
        for id_, status in engine.tasks(namespace).items()
        if status in ("RUNNING", "PAUSED", "PAUSING")
    }


def published_containers(records: list[RecordDict]) -> dict[str, bool]:
    """Return the running containers according to the records: by display id, whether the container is paused."""
    return {id_: container["paused"] for id_, container in running_after(records).items()}


def exits(records: list[RecordDict], id_: str) -> list[dict[str, Any]]:
    """Return the exit records of a container."""
    return [each for each in records if each["id"] == id_ and each["type"] == "exited"]


def init_pid(engine: Containerd, id_: str) -> int:
    """Return the init process of a container, to end the container without a call to containerd."""
    lines = engine.ctr("tasks", "ls").stdout.splitlines()[1:]
    return next(int(pid) for container, pid, _ in map(str.split, lines) if container == id_)


def run_short_containers(engine: Containerd, ids: list[str]) -> None:
    """Run containers that exit with their position as status, and remove them.

    Their tasks are not deleted at once: containerd 2.4 would lose exit events before it writes them to any socket.
    """
    for number, id_ in enumerate(ids):
        engine.run(id_, "sh", "-c", f"exit {number}")
    eventually(lambda: {engine.tasks()[id_] for id_ in ids} == {"STOPPED"}, "all exits")
    time.sleep(1)  # until the shims have published them
    for id_ in ids:
        engine.ctr("tasks", "delete", id_, check=False)  # its exit status is the container's
        engine.ctr("containers", "delete", id_)


def assert_short_containers_published(records: list[RecordDict], ids: list[str]) -> None:
    """Check the starts and exits of `run_short_containers`."""
    published = {id_: [each["type"] for each in transitions(records) if each["id"] == id_] for id_ in ids}
    assert published == {id_: ["started", "exited"] for id_ in ids}
    assert [exits(records, id_)[0]["exit"]["status"] for id_ in ids] == list(range(len(ids)))


@contextmanager
def suspended(*pids: int) -> Iterator[None]:
    """Suspend processes (SIGSTOP)."""
    for pid in pids:
        suspend_process(pid)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def publish_event(engine: Containerd, topic: str, type_name: str, value: bytes, at: int | None = None) -> None:
    """Forward an event through containerd, as shims do; ``at`` is its time in ns, by default now."""
    envelope = Envelope(namespace="default", topic=topic, event={"type_url": type_name, "value": value})
    envelope.timestamp.FromNanoseconds(time.time_ns() if at is None else at)
    request = Envelopes(envelopes=[envelope.SerializeToString()])  # encoded like containerd's ForwardRequest
    with grpc.insecure_channel(
        f"unix://{engine.address}", options=[("grpc.default_authority", "localhost")]
    ) as channel:
        path = "/containerd.services.events.v1.Events/Forward"
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        call(request.SerializeToString(), metadata=(("containerd-namespace", "default"),), timeout=10)
