"""The proxy's policy: it allows the calls that the bridge makes, with the fields that the bridge knows. Pure.

A request is rebuilt from the fields that its method allows. A request with any other field (a filter, an exec's id, a
field that is newer than this file) is denied, because without that field it would be a different request. Fields that
our trimmed messages do not define, such as a container's spec and extensions, are removed from responses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message

from bridge.containerd import methods
from bridge.containerd.decode import MARKER_TOPIC_PREFIX
from bridge.containerd.event_stream import FILTERS
from bridge.containerd.http2 import StatusCode
from bridge.containerd.protos import containers_pb2, cri_pb2, health_pb2, images_pb2, namespaces_pb2, tasks_pb2
from bridge.containerd.protos.events_pb2 import PublishRequest, SubscribeRequest
from bridge.containerd.protos.waits_pb2 import TaskWait, WaitsRequest
from bridge.core.containerd_model import ContainerKey

_MAX_NAME_LENGTH = 76  # containerd's limit for namespaces and ids of containers
_MARKER_TOPIC = re.compile(re.escape(MARKER_TOPIC_PREFIX) + "[A-Za-z0-9]{1,76}/[0-9]{1,18}")


class CallDenied(Exception):  # noqa: N818 (a response to the client)
    """A call is denied; the client gets ``code`` and the text."""

    def __init__(self, code: StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Policy:
    """The policy for one method: type of the request, allowed fields, and whether responses can be large.

    ``only_request``: the only request that is allowed, if there is one.
    """

    method: methods.Method[Any]
    request_type: type[Message]
    allowed_fields: tuple[str, ...] = ()
    large_response: bool = False
    only_request: Message | None = None

    def rebuild_request(self, raw: bytes) -> bytes:
        """Return the request for containerd, rebuilt from the allowed fields.

        Raises:
            CallDenied: The request cannot be decoded, or has a field that is not allowed.
        """
        request = _parse(self.request_type, raw)
        if self.only_request is not None:
            if request != self.only_request:  # compares also fields that our messages do not define
                raise CallDenied(StatusCode.INVALID_ARGUMENT, "the proxy allows only the bridge's request")
            return self.only_request.SerializeToString()
        fields = {field.name: value for field, value in request.ListFields() if field.name in self.allowed_fields}
        allowed = self.request_type(**fields)
        allowed.DiscardUnknownFields()  # in messages within
        names = f"only these fields: {', '.join(self.allowed_fields)}" if self.allowed_fields else "no fields"
        _check_allowed(request, allowed, f"the proxy allows {names}")
        return allowed.SerializeToString()

    def filter_response(self, raw: bytes) -> bytes:
        """Return a response for the client, without unknown fields.

        Raises:
            CallDenied: The response cannot be decoded.
        """
        return bytes(strip_unknown(self.method, raw).SerializeToString())


POLICIES = (
    Policy(methods.VERSION, Empty),
    Policy(methods.SERVER, Empty),
    Policy(methods.HEALTH, health_pb2.HealthCheckRequest),
    Policy(methods.NAMESPACES, namespaces_pb2.ListNamespacesRequest),
    Policy(methods.CONTAINERS, containers_pb2.ListContainersRequest, large_response=True),
    Policy(methods.CONTAINERS_STREAM, containers_pb2.ListContainersRequest, large_response=True),
    Policy(methods.CONTAINER, containers_pb2.GetContainerRequest, ("id",)),
    Policy(methods.IMAGE, images_pb2.GetImageRequest, ("name",)),
    Policy(methods.TASKS, tasks_pb2.ListTasksRequest, large_response=True),
    Policy(methods.TASK, tasks_pb2.GetRequest, ("container_id",)),
    Policy(methods.WAIT, tasks_pb2.WaitRequest, ("container_id",)),
    Policy(
        methods.CRI_CONTAINERS,
        cri_pb2.ListContainersRequest,
        large_response=True,
        only_request=methods.CRI_CONTAINERS_REQUEST,
    ),
    Policy(methods.CRI_STATUS, cri_pb2.ContainerStatusRequest, ("container_id",)),
    Policy(methods.CRI_PODS, cri_pb2.ListPodSandboxRequest, ("filter",), large_response=True),
)


def strip_unknown(method: methods.Method[Any], raw: bytes) -> Any:
    """Decode a response and remove the fields that the bridge does not know.

    Raises:
        CallDenied: The response cannot be decoded.
    """
    try:
        response = method.response_type.FromString(raw)
    except DecodeError as error:
        raise CallDenied(StatusCode.DATA_LOSS, "the proxy cannot decode containerd's response") from error
    response.DiscardUnknownFields()
    return response


def get_namespace(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the namespace of a call, the only metadata that the proxy relays; "" if there is none.

    Raises:
        CallDenied: The namespace is invalid, or there are several.
    """
    namespaces = [value for key, value in metadata if key == methods.NAMESPACE_HEADER]
    if not namespaces:
        return ""
    (name, *more) = namespaces
    if more or not isinstance(name, str) or len(name) > _MAX_NAME_LENGTH or not methods.is_valid_namespace(name):
        raise CallDenied(StatusCode.INVALID_ARGUMENT, "the namespace in the metadata is invalid")
    return name


