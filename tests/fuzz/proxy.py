"""Fuzz targets for the proxy: what clients request, and what containerd responds."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any

from google.protobuf.descriptor import Descriptor
from google.protobuf.empty_pb2 import Empty

from bridge.clock import SystemClock
from bridge.containerd import methods
from bridge.containerd.event_stream import FILTERS
from bridge.containerd.protos import containers_pb2, tasks_pb2
from bridge.containerd.protos.events_pb2 import PublishRequest, SubscribeRequest
from bridge.containerd.protos.waits_pb2 import TaskWait, WaitsRequest
from bridge.containerd.proxy import policy
from bridge.containerd.proxy.policy import POLICIES, CallDenied
from bridge.containerd.proxy.relay import Relay
from bridge.core.containerd_model import ContainerKey
from tests.fuzz.engine import Target
from tests.fuzz.mutation import encode_fields, mutate_protobuf, parse_fields
from tests.simulator.records import encode_container
from tests.simulator.wire import field

_POLICIES = {each.method.path: each for each in POLICIES}
_MARKER = PublishRequest(topic="/whalebridge/marker/n0nce/17", event={"type_url": "google.protobuf.Empty"})
_REQUESTS = {
    methods.TASK.path: tasks_pb2.GetRequest(container_id="web"),
    methods.WAIT.path: tasks_pb2.WaitRequest(container_id="web"),
    methods.CONTAINER.path: containers_pb2.GetContainerRequest(id="web"),
    methods.SUBSCRIBE.path: SubscribeRequest(filters=FILTERS),
    methods.PUBLISH.path: _MARKER,
    methods.WAITS.path: WaitsRequest(waits=[TaskWait(number=1, namespace="shop", container_id="web")]),
}
_OTHER_METHODS = (methods.SUBSCRIBE.path, methods.PUBLISH.path, methods.WAITS.path)
_METHOD, _NAMESPACE, _BODY = 1, 2, 3  # fields of an input
_TOKENS = (
    *(each.encode() for each in (*_POLICIES, *_OTHER_METHODS)),
    b"/containerd.services.tasks.v1.Tasks/Kill",
    b"/containerd.services.containers.v1.Containers/Delete",
    FILTERS[0].encode(),
    b"google.protobuf.Empty",
    b"type.googleapis.com/google.protobuf.Empty",
    b"/whalebridge/marker/n/1",
    b"/tasks/exit",
    b"whalebridge",
    b"k8s.io",
    b"\x10\x00",
    b"\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01",
    b"\xd9\xa1",
    b"\n",
)


# --- requests ---


def _request_samples() -> Sequence[bytes]:
    calls = {**{path: Empty() for path in _POLICIES}, **_REQUESTS}
    return [
        encode_fields(((_METHOD, path.encode()), (_NAMESPACE, b"whalebridge"), (_BODY, request.SerializeToString())))
        for path, request in calls.items()
    ]


def _request(data: bytes) -> None:
    fields = dict(parse_fields(data) or ())
    method, namespace, body = (
        value if isinstance(value := fields.get(number, b""), bytes) else b"" for number in (_METHOD, _NAMESPACE, _BODY)
    )
    path = method.decode("latin-1")
    _check_handler(path)
    try:
        name = policy.get_namespace([(methods.NAMESPACE_HEADER, namespace.decode("latin-1"))])
        assert methods.is_valid_namespace(name)
    except CallDenied:
        name = ""
    for each in POLICIES if path not in _POLICIES else (_POLICIES[path],):
        _check_request(each, body)
    _check_subscription(body)
    _check_marker(body, name)
    _check_waits(body)


def _check_handler(path: str) -> None:
    handler = _relay().service(SimpleNamespace(method=path))
    is_unary = path in (*_POLICIES, methods.SUBSCRIBE.path, methods.PUBLISH.path)
    assert handler.request_streaming == (not is_unary)


def _check_request(call_policy: policy.Policy, body: bytes) -> None:
    """Check that what is relayed has the allowed fields only, and loses none of the request's."""
    try:
        relayed = call_policy.rebuild_request(body)
    except CallDenied:
        return
    descriptor = call_policy.request_type.DESCRIPTOR
    allowed = {descriptor.fields_by_name[name].number for name in call_policy.allowed_fields}
    requested, fields = parse_fields(body), parse_fields(relayed)
    assert requested is not None
    assert fields is not None
    assert all(number in allowed and isinstance(value, bytes) for number, value in fields), fields
    # Of a repeated field, the last one counts; protobuf omits empty text.
    assert {number: value for number, value in requested if value != b""} == dict(fields) or dict(requested) == {
        **dict.fromkeys(dict(requested), b""),
        **dict(fields),
    }


