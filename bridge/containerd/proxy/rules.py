"""The proxy's policy: it allows the calls that the bridge makes, with the fields that the bridge knows. Pure.

A request is rebuilt from the fields that its method allows. A request with any other field (a filter, an exec's id, a
field that is newer than this file) is denied, because without that field it would be a different request. Fields that
our trimmed messages do not define, such as a container's spec and extensions, are removed from responses.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import DecodeError, Message
from grpc import StatusCode

from bridge.containerd import rpc
from bridge.containerd.decode import MARK_TOPIC
from bridge.containerd.protos import containers_pb2, health_pb2, namespaces_pb2, tasks_pb2
from bridge.containerd.protos.events_pb2 import PublishRequest, SubscribeRequest
from bridge.containerd.stream import FILTERS

_NAMESPACE_LETTERS = 76  # containerd's limit
_MARK = re.compile(re.escape(MARK_TOPIC) + "[A-Za-z0-9]{1,76}/[0-9]{1,18}")


class CallRefused(Exception):  # noqa: N818 (a response to the client)
    """A call is denied; the client gets ``code`` and the text."""

    def __init__(self, code: StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Rule:
    """The policy for one method: type of the request, allowed fields, and whether responses can be large."""

    method: rpc.Method[Any]
    request: type[Message]
    fields: tuple[str, ...] = ()
    large: bool = False

    def question(self, raw: bytes) -> bytes:
        """Return the request for containerd, rebuilt from the allowed fields.

        Raises:
            CallDenied: The request cannot be decoded, or has a field that is not allowed.
        """
        request = _parsed(self.request, raw)
        allowed = self.request(**{name: getattr(request, name) for name in self.fields})
        _check_same(request, allowed, f"the proxy allows only these fields: {', '.join(self.fields) or 'none'}")
        return allowed.SerializeToString()

    def answer(self, raw: bytes) -> bytes:
        """Return a response for the client, without unknown fields.

        Raises:
            CallDenied: The response cannot be decoded.
        """
        return bytes(known(self.method, raw).SerializeToString())


RULES = (
    Rule(rpc.VERSION, Empty),
    Rule(rpc.SERVER, Empty),
    Rule(rpc.HEALTH, health_pb2.HealthCheckRequest),
    Rule(rpc.NAMESPACES, namespaces_pb2.ListNamespacesRequest),
    Rule(rpc.CONTAINERS, containers_pb2.ListContainersRequest, large=True),
    Rule(rpc.CONTAINERS_STREAM, containers_pb2.ListContainersRequest, large=True),
    Rule(rpc.CONTAINER, containers_pb2.GetContainerRequest, ("id",)),
    Rule(rpc.TASKS, tasks_pb2.ListTasksRequest, large=True),
    Rule(rpc.TASK, tasks_pb2.GetRequest, ("container_id",)),
    Rule(rpc.WAIT, tasks_pb2.WaitRequest, ("container_id",)),
)


def known(method: rpc.Method[Any], raw: bytes) -> Any:
    """Decode a response and remove the fields that the bridge does not know.

    Raises:
        CallDenied: The response cannot be decoded.
    """
    try:
        response = method.answer.FromString(raw)
    except DecodeError as error:
        raise CallRefused(StatusCode.DATA_LOSS, "the proxy cannot decode containerd's response") from error
    response.DiscardUnknownFields()
    return response


def namespace(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the namespace of a call, the only metadata that the proxy relays; "" if there is none.

    Raises:
        CallDenied: The namespace is invalid, or there are several.
    """
    given = [value for key, value in metadata if key == rpc.NAMESPACE_HEADER]
    if not given:
        return ""
    (name, *more) = given
    if more or not isinstance(name, str) or len(name) > _NAMESPACE_LETTERS or not rpc.is_namespace(name):
        raise CallRefused(StatusCode.INVALID_ARGUMENT, "the namespace in the metadata is invalid")
    return name


def check_subscription(raw: bytes) -> None:
    """Allow a subscription without filters or with the bridge's; the proxy itself subscribes with the bridge's.

    Raises:
        CallDenied: The request cannot be decoded, or has other filters or fields.
    """
    request = _parsed(SubscribeRequest, raw)
    filters = FILTERS if request.filters else ()
    _check_same(request, SubscribeRequest(filters=filters), f"the proxy allows one filter: {FILTERS[0]}")
    if tuple(request.filters) != filters:
        raise CallRefused(StatusCode.INVALID_ARGUMENT, f"the proxy allows one filter: {FILTERS[0]}")


def mark(raw: bytes, name: str) -> bytes:
    """Return the request to publish a marker in ``namespace``.

    Raises:
        CallDenied: The request would publish another event.
    """
    request = _parsed(PublishRequest, raw)
    allowed = PublishRequest(topic=request.topic, event={"type_url": Empty.DESCRIPTOR.full_name})
    if not (_MARK.fullmatch(request.topic) and name == rpc.MARK_NAMESPACE and request == allowed):
        text = f"the proxy publishes only {MARK_TOPIC}NONCE/NUMBER, empty, in namespace {rpc.MARK_NAMESPACE}"
        raise CallRefused(StatusCode.PERMISSION_DENIED, text)
    return allowed.SerializeToString()


def _parsed(kind: type[Message], raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        text = f"the request is not a {kind.DESCRIPTOR.full_name}"
        raise CallRefused(StatusCode.INVALID_ARGUMENT, text) from error


def _check_same(asked: Message, passes: Message, text: str) -> None:
    if asked.ByteSize() != passes.ByteSize():  # includes fields that our messages do not define
        raise CallRefused(StatusCode.INVALID_ARGUMENT, text)
