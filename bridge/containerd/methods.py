"""containerd's and the proxy's gRPC methods that whalebridge calls, and the options of the proxy's channel."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import quote

from google.protobuf.message import Message

from bridge.containerd.protos import (
    containers_pb2,
    cri_pb2,
    health_pb2,
    images_pb2,
    introspection_pb2,
    namespaces_pb2,
    tasks_pb2,
    version_pb2,
    waits_pb2,
)
from bridge.containerd.protos.envelope_pb2 import Envelope
from bridge.containerd.protos.events_pb2 import PublishResponse
from bridge.core.containerd_model import ContainerKey

_Response = TypeVar("_Response", bound=Message)

NAMESPACE_HEADER = "containerd-namespace"
MARKER_NAMESPACE = "whalebridge"

# containerd's rule (pkg/identifiers). An invalid namespace has no containers, and gRPC rejects invalid header values.
_NAMESPACE_PATTERN = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")

# containerd's default limit is 16 MiB; if an administrator raised it, ListStream returns the larger listings.
MAX_LIST_BYTES = 16 * 1024 * 1024 + 64 * 1024


@dataclass(frozen=True)
class Method(Generic[_Response]):
    """One method: path, type of the response, and purpose, which completes "containerd failed to ..."."""

    path: str
    response_type: type[_Response]
    purpose: str


VERSION = Method("/containerd.services.version.v1.Version/Version", version_pb2.VersionResponse, "return its version")
SERVER = Method(
    "/containerd.services.introspection.v1.Introspection/Server", introspection_pb2.ServerResponse, "return its id"
)
HEALTH = Method("/grpc.health.v1.Health/Check", health_pb2.HealthCheckResponse, "report its health")
NAMESPACES = Method(
    "/containerd.services.namespaces.v1.Namespaces/List",
    namespaces_pb2.ListNamespacesResponse,
    "list the namespaces",
)
CONTAINERS = Method(
    "/containerd.services.containers.v1.Containers/List",
    containers_pb2.ListContainersResponse,
    "list the containers",
)
CONTAINERS_STREAM = Method(
    "/containerd.services.containers.v1.Containers/ListStream",
    containers_pb2.ListContainerMessage,
    "list the containers one by one",
)
CONTAINER = Method(
    "/containerd.services.containers.v1.Containers/Get", containers_pb2.GetContainerResponse, "get a container"
)
TASKS = Method("/containerd.services.tasks.v1.Tasks/List", tasks_pb2.ListTasksResponse, "list the tasks")
TASK = Method("/containerd.services.tasks.v1.Tasks/Get", tasks_pb2.GetResponse, "get a task")
IMAGE = Method("/containerd.services.images.v1.Images/Get", images_pb2.GetImageResponse, "get an image")
WAIT = Method("/containerd.services.tasks.v1.Tasks/Wait", tasks_pb2.WaitResponse, "wait for a task to exit")
WAITS = Method("/whalebridge.proxy.v1.Waits/Wait", waits_pb2.WaitsResponse, "wait for tasks to exit")
CRI_CONTAINERS = Method(
    "/runtime.v1.RuntimeService/ListContainers", cri_pb2.ListContainersResponse, "list CRI's exited containers"
)
CRI_STATUS = Method(
    "/runtime.v1.RuntimeService/ContainerStatus", cri_pb2.ContainerStatusResponse, "return CRI's status of a container"
)
CRI_PODS = Method("/runtime.v1.RuntimeService/ListPodSandbox", cri_pb2.ListPodSandboxResponse, "list CRI's pods")
PUBLISH = Method("/containerd.services.events.v1.Events/Publish", PublishResponse, "publish a marker")
SUBSCRIBE = Method("/containerd.services.events.v1.Events/Subscribe", Envelope, "stream events")


CRI_CONTAINERS_REQUEST = cri_pb2.ListContainersRequest(
    filter=cri_pb2.ContainerFilter(state=cri_pb2.ContainerStateValue(state=cri_pb2.CONTAINER_EXITED))
)
"""The only request to ``CRI_CONTAINERS``."""


def is_valid_namespace(name: str) -> bool:
    """Return whether containerd accepts this name for a namespace."""
    return _NAMESPACE_PATTERN.fullmatch(name) is not None


def is_valid_key(key: ContainerKey) -> bool:
    """Return whether containerd accepts this namespace, and an id is given."""
    return bool(key.id) and is_valid_namespace(key.namespace)


def target(path: str) -> str:
    """Return gRPC's target for a socket: a URI with special characters escaped."""
    return f"unix://{quote(path)}"


def channel_options() -> list[tuple[str, int | str]]:
    """Return the options of gRPC's channels.

    Each channel has its own connection and reconnects within a second when containerd is back. Keepalive pings stay
    off: containerd closes connections that ping more often than every five minutes, and markers verify more.
    """
    return [
        ("grpc.max_receive_message_length", MAX_LIST_BYTES),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 1000),
        ("grpc.max_reconnect_backoff_ms", 1000),
        ("grpc.default_authority", "localhost"),
        ("grpc.enable_http_proxy", 0),
    ]