def parse_waits(raw: bytes) -> Sequence[TaskWait]:
    """Return the waits of a request to the proxy's own ``Waits.Wait``.

    Raises:
        CallDenied: The request cannot be decoded, or has other fields, or a namespace or an id is invalid.
    """
    request = _parse(WaitsRequest, raw)
    allowed = WaitsRequest(waits=request.waits)
    allowed.DiscardUnknownFields()
    _check_allowed(request, allowed, "the proxy allows only these fields: number, namespace, container_id")
    for wait in allowed.waits:
        key = ContainerKey(wait.namespace, wait.container_id)
        if not methods.is_valid_key(key) or len(key.namespace) > _MAX_NAME_LENGTH or len(key.id) > _MAX_NAME_LENGTH:
            raise CallDenied(StatusCode.INVALID_ARGUMENT, "the namespace or the id of a wait is invalid")
    return allowed.waits


def filter_wait_response(raw: bytes | None) -> bytes:
    """Return the response to ``Tasks.Wait`` without fields that the bridge does not know.

    Raises:
        CallDenied: The response is missing, or cannot be decoded.
    """
    if raw is None:
        raise CallDenied(StatusCode.DATA_LOSS, "containerd's response is missing")
    return bytes(strip_unknown(methods.WAIT, raw).SerializeToString())


def check_subscription(raw: bytes) -> None:
    """Check that a subscription has no filters, or exactly ``FILTERS``.

    The proxy's own subscription always uses ``FILTERS``.

    Raises:
        CallDenied: The request cannot be decoded, or has other filters or fields.
    """
    request = _parse(SubscribeRequest, raw)
    filters = FILTERS if request.filters else ()
    _check_allowed(request, SubscribeRequest(filters=filters), f"the proxy allows one filter: {FILTERS[0]}")
    if tuple(request.filters) != filters:
        raise CallDenied(StatusCode.INVALID_ARGUMENT, f"the proxy allows one filter: {FILTERS[0]}")


def rebuild_marker(raw: bytes, namespace: str) -> bytes:
    """Return the request to publish a marker in ``namespace``.

    Raises:
        CallDenied: The request would publish another event.
    """
    request = _parse(PublishRequest, raw)
    allowed = PublishRequest(topic=request.topic, event={"type_url": Empty.DESCRIPTOR.full_name})
    if not (_MARKER_TOPIC.fullmatch(request.topic) and namespace == methods.MARKER_NAMESPACE and request == allowed):
        marker = f"{MARKER_TOPIC_PREFIX}NONCE/NUMBER, empty, in namespace {methods.MARKER_NAMESPACE}"
        raise CallDenied(StatusCode.PERMISSION_DENIED, f"the proxy publishes only {marker}")
    return allowed.SerializeToString()


def _parse(message_type: type[Message], raw: bytes) -> Any:
    try:
        return message_type.FromString(raw)
    except DecodeError as error:
        text = f"the request is not a {message_type.DESCRIPTOR.full_name}"
        raise CallDenied(StatusCode.INVALID_ARGUMENT, text) from error


def _check_allowed(request: Message, allowed: Message, text: str) -> None:
    if request.ByteSize() != allowed.ByteSize():  # includes fields that our messages do not define
        raise CallDenied(StatusCode.INVALID_ARGUMENT, text)
