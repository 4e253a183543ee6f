"""What passes the proxy: the calls that the bridge makes, with the fields that it knows, and nothing else. Pure.

A request is rebuilt from the fields that its method may have. One that carries anything else (a filter, an exec's id, a
field that is newer than this file) is refused, because to leave it out would answer another question than was asked.
From answers, fields that our trimmed messages do not know are dropped: a container's spec and extensions among them.
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

_NAMESPACE_LETTERS = 76  # containerd's rule
_MARK = re.compile(re.escape(MARK_TOPIC) + "[A-Za-z0-9]{1,76}/[0-9]{1,18}")


class CallRefused(Exception):  # noqa: N818 (it is the proxy's answer)
    """A call does not pass; ``code`` and the text are what the client gets."""

    def __init__(self, code: StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


@dataclass(frozen=True)
class Rule:
    """How one method passes: what it is asked with, the fields that may be set, whether the answers can be large."""

    method: rpc.Method[Any]
    request: type[Message]
    fields: tuple[str, ...] = ()
    large: bool = False

    def question(self, raw: bytes) -> bytes:
        """Return the request that containerd gets.

        Raises:
            CallRefused: It is no such request, or has a field that does not pass.
        """
        asked = _parsed(self.request, raw)
        passes = self.request(**{name: getattr(asked, name) for name in self.fields})
        _check_same(asked, passes, f"the proxy passes only these fields: {', '.join(self.fields) or 'none'}")
        return passes.SerializeToString()

    def answer(self, raw: bytes) -> bytes:
        """Return what the client gets of one of containerd's messages.

        Raises:
            CallRefused: It cannot be read.
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
    """Return an answer with nothing in it but the fields that the bridge knows.

    Raises:
        CallRefused: It cannot be read.
    """
    try:
        answer = method.answer.FromString(raw)
    except DecodeError as error:
        raise CallRefused(StatusCode.DATA_LOSS, "containerd gave an answer that the proxy cannot read") from error
    answer.DiscardUnknownFields()
    return answer


def namespace(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the namespace that a call is about, the only metadata that passes; "" where none is given.

    Raises:
        CallRefused: It is none, or there are several.
    """
    given = [value for key, value in metadata if key == rpc.NAMESPACE_HEADER]
    if not given:
        return ""
    (name, *more) = given
    if more or not isinstance(name, str) or len(name) > _NAMESPACE_LETTERS or not rpc.is_namespace(name):
        raise CallRefused(StatusCode.INVALID_ARGUMENT, "the namespace in the metadata is none")
    return name


def check_subscription(raw: bytes) -> None:
    """Let a subscription without filters, or with the bridge's, pass; containerd is asked with the bridge's.

    Raises:
        CallRefused: It is no such request, or asks for something else.
    """
    asked = _parsed(SubscribeRequest, raw)
    filters = FILTERS if asked.filters else ()
    _check_same(asked, SubscribeRequest(filters=filters), f"the proxy knows one filter: {FILTERS[0]}")
    if tuple(asked.filters) != filters:
        raise CallRefused(StatusCode.INVALID_ARGUMENT, f"the proxy knows one filter: {FILTERS[0]}")


def mark(raw: bytes, name: str) -> bytes:
    """Return the request to publish a mark in namespace ``name``.

    Raises:
        CallRefused: It is something else that would be published.
    """
    asked = _parsed(PublishRequest, raw)
    passes = PublishRequest(topic=asked.topic, event={"type_url": Empty.DESCRIPTOR.full_name})
    fits = _MARK.fullmatch(asked.topic) and name == rpc.MARK_NAMESPACE and asked == passes
    if not fits:
        text = f"the proxy publishes {MARK_TOPIC}NONCE/NUMBER in namespace {rpc.MARK_NAMESPACE} without content only"
        raise CallRefused(StatusCode.PERMISSION_DENIED, text)
    return passes.SerializeToString()


def _parsed(kind: type[Message], raw: bytes) -> Any:
    try:
        return kind.FromString(raw)
    except DecodeError as error:
        text = f"the request is no {kind.DESCRIPTOR.full_name}"
        raise CallRefused(StatusCode.INVALID_ARGUMENT, text) from error


def _check_same(asked: Message, passes: Message, text: str) -> None:
    if asked.ByteSize() != passes.ByteSize():  # counts fields that our messages do not know
        raise CallRefused(StatusCode.INVALID_ARGUMENT, text)
