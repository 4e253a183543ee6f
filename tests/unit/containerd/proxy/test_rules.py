"""What passes the proxy, message by message."""

from __future__ import annotations

import pytest
from grpc import StatusCode

from bridge.containerd import rpc
from bridge.containerd.protos import containers_pb2, introspection_pb2, tasks_pb2
from bridge.containerd.proxy import rules
from bridge.containerd.proxy.rules import RULES, CallRefused
from bridge.containerd.stream import FILTERS
from tests.simulator import wire
from tests.simulator.records import record

BY_METHOD = {rule.method: rule for rule in RULES}
EMPTY = wire.field(2, wire.field(1, "google.protobuf.Empty"))


def refused(call: object) -> StatusCode:
    return call.value.code  # type: ignore[attr-defined, no-any-return]


def test_a_record_passes_without_spec_and_what_else_nobody_needs() -> None:
    more = wire.field(6, "overlayfs") + wire.field(7, "key") + wire.field(10, wire.field(1, "extension"))
    full = record("web", {b"colour": b"blue"}, spec_bytes=1000) + more
    for method in (rpc.CONTAINERS, rpc.CONTAINERS_STREAM, rpc.CONTAINER):
        answer = BY_METHOD[method].answer(wire.field(1, full))
        assert answer == wire.field(1, record("web", {b"colour": b"blue"}, spec_bytes=0).removesuffix(wire.spec(0)))


def test_the_options_of_a_runtime_are_dropped() -> None:
    runtime = wire.field(4, wire.field(1, "runc") + wire.field(2, wire.any_message("options", b"secret")))
    answer = BY_METHOD[rpc.CONTAINER].answer(wire.field(1, wire.field(1, "web") + runtime))
    assert b"secret" not in answer
    assert containers_pb2.GetContainerResponse.FromString(answer).container.runtime.name == b"runc"


def test_labels_that_are_no_text_pass() -> None:
    answer = BY_METHOD[rpc.CONTAINER].answer(wire.field(1, record("web", {b"\xff": b"\xfe"}, spec_bytes=0)))
    (label,) = containers_pb2.GetContainerResponse.FromString(answer).container.labels
    assert (label.key, label.value) == (b"\xff", b"\xfe")


def test_an_answer_that_cannot_be_read() -> None:
    with pytest.raises(CallRefused) as caught:
        BY_METHOD[rpc.CONTAINERS].answer(b"\x0a\x7f")
    assert refused(caught) is StatusCode.DATA_LOSS


def test_a_pid_of_nought_is_told() -> None:
    server = rules.known(rpc.SERVER, wire.field(1, "uuid"))
    server.proxied_pid = 0
    assert introspection_pb2.ServerResponse.FromString(server.SerializeToString()).HasField("proxied_pid")


def test_a_question_passes_as_it_was_put() -> None:
    asked = tasks_pb2.GetRequest(container_id="web").SerializeToString()
    assert BY_METHOD[rpc.TASK].question(asked) == asked
    assert BY_METHOD[rpc.TASK].question(b"") == b""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.method.path.rpartition(".")[2])
def test_no_question_passes_with_more_in_it(rule: rules.Rule) -> None:
    for more in (wire.field(2, "exec"), wire.field(99, b"new"), b"\x98\x06\x01"):
        with pytest.raises(CallRefused) as caught:
            rule.question(more)
        assert refused(caught) is StatusCode.INVALID_ARGUMENT


def test_subscriptions() -> None:
    rules.check_subscription(b"")
    rules.check_subscription(wire.field(1, FILTERS[0]))
    for filters in ((FILTERS[0], FILTERS[0]), ("",), ("x" * len(FILTERS[0]),)):
        with pytest.raises(CallRefused):
            rules.check_subscription(b"".join(wire.field(1, each) for each in filters))


def test_marks() -> None:
    request = wire.field(1, "/whalebridge/marker/n0nce/17") + EMPTY
    assert rules.mark(request, "whalebridge") == request
    for other in (request.replace(b"mark", b"mArk"), request.replace(b"/17", b"/1x"), request.replace(b"/17", b"/1\n")):
        with pytest.raises(CallRefused) as caught:
            rules.mark(other, "whalebridge")
        assert refused(caught) is StatusCode.PERMISSION_DENIED
    with pytest.raises(CallRefused):
        rules.mark(request, "default")


def test_the_namespace_alone_is_taken_from_the_metadata() -> None:
    assert rules.namespace([]) == ""
    assert rules.namespace([("x", "y"), ("containerd-namespace", "k8s.io")]) == "k8s.io"
    for values in (["a", "a"], [""], ["a/b"], ["x" * 77], [b"bytes"]):
        with pytest.raises(CallRefused) as caught:
            rules.namespace([("containerd-namespace", value) for value in values])
        assert refused(caught) is StatusCode.INVALID_ARGUMENT