def _check_subscription(body: bytes) -> None:
    try:
        policy.check_subscription(body)
    except CallDenied:
        return
    assert parse_fields(body) in ([], [(1, FILTERS[0].encode())])


def _check_waits(body: bytes) -> None:
    """Check that allowed waits have the known fields only, and valid names."""
    try:
        waits = policy.parse_waits(body)
    except CallDenied:
        return
    fields = parse_fields(body)
    assert fields is not None
    assert [number for number, _ in fields] == [1] * len(waits)
    for (_, value), wait in zip(fields, waits, strict=True):
        assert isinstance(value, bytes)
        assert {number for number, _ in parse_fields(value) or ()} <= {1, 2, 3}
        assert methods.is_valid_key(ContainerKey(wait.namespace, wait.container_id))


def _check_marker(body: bytes, namespace: str) -> None:
    try:
        relayed = policy.rebuild_marker(body, namespace)
    except CallDenied:
        return
    assert namespace == methods.MARKER_NAMESPACE
    fields = dict(parse_fields(relayed) or ())
    assert set(fields) == {1, 2}
    topic = fields[1]
    assert isinstance(topic, bytes)
    assert topic.isascii()
    _, service, kind, nonce, number = topic.decode().split("/")
    assert (service, kind, nonce.isalnum(), number.isdigit()) == ("whalebridge", "marker", True, True)
    assert fields[2] == field(1, "google.protobuf.Empty")


@cache
def _relay() -> Relay:
    async def create() -> Relay:
        return Relay("/nonexistent", SystemClock())

    return asyncio.new_event_loop().run_until_complete(create())


# --- responses ---


def _response_samples() -> Sequence[bytes]:
    container = encode_container("web", {b"color": b"blue", b"\xff": b"\xfe"}, spec_bytes=20)
    task = field(1, "web") + b"\x18\x01\x20\x02" + field(99, b"new")
    server = field(1, "c79d280c") + b"\x10\x01" + field(3, "deprecation")
    return [field(1, container), field(1, container) * 2, field(1, task) * 2, server, b"\x08\x01"]


def _response(data: bytes) -> None:
    for each in POLICIES:
        try:
            relayed = each.filter_response(data)
        except CallDenied:
            continue
        descriptor = each.method.response_type.DESCRIPTOR
        _check_known(descriptor, relayed)
        before = each.method.response_type.FromString(data)
        assert _known(before) == _known(each.method.response_type.FromString(relayed))


def _check_known(descriptor: Descriptor, data: bytes) -> None:
    fields = parse_fields(data)
    assert fields is not None
    for number, value in fields:
        assert number in descriptor.fields_by_number, f"{descriptor.full_name} has no field {number}"
        known = descriptor.fields_by_number[number]
        if known.message_type is not None:
            assert isinstance(value, bytes)
            _check_known(known.message_type, value)


def _known(message: Any) -> dict[str, Any]:
    """Return the fields that are set, at all levels."""
    return {
        each.name: list(map(_known, value)) if each.is_repeated and each.message_type
        else _known(value) if each.message_type
        else value
        for each, value in message.ListFields()
    }  # fmt: skip


TARGETS = {
    "proxy-requests": Target(_request, _request_samples, _TOKENS, mutate_protobuf),
    "proxy-responses": Target(_response, _response_samples, _TOKENS, mutate_protobuf),
}
