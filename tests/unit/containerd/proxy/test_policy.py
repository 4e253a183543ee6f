"""Test what the proxy forwards and denies, per message."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bridge.containerd import methods
from bridge.containerd.event_stream import FILTERS
from bridge.containerd.http2 import StatusCode
from bridge.containerd.protos import containers_pb2, introspection_pb2, tasks_pb2
from bridge.containerd.proxy import policy
from bridge.containerd.proxy.policy import POLICIES, CallDenied
from tests.golden import Golden
from tests.simulator import wire
from tests.simulator.records import encode_container

BY_METHOD = {rule.method: rule for rule in POLICIES}
EMPTY = wire.field(2, wire.field(1, "google.protobuf.Empty"))


def denied_code(call: object) -> StatusCode:
    return call.value.code  # type: ignore[attr-defined, no-any-return]


def test_proxy_removes_spec_and_other_unneeded_container_fields() -> None:
    unneeded = wire.field(6, "overlayfs") + wire.field(7, "key") + wire.field(10, wire.field(1, "extension"))
    full = encode_container("web", {b"color": b"blue"}, spec_bytes=1000) + unneeded
    for method in (methods.CONTAINERS, methods.CONTAINERS_STREAM, methods.CONTAINER):
        response = BY_METHOD[method].filter_response(wire.field(1, full))
        assert response == wire.field(
            1, encode_container("web", {b"color": b"blue"}, spec_bytes=0).removesuffix(wire.spec(0))
        )


def test_proxy_removes_runtime_options() -> None:
    runtime = wire.field(4, wire.field(1, "runc") + wire.field(2, wire.any_message("options", b"secret")))
    response = BY_METHOD[methods.CONTAINER].filter_response(wire.field(1, wire.field(1, "web") + runtime))
    assert b"secret" not in response
    assert containers_pb2.GetContainerResponse.FromString(response).container.runtime.name == b"runc"


def test_proxy_forwards_non_utf8_labels() -> None:
    response = BY_METHOD[methods.CONTAINER].filter_response(
        wire.field(1, encode_container("web", {b"\xff": b"\xfe"}, spec_bytes=0))
    )
    (label,) = containers_pb2.GetContainerResponse.FromString(response).container.labels
    assert (label.key, label.value) == (b"\xff", b"\xfe")


def test_proxy_allows_waits_for_tasks_only() -> None:
    wait = b"\x08\x01" + wire.field(2, "shop") + wire.field(3, "web")
    (parsed,) = policy.parse_waits(wire.field(1, wait))
    assert (parsed.number, parsed.namespace, parsed.container_id) == (1, "shop", "web")
    assert len(policy.parse_waits(wire.field(1, wait) * 3)) == 3
    others = [
        wire.field(2, b""),
        wire.field(1, wait + wire.field(4, "exec")),
        wire.field(1, wait + wire.field(2, "-")),
        wire.field(1, wait + wire.field(2, "x" * 77)),
        wire.field(1, wait + wire.field(3, "")),
        wire.field(1, wait + wire.field(3, "x" * 77)),
        wire.field(1, wait)[:-1],
    ]
    for other in others:
        with pytest.raises(CallDenied) as caught:
            policy.parse_waits(wire.field(1, wait) + other)
        assert denied_code(caught) is StatusCode.INVALID_ARGUMENT


def test_proxy_removes_unknown_fields_from_exits() -> None:
    assert policy.filter_wait_response(b"\x08\x07" + wire.field(99, "new")) == b"\x08\x07"
    assert policy.filter_wait_response(b"") == b""
    for invalid in (None, b"\x0a\x7f"):
        with pytest.raises(CallDenied) as caught:
            policy.filter_wait_response(invalid)
        assert denied_code(caught) is StatusCode.DATA_LOSS


def test_proxy_denies_unreadable_response() -> None:
    with pytest.raises(CallDenied) as caught:
        BY_METHOD[methods.CONTAINERS].filter_response(b"\x0a\x7f")
    assert denied_code(caught) is StatusCode.DATA_LOSS


def test_proxy_encodes_pid_zero() -> None:
    server = policy.strip_unknown(methods.SERVER, wire.field(1, "uuid"))
    server.proxied_pid = 0
    assert introspection_pb2.ServerResponse.FromString(server.SerializeToString()).HasField("proxied_pid")


def test_proxy_forwards_request_unchanged() -> None:
    request = tasks_pb2.GetRequest(container_id="web").SerializeToString()
    assert BY_METHOD[methods.TASK].rebuild_request(request) == request
    assert BY_METHOD[methods.TASK].rebuild_request(b"") == b""


@pytest.mark.parametrize("rule", POLICIES, ids=lambda rule: rule.method.path.rpartition(".")[2])
def test_proxy_denies_unknown_fields_and_unreadable_requests(rule: policy.Policy) -> None:
    for unknown in (wire.field(2, "exec"), wire.field(99, b"new"), b"\x98\x06\x01", b"\xff\xff\xff\xff", b"\x0a\x7f"):
        with pytest.raises(CallDenied) as caught:
            rule.rebuild_request(unknown)
        assert denied_code(caught) is StatusCode.INVALID_ARGUMENT


def test_proxy_lists_only_exited_containers_of_cri() -> None:
    rule = BY_METHOD[methods.CRI_CONTAINERS]
    allowed = methods.CRI_CONTAINERS_REQUEST.SerializeToString()
    assert rule.rebuild_request(allowed) == allowed
    running = wire.field(1, wire.field(2, b"\x08\x01"))
    with_label = wire.field(1, wire.field(2, b"\x08\x02") + wire.field(4, wire.field(1, "app") + wire.field(2, "web")))
    for other in (b"", running, with_label, allowed + wire.field(1, wire.field(1, "web"))):
        with pytest.raises(CallDenied):
            rule.rebuild_request(other)


def test_proxy_removes_all_but_digest_and_time_from_images() -> None:
    secret = wire.field(1, b"example.com/token") + wire.field(2, b"canary-7f3a")
    digest, changed = wire.field(2, "sha256:1f"), wire.field(8, b"\x08\x01")
    target = wire.field(1, "application/json") + digest + b"\x18\x05" + wire.field(5, secret)
    image = (
        wire.field(1, "busybox") + wire.field(2, secret) + wire.field(3, target) + wire.field(7, b"\x08\x01") + changed
    )
    expected = wire.field(1, wire.field(3, digest) + changed)
    assert BY_METHOD[methods.IMAGE].filter_response(wire.field(1, image)) == expected
    request = wire.field(1, "busybox")
    assert BY_METHOD[methods.IMAGE].rebuild_request(request) == request


def test_proxy_denies_verbose_status_of_cri() -> None:
    request = wire.field(1, "web")
    assert BY_METHOD[methods.CRI_STATUS].rebuild_request(request) == request
    with pytest.raises(CallDenied):
        BY_METHOD[methods.CRI_STATUS].rebuild_request(request + b"\x10\x01")


def test_proxy_selects_pods_of_cri_by_labels_only() -> None:
    rule, label = BY_METHOD[methods.CRI_PODS], wire.field(1, "app") + wire.field(2, "web")
    for request in (b"", wire.field(1, wire.field(3, label))):
        assert rule.rebuild_request(request) == request
    for other in (wire.field(1, "id"), wire.field(3, label + wire.field(3, "more"))):
        with pytest.raises(CallDenied):
            rule.rebuild_request(wire.field(1, other))


def test_proxy_removes_all_but_labels_from_pods_of_cri() -> None:
    entry = wire.field(1, b"app") + wire.field(2, b"web")
    pod = wire.field(1, "id") + b"\x20\x07" + wire.field(5, entry)
    canaries = wire.field(2, wire.field(1, "name")) + b"\x18\x01" + wire.field(6, entry) + wire.field(7, "handler")
    assert BY_METHOD[methods.CRI_PODS].filter_response(wire.field(1, pod + canaries)) == wire.field(1, pod)


def test_proxy_removes_all_but_run_facts_from_responses_of_cri() -> None:
    secret = b"canary-7f3a"
    entry = wire.field(1, b"example.com/token") + wire.field(2, secret)
    container = wire.field(1, "web") + b"\x30\x02\x38\x07"
    canaries = b"".join(wire.field(number, entry) for number in (3, 4, 8, 9)) + wire.field(5, secret)
    listed = BY_METHOD[methods.CRI_CONTAINERS].filter_response(wire.field(1, container + canaries))
    assert listed == wire.field(1, container)
    status = wire.field(1, "web") + b"\x18\x02\x28\x03\x30\x04\x38\x05" + wire.field(10, "Error")
    canaries = b"".join(wire.field(number, entry) for number in (2, 8, 12, 13, 14, 16, 18))
    canaries += b"".join(wire.field(number, secret) for number in (9, 11, 15, 17))
    info = wire.field(2, wire.field(1, "info") + wire.field(2, secret))
    filtered = BY_METHOD[methods.CRI_STATUS].filter_response(wire.field(1, status + canaries) + info)
    assert filtered == wire.field(1, status)


def test_proxy_allows_only_known_subscription_filters() -> None:
    policy.check_subscription(b"")
    policy.check_subscription(wire.field(1, FILTERS[0]))
    for filters in ((FILTERS[0], FILTERS[0]), (FILTERS[0], ""), ("",), ('topic~="^/images/"',)):
        with pytest.raises(CallDenied):
            policy.check_subscription(b"".join(wire.field(1, text) for text in filters))


def test_proxy_allows_only_well_formed_markers() -> None:
    request = wire.field(1, "/whalebridge/marker/n0nce/17") + EMPTY
    assert policy.rebuild_marker(request, "whalebridge") == request
    topic = wire.field(1, "/whalebridge/marker/n0nce/17")
    foreign = (
        *(wire.field(1, f"/{path}") + EMPTY for path in ("tasks/exit", "whalebridge/other", "whalebridge/mArker/n/1")),
        *(wire.field(1, f"/whalebridge/marker/{end}") + EMPTY for end in ("n/1/2", "n/1x", "n/1\n", f"{'n' * 77}/1")),
        topic,
        topic + wire.field(2, wire.any_message("google.protobuf.Empty", b"x")),
        topic + wire.field(2, wire.any_message("containerd.events.TaskExit", b"")),
        request + wire.field(9, b"more"),
    )
    for namespace, invalid in (*(("whalebridge", each) for each in foreign), ("default", request), ("", request)):
        with pytest.raises(CallDenied) as caught:
            policy.rebuild_marker(invalid, namespace)
        assert denied_code(caught) is StatusCode.PERMISSION_DENIED, invalid


def test_proxy_takes_only_valid_namespace_from_metadata() -> None:
    assert policy.get_namespace([]) == ""
    assert policy.get_namespace([("x", "y"), ("containerd-namespace", "k8s.io")]) == "k8s.io"
    for values in (["a", "a"], [""], ["-"], ["a b"], ["a/b"], ["x..y"], ["x" * 77], [b"bytes"]):
        with pytest.raises(CallDenied) as caught:
            policy.get_namespace([("containerd-namespace", value) for value in values])
        assert denied_code(caught) is StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("case", "call", "code"),
    [
        (
            "field",
            lambda: BY_METHOD[methods.TASK].rebuild_request(wire.field(2, "exec")),
            StatusCode.INVALID_ARGUMENT,
        ),
        (
            "no field",
            lambda: BY_METHOD[methods.TASKS].rebuild_request(wire.field(1, "x")),
            StatusCode.INVALID_ARGUMENT,
        ),
        (
            "unreadable request",
            lambda: BY_METHOD[methods.TASK].rebuild_request(b"\x0a\x7f"),
            StatusCode.INVALID_ARGUMENT,
        ),
        (
            "unreadable response",
            lambda: BY_METHOD[methods.CONTAINERS].filter_response(b"\x0a\x7f"),
            StatusCode.DATA_LOSS,
        ),
        ("filter", lambda: policy.check_subscription(wire.field(1, "")), StatusCode.INVALID_ARGUMENT),
        ("namespace", lambda: policy.get_namespace([("containerd-namespace", "")]), StatusCode.INVALID_ARGUMENT),
        (
            "event",
            lambda: policy.rebuild_marker(wire.field(1, "/tasks/exit") + EMPTY, "shop"),
            StatusCode.PERMISSION_DENIED,
        ),
    ],
)
def test_proxy_denial_has_code_and_text(
    case: str, call: Callable[[], object], code: StatusCode, golden: Golden
) -> None:
    with golden.error("proxy_errors", f"denied, {case}", CallDenied) as caught:
        call()
    assert caught.value.code is code
