"""State of the simulated containerd, and the operations of its clients and shims, which publish their events."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from bridge.containerd.http2 import StatusCode
from bridge.containerd.protos import containers_pb2, cri_pb2, images_pb2, payloads_pb2, process_pb2
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.core.containerd_model import ContainerKey, Labels, TaskStatus
from bridge.core.time import SECOND
from tests.simulator import wire

IMAGE = "docker.io/library/busybox:latest"
RUNTIME = "io.containerd.runc.v2"
GO_ZERO_SECONDS = -62_135_596_800  # Go's zero time as a protobuf timestamp
KILLED = 137


class SimulatedRpcError(Exception):
    """An error response of containerd: a status code and its text."""

    def __init__(self, code: StatusCode, details: str) -> None:
        super().__init__(details)
        self.code = code
        self.details = details


@dataclass
class SimulatedTask:
    """A task; ``exited`` is set when it stops."""

    pid: int
    status: TaskStatus = TaskStatus.CREATED
    exit_status: int = 0
    exited_at: int | None = None
    exited: asyncio.Event = field(default_factory=asyncio.Event)

    def to_proto(self, id_: str) -> process_pb2.Process:
        """Return the task as containerd does: ``container_id`` stays empty."""
        process = process_pb2.Process(
            id=id_, pid=self.pid, status=process_pb2.Status.Name(self.status), exit_status=self.exit_status
        )
        process.exited_at.CopyFrom(stamp(type(process.exited_at), self.exited_at))
        return process


@dataclass
class SimulatedContainer:
    """A container, and its task if it has one."""

    id: str
    labels: Labels
    image: str
    runtime: str
    created_at: int
    updated_at: int
    spec_bytes: int
    task: SimulatedTask | None = None
    cri_status: cri_pb2.ContainerStatus = field(default_factory=cri_pb2.ContainerStatus)

    def encode(self) -> bytes:
        """Encode the container as containerd does, including a spec if it has one."""
        container = containers_pb2.Container(
            id=self.id,
            labels=[{"key": key.encode(), "value": value.encode()} for key, value in self.labels.items()],
            image=self.image.encode(),
            runtime={"name": self.runtime.encode()},
        )
        container.created_at.CopyFrom(stamp(type(container.created_at), self.created_at))
        container.updated_at.CopyFrom(stamp(type(container.updated_at), self.updated_at))
        return container.SerializeToString() + (wire.spec(self.spec_bytes) if self.spec_bytes else b"")


class State:
    """Containers by namespace, the listeners to events (None ends their streams), and a counter of pids.

    ``images`` are the images by namespace and name. ``dropped_topics`` are the topics of events that the shims do not
    send. ``has_cri``: CRI remembers the containers of namespace ``k8s.io`` until they are deleted. ``pods``: the labels
    of CRI's pods, in the order of creation.
    """

    def __init__(self, now: Callable[[], int] = time.time_ns) -> None:
        self.now = now
        self.namespaces: dict[str, dict[str, SimulatedContainer]] = {}
        self.images: dict[tuple[str, str], images_pb2.Image] = {}
        self.listeners: list[Callable[[Envelope | None], None]] = []
        self.dropped_topics: set[str] = set()
        self.has_cri = False
        self.pods: list[Labels] = []
        self._pids = itertools.count(10_000)

    # --- operations of clients ---

    def create(
        self,
        key: ContainerKey,
        labels: Mapping[str, str] | None = None,
        *,
        image: str = IMAGE,
        runtime: str = RUNTIME,
        spec_bytes: int = 0,
    ) -> None:
        """Create a container."""
        now = self.now()
        container = SimulatedContainer(key.id, dict(labels or {}), image, runtime, now, now, spec_bytes)
        self.namespaces.setdefault(key.namespace, {})[key.id] = container
        payload = payloads_pb2.ContainerCreate(id=key.id, image=image.encode(), runtime={"name": runtime.encode()})
        self.publish(key.namespace, "/containers/create", payload)

    def tag(self, namespace: str, digest: str, name: str = IMAGE, updated_at: int | None = None) -> None:
        """Make the name of an image point to a digest, without an event."""
        image = images_pb2.Image(target={"digest": digest.encode()})
        image.updated_at.CopyFrom(stamp(type(image.updated_at), updated_at or self.now()))
        self.images[namespace, name] = image

    def relabel(self, key: ContainerKey, labels: Mapping[str, str]) -> None:
        """Replace the labels of a container."""
        container = self.container(key)
        container.labels, container.updated_at = dict(labels), self.now()
        entries = [{"key": name.encode(), "value": value.encode()} for name, value in labels.items()]
        payload = payloads_pb2.ContainerUpdate(id=key.id, image=container.image.encode(), labels=entries)
        self.publish(key.namespace, "/containers/update", payload)

    def delete(self, key: ContainerKey) -> None:
        """Delete a container."""
        self.container(key)
        del self.namespaces[key.namespace][key.id]
        self.publish(key.namespace, "/containers/delete", payloads_pb2.ContainerDelete(id=key.id))

    def create_task(self, key: ContainerKey) -> int:
        """Create a task without starting it; return its pid."""
        task = self.container(key).task = SimulatedTask(next(self._pids))
        self.publish(key.namespace, "/tasks/create", payloads_pb2.TaskCreate(container_id=key.id, pid=task.pid))
        return task.pid

    def start(self, key: ContainerKey) -> None:
        """Start a task."""
        task = self.task(key)
        task.status = TaskStatus.RUNNING
        status = self.container(key).cri_status
        status.state, status.started_at = cri_pb2.CONTAINER_RUNNING, self.now()
        self.publish(key.namespace, "/tasks/start", payloads_pb2.TaskStart(container_id=key.id, pid=task.pid))

    def run(self, key: ContainerKey, labels: Mapping[str, str] | None = None) -> int:
        """Create a container and start a task; return its pid."""
        self.create(key, labels)
        pid = self.create_task(key)
        self.start(key)
        return pid

    def pause(self, key: ContainerKey) -> None:
        """Pause a task."""
        self.task(key).status = TaskStatus.PAUSED
        self.publish(key.namespace, "/tasks/paused", payloads_pb2.TaskPaused(container_id=key.id))

    def resume(self, key: ContainerKey) -> None:
        """Resume a task."""
        self.task(key).status = TaskStatus.RUNNING
        self.publish(key.namespace, "/tasks/resumed", payloads_pb2.TaskResumed(container_id=key.id))

    def exec(self, key: ContainerKey, exec_id: str, status: int = 0) -> None:
        """Run another process in a container until it exits."""
        pid = next(self._pids)
        payload = wire.field(1, key.id) + wire.field(2, exec_id)
        self.publish_any(key.namespace, "/tasks/exec-added", "containerd.events.TaskExecAdded", payload)
        self.publish_any(key.namespace, "/tasks/exec-started", "containerd.events.TaskExecStarted", payload)
        self.publish_exit(key, pid, status, exec_id=exec_id)

    def oom(self, key: ContainerKey) -> None:
        """Publish an OOM kill of some process in the container."""
        self.container(key).cri_status.reason = b"OOMKilled"
        self.publish(key.namespace, "/tasks/oom", payloads_pb2.TaskOOM(container_id=key.id))

    def exit(self, key: ContainerKey, status: int = KILLED) -> None:
        """Stop a task's init process."""
        task = self.stop_without_event(key, status)
        self.publish_exit(key, task.pid, status, exited_at=task.exited_at)

    def stop_without_event(self, key: ContainerKey, status: int = KILLED) -> SimulatedTask:
        """Stop a task's init process without an event."""
        task = self.task(key)
        task.status, task.exit_status, task.exited_at = TaskStatus.STOPPED, status, self.now()
        cri_status = self.container(key).cri_status
        cri_status.state, cri_status.exit_code, cri_status.finished_at = cri_pb2.CONTAINER_EXITED, status, self.now()
        task.exited.set()
        return task

    def delete_task(self, key: ContainerKey) -> None:
        """Delete a stopped task."""
        task = self.task(key)
        self.container(key).task = None
        payload = payloads_pb2.TaskDelete(container_id=key.id, id=key.id, pid=task.pid, exit_status=task.exit_status)
        payload.exited_at.CopyFrom(stamp(type(payload.exited_at), task.exited_at))
        self.publish(key.namespace, "/tasks/delete", payload)

    def run_unseen(self, key: ContainerKey, status: int = 0, *, seconds: float = 1, oom: bool = False) -> None:
        """Let a container that kubelet created run until now, without an event; CRI deletes its task."""
        self.create_unseen(key)
        now = self.now()
        self.container(key).cri_status = cri_pb2.ContainerStatus(
            state=cri_pb2.CONTAINER_EXITED,
            started_at=now - int(seconds * SECOND),
            finished_at=now,
            exit_code=status,
            reason=b"OOMKilled" if oom else b"Completed",
        )

    def create_unseen(self, key: ContainerKey) -> None:
        """Create a container of a pod without an event."""
        labels = {
            "io.cri-containerd.kind": "container",
            "io.kubernetes.pod.name": "web-0",
            "io.kubernetes.pod.namespace": "shop",
            "io.kubernetes.pod.uid": "uid-1",
            "io.kubernetes.container.name": "main",
        }
        now = self.now()
        container = SimulatedContainer(key.id, labels, IMAGE, RUNTIME, now, now, 0)
        self.namespaces.setdefault(key.namespace, {})[key.id] = container

    # --- events, also without an operation: late, repeated or invalid ones ---

    def publish_exit(
        self, key: ContainerKey, pid: int, status: int, *, exec_id: str = "", exited_at: int | None = None
    ) -> None:
        """Publish an exit: of an exec process, or of the init process if ``exec_id`` is empty."""
        payload = payloads_pb2.TaskExit(container_id=key.id, id=exec_id or key.id, pid=pid, exit_status=status)
        payload.exited_at.CopyFrom(stamp(type(payload.exited_at), exited_at or self.now()))
        self.publish(key.namespace, "/tasks/exit", payload)

    def publish(self, namespace: str, topic: str, payload: Message) -> None:
        """Publish an event to all listeners."""
        self.publish_any(namespace, topic, payload.DESCRIPTOR.full_name, payload.SerializeToString())

    def publish_any(self, namespace: str, topic: str, type_url: str, value: bytes) -> None:
        """Publish an event with any payload to all listeners."""
        if topic in self.dropped_topics:
            return
        envelope = Envelope(namespace=namespace, topic=topic, event={"type_url": type_url, "value": value})
        envelope.timestamp.CopyFrom(stamp(type(envelope.timestamp), self.now()))
        self.send(envelope)

    def send(self, envelope: Envelope) -> None:
        """Send an event to all listeners."""
        for listener in list(self.listeners):
            listener(envelope)

    def end_streams(self) -> None:
        """End the streams of all listeners."""
        for listener in list(self.listeners):
            listener(None)

    # --- lookups, with containerd's error messages ---

    def container(self, key: ContainerKey) -> SimulatedContainer:
        """Return a container."""
        container = self.namespaces.get(key.namespace, {}).get(key.id)
        if container is None:
            raise SimulatedRpcError(
                StatusCode.NOT_FOUND, f'container "{key.id}" in namespace "{key.namespace}": not found'
            )
        return container

    def image(self, namespace: str, name: str) -> images_pb2.Image:
        """Return an image."""
        if (namespace, name) not in self.images:
            raise SimulatedRpcError(StatusCode.NOT_FOUND, f'image "{name}": not found')
        return self.images[namespace, name]

    def task(self, key: ContainerKey) -> SimulatedTask:
        """Return a container's task."""
        task = self.container(key).task
        if task is None:
            raise SimulatedRpcError(StatusCode.NOT_FOUND, f"task {key.id} not found")
        return task


def stamp(kind: type[Timestamp], nanoseconds: int | None) -> Timestamp:
    """Return a timestamp of class ``kind``; Go's zero time for None."""
    if nanoseconds is None:
        return kind(seconds=GO_ZERO_SECONDS)
    return kind(seconds=nanoseconds // SECOND, nanos=nanoseconds % SECOND)
