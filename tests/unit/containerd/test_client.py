"""Test the client on a simulated containerd: clear errors, bounded calls, replaced sockets, large listings."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from msgspec.structs import replace

from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.containerd.connection import Connection
from bridge.containerd.http2 import StatusCode
from bridge.containerd.methods import VERSION
from bridge.containerd.protos import cri_pb2, health_pb2
from bridge.containerd.protos.version_pb2 import VersionResponse
from bridge.core.containerd_model import ContainerKey, Image, RecordedExit, TaskStatus
from bridge.core.errors import BridgeError, FatalError, TransientError, UnreadableError
from bridge.core.label_rules import LabelRules
from tests.eventually import eventually_async
from tests.golden import Golden
from tests.simulator.containerd import MAX_MESSAGE_BYTES, SimulatedContainerd
from tests.simulator.faults import ALL
from tests.simulator.state import SimulatedRpcError
from tests.unit.containerd.http2_peer import Peer, goaway, messages, response_headers, settings, trailers

pytestmark = pytest.mark.real_time

KEY = ContainerKey("shop", "web")

# Parts of gRPC's texts that differ between versions.
CONNECTING = re.compile("failed to connect.*")
DEADLINE = re.compile(r"\([^()]*\)$")


def fail_with(containerd: SimulatedContainerd, method: str, code: StatusCode, namespace: str = ALL) -> None:
    containerd.faults.errors[method, namespace] = SimulatedRpcError(code, "for a reason")


class TestEngine:
    async def test_engine_returns_id_version_address_and_pid(
        self, containerd: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        engine = await client.engine()
        assert (engine.id, engine.version, engine.type) == (containerd.id, "2.4.2+unknown", "containerd.io")
        assert (engine.api, engine.pid) == (containerd.address, os.getpid())
        assert await client.health()

    async def test_engine_has_no_id_when_introspection_is_unimplemented(
        self, containerd: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        fail_with(containerd, "Introspection.Server", StatusCode.UNIMPLEMENTED)
        assert (await client.engine()).id == ""

    async def test_engine_raises_transient_error_when_id_is_unavailable(
        self, containerd: SimulatedContainerd, client: ContainerdClient, golden: Golden
    ) -> None:
        fail_with(containerd, "Introspection.Server", StatusCode.INTERNAL)
        with golden.error(
            "containerd_errors",
            "Introspection.Server fails",
            TransientError,
            containerd.address,
            "INTERNAL: for a reason",
        ):
            await client.engine()

    async def test_engine_raises_fatal_error_for_other_grpc_server(self, tmp_path: Path, golden: Golden) -> None:
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_healthy)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler}),)
        )
        server.add_insecure_port(f"unix:{tmp_path}/other.sock")
        await server.start()
        async with ContainerdClient(f"{tmp_path}/other.sock", LabelRules.keep_all()) as client:
            with golden.error("containerd_errors", "another gRPC server", FatalError, tmp_path / "other.sock"):
                await client.engine()
        await server.stop(None)

    async def test_engine_error_is_transient_after_first_success(
        self, containerd: SimulatedContainerd, client: ContainerdClient, golden: Golden
    ) -> None:
        await client.engine()
        await containerd.stop()
        with golden.error("containerd_errors", "socket removed", TransientError, containerd.address):
            await client.engine()
        os.mkdir(containerd.address)
        with golden.error("containerd_errors", "socket replaced by a directory", TransientError, containerd.address):
            await client.engine()
        os.rmdir(containerd.address)
        await containerd.start()
        fail_with(containerd, "Version.Version", StatusCode.UNIMPLEMENTED)
        with golden.error(
            "containerd_errors", "Version.Version not implemented", TransientError, containerd.address, "UNIMPLEMENTED"
        ):
            await client.engine()
        containerd.faults.errors.clear()
        assert (await client.engine()).id == containerd.id

    async def test_fault_16_socket_is_replaced(self, client: ContainerdClient) -> None:
        old = await client.engine()
        os.unlink(client.path)  # the previous server still runs and is still connected
        async with SimulatedContainerd(client.path) as new:
            engine = await client.engine()
            assert engine.id == new.id != old.id
            new.state.run(KEY)
            assert await client.namespaces() == ["shop"]

    async def test_client_reconnects_after_containerd_restart(
        self, containerd: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        await client.engine()
        await containerd.restart()
        async with asyncio.timeout(15):
            while await _is_disconnected(client):  # noqa: ASYNC110 - polls, because gRPC reconnects by itself
                await asyncio.sleep(0.05)

    @pytest.mark.parametrize("name", ["with space", "100%41", "#?&", "ümlaut"])
    async def test_client_accepts_special_characters_in_path(self, tmp_path: Path, name: str) -> None:
        async with SimulatedContainerd(tmp_path / "c.sock") as containerd:
            os.symlink(containerd.address, tmp_path / name)
            async with ContainerdClient(f"unix://{tmp_path}/{name}", LabelRules.keep_all()) as client:
                assert (await client.engine()).id == containerd.id
                (await client.subscribe()).close()


async def _healthy(_: bytes, __: object) -> bytes:
    return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()


async def _is_disconnected(client: ContainerdClient) -> bool:
    try:
        return await client.namespaces() != []
    except TransientError:
        return True


async def _list_containers(client: ContainerdClient) -> None:
    async for _ in client.containers("shop"):
        pass


CALLS: dict[str, Callable[[ContainerdClient], Awaitable[object]]] = {
    "Version.Version": lambda client: client.engine(),
    "Health.Check": lambda client: client.health(),
    "Namespaces.List": lambda client: client.namespaces(),
    "Containers.List": _list_containers,
    "Containers.Get": lambda client: client.container(KEY),
    "Images.Get": lambda client: client.image("shop", "busybox", 0.5),
    "Tasks.List": lambda client: client.tasks("shop"),
    "Tasks.Get": lambda client: client.task(KEY),
    "Events.Publish": lambda client: client.publish_marker("n", 1),
}


def failure(method: str) -> type[BridgeError]:
    """Return the expected error: what affects one container or image only is not retried."""
    return UnreadableError if method in ("Containers.Get", "Images.Get") else TransientError


class TestFailures:
    @pytest.mark.parametrize("method", CALLS)
    async def test_call_times_out_when_containerd_hangs(
        self, containerd: SimulatedContainerd, short_timeout_client: ContainerdClient, method: str, golden: Golden
    ) -> None:
        containerd.faults.hang(method)
        async with asyncio.timeout(30):
            with golden.error(
                "containerd_errors", f"{method} hangs", TransientError, containerd.address, GRPC=DEADLINE
            ):
                await CALLS[method](short_timeout_client)

    @pytest.mark.parametrize("method", [method for method in CALLS if method != "Version.Version"])
    async def test_call_error_names_address_call_and_reason(
        self, containerd: SimulatedContainerd, client: ContainerdClient, method: str, golden: Golden
    ) -> None:
        fail_with(containerd, method, StatusCode.INTERNAL)
        with golden.error(
            "containerd_errors", f"{method} fails", failure(method), containerd.address, "INTERNAL: for a reason"
        ):
            await CALLS[method](client)

    @pytest.mark.parametrize("method", [method for method in CALLS if method != "Events.Publish"])
    async def test_call_raises_when_response_is_unreadable(
        self, containerd: SimulatedContainerd, client: ContainerdClient, method: str, golden: Golden
    ) -> None:
        containerd.state.run(KEY)
        containerd.state.tag("shop", "sha256:1f", "busybox")
        containerd.faults.unreadable_responses.add(method)
        with golden.error("containerd_errors", f"{method} unreadable", failure(method), method.replace(".", "/")):
            await CALLS[method](client)

    async def test_rpc_error_text_is_single_printable_line(
        self, containerd: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        error = SimulatedRpcError(StatusCode.INTERNAL, "a\n\tb \x1b[31mred" + "x" * 2000)
        containerd.faults.errors["Namespaces.List", ALL] = error
        with pytest.raises(TransientError) as caught:
            await client.namespaces()
        message = str(caught.value)
        assert "INTERNAL: a b ?[31mredxxx" in message
        assert message.isprintable()
        assert len(message) < 600

    @pytest.mark.parametrize(
        "code", [StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED, StatusCode.UNIMPLEMENTED]
    )
    async def test_marker_error_explains_required_permission(
        self, containerd: SimulatedContainerd, client: ContainerdClient, code: StatusCode, golden: Golden
    ) -> None:
        fail_with(containerd, "Events.Publish", code)
        with golden.error("containerd_errors", f"Events.Publish {code.name}", TransientError, "Events.Publish"):
            await client.publish_marker("n", 1)

    async def test_call_raises_transient_error_when_socket_is_missing(self, tmp_path: Path, golden: Golden) -> None:
        async with ContainerdClient(f"{tmp_path}/c.sock", LabelRules.keep_all()) as client:
            with golden.error(
                "containerd_errors", "call without a socket", TransientError, tmp_path / "c.sock", GRPC=CONNECTING
            ):
                await client.namespaces()

    async def test_call_raises_transient_error_when_connection_is_closed(
        self, containerd: SimulatedContainerd, client: ContainerdClient, golden: Golden
    ) -> None:
        containerd.faults.hang("Tasks.Get")
        waiting = asyncio.create_task(client.task(KEY))
        await eventually_async(lambda: "Tasks.Get" in containerd.calls)
        await client.close()
        with golden.error("containerd_errors", "closed during Tasks.Get", TransientError, containerd.address):
            await waiting

    async def test_closed_connection_rejects_calls(self, containerd: SimulatedContainerd, golden: Golden) -> None:
        connection = Connection(containerd.address, SystemClock())
        connection.close()
        with golden.error("containerd_errors", "call after close", TransientError, containerd.address):
            await connection.call(VERSION, Empty(), "", 1)

    async def test_calls_connect_again_while_peer_completes_others(self, tmp_path: Path) -> None:
        old = Peer(tmp_path / "c.sock")
        connection = Connection(old.path, SystemClock())
        calls = [asyncio.create_task(connection.call(VERSION, Empty(), "", 30)) for _ in range(2)]
        await asyncio.sleep(0.1)
        old.accept()
        await old.send(settings() + goaway(3))
        os.unlink(old.path)
        new = Peer(tmp_path / "c.sock")
        await asyncio.sleep(0.1)
        calls.append(asyncio.create_task(connection.call(VERSION, Empty(), "", 30)))
        await asyncio.sleep(0.1)
        assert not calls[2].done()
        new.accept()
        for peer, version in ((new, "new"), (old, "old")):
            response = VersionResponse(version=version).SerializeToString()
            await peer.send(settings() + response_headers() + messages(response) + trailers())
        assert [(await call).version for call in (calls[2], calls[0])] == ["new", "old"]
        connection.close()
        with pytest.raises(TransientError):
            await calls[1]
        for peer in (old, new):
            peer.close()

    async def test_call_is_cancelable(self, containerd: SimulatedContainerd, client: ContainerdClient) -> None:
        containerd.faults.hang()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.namespaces()

    async def test_client_close_is_repeatable_and_allows_reconnect(
        self, containerd: SimulatedContainerd, client: ContainerdClient, golden: Golden
    ) -> None:
        stream = await client.subscribe()
        for _ in range(2):
            await client.close()
        with golden.error("containerd_errors", "stream after close", TransientError, containerd.address):
            await stream.batch()
        assert (await client.engine()).id == containerd.id


class TestListings:
    async def test_listing_raises_when_namespace_fails(
        self, containerd: SimulatedContainerd, client: ContainerdClient, golden: Golden
    ) -> None:
        containerd.state.run(KEY)
        fail_with(containerd, "Tasks.List", StatusCode.UNAVAILABLE, "shop")
        fail_with(containerd, "Containers.List", StatusCode.UNAVAILABLE, "shop")
        assert await client.tasks("other") == []
        with golden.error("containerd_errors", "Tasks.List unavailable", TransientError, containerd.address):
            await client.tasks("shop")
        with golden.error("containerd_errors", "Containers.List unavailable", TransientError, containerd.address):
            await _list_containers(client)

    async def test_listing_raises_when_container_stream_breaks(
        self, containerd: SimulatedContainerd, client: ContainerdClient, golden: Golden
    ) -> None:
        containerd.state.run(KEY)
        fail_with(containerd, "Containers.List", StatusCode.RESOURCE_EXHAUSTED)
        fail_with(containerd, "Containers.ListStream", StatusCode.INTERNAL)
        with golden.error(
            "containerd_errors", "Containers.ListStream fails", TransientError, containerd.address, "INTERNAL"
        ):
            await _list_containers(client)

    @pytest.mark.parametrize("spec_bytes", [0, 2 * MAX_MESSAGE_BYTES // 100])
    async def test_listing_can_be_abandoned_early(
        self, containerd: SimulatedContainerd, client: ContainerdClient, spec_bytes: int
    ) -> None:
        for number in range(100):
            containerd.state.create(ContainerKey("shop", f"c{number}"), spec_bytes=spec_bytes)
        async for metadata in client.containers("shop"):
            assert metadata.key.id == "c0"
            break
        assert (await client.engine()).id == containerd.id

    async def test_listing_returns_ten_thousand_running_tasks(
        self, containerd: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        keys = [ContainerKey("shop", f"c{number}") for number in range(10_000)]
        pids = {key: containerd.state.run(key, {"a": "b"}) for key in keys}
        tasks = await client.tasks("shop")
        assert {task.key: task.pid for task in tasks} == pids
        assert {task.status for task in tasks} == {TaskStatus.RUNNING}
        assert [metadata.key async for metadata in client.containers("shop")] == keys

    async def test_container_is_none_when_deleted_meanwhile(
        self, containerd: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        containerd.state.run(KEY)
        containerd.faults.hooks["Tasks.List"] = lambda: containerd.state.delete(KEY)
        (task,) = await client.tasks("shop")
        assert await client.container(task.key) is None

    @pytest.mark.parametrize("key", [ContainerKey("shop", ""), ContainerKey("", "web"), ContainerKey("a b", "c")])
    async def test_container_and_task_are_none_for_invalid_key(
        self, containerd: SimulatedContainerd, client: ContainerdClient, key: ContainerKey
    ) -> None:
        assert await client.container(key) is None
        assert await client.task(key) is None
        assert containerd.calls == []


async def test_image_has_digest_and_time_of_last_change(
    containerd: SimulatedContainerd, client: ContainerdClient
) -> None:
    digest = "sha256:" + "1f" * 32
    containerd.state.tag("shop", digest, "busybox", updated_at=17)
    assert await client.image("shop", "busybox", 5) == Image(digest, 17)
    assert await client.image("default", "busybox", 5) is None
    assert containerd.calls == ["Images.Get"] * 2
    containerd.state.tag("shop", digest, "busy\ufffdbox")
    assert await client.image("shop", "busy\ufffdbox", 5) is None  # the container's image may have another name
    assert await client.image("not a namespace", "busybox", 5) is None
    assert len(containerd.calls) == 2


class TestCRI:
    POD = ContainerKey("k8s.io", "web")

    async def test_cri_is_none_when_containerd_has_none(self, client: ContainerdClient) -> None:
        assert await client.exited_containers(5) is None
        assert await client.recorded_exit(self.POD, 5) is None

    async def test_cri_lists_exited_containers_in_order_of_creation(
        self, containerd: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        containerd.state.has_cri = True
        for id_ in ("b", "a", "c"):
            containerd.state.run_unseen(ContainerKey("k8s.io", id_))
        containerd.state.run(self.POD)
        exited = await client.exited_containers(5)
        assert exited == [ContainerKey("k8s.io", id_) for id_ in ("b", "a", "c")]

    async def test_recorded_exit_has_times_status_and_oom(
        self, containerd: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        containerd.state.has_cri = True
        containerd.state.run_unseen(self.POD, 137, seconds=5, oom=True)
        status = containerd.state.container(self.POD).cri_status
        expected = RecordedExit(self.POD, status.started_at, 137, status.finished_at, oom=True)
        assert await client.recorded_exit(self.POD, 5) == expected
        status.reason = b"\xff\xfe"  # not UTF-8
        assert await client.recorded_exit(self.POD, 5) == replace(expected, oom=False)
        status.reason, status.exit_code = b"Unknown", 255  # CRI has found no task
        assert await client.recorded_exit(self.POD, 5) == RecordedExit(self.POD, status.started_at)
        status.reason = b"OOMKilled"
        assert await client.recorded_exit(self.POD, 5) == RecordedExit(self.POD, status.started_at, oom=True)
        status.reason, status.started_at = b"Unknown", 0
        assert await client.recorded_exit(self.POD, 5) == RecordedExit(self.POD)
        status.state = cri_pb2.CONTAINER_RUNNING
        assert await client.recorded_exit(self.POD, 5) is None
        containerd.state.delete(self.POD)
        assert await client.recorded_exit(self.POD, 5) is None

    async def test_pod_labels_are_those_of_newest_sandbox_under_rules(
        self, containerd: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        assert await client.pod_labels((), 5) == {}
        containerd.state.has_cri = True
        names = {"io.kubernetes.pod.name": "web-0", "io.kubernetes.pod.namespace": "shop"}
        uid = "io.kubernetes.pod.uid"
        containerd.state.pods += [
            {"app": "old", uid: "u1", **names},
            {"app": "web", uid: "u1", **names},
            {"app": "db", uid: "u2"},
            {"app": "without uid"},
        ]
        assert await client.pod_labels((), 5) == {"u1": {"app": "web"}, "u2": {"app": "db"}}
        assert await client.pod_labels(["u2"], 5) == {"u2": {"app": "db"}}
        client.rules = LabelRules((), (), ())
        assert await client.pod_labels(["u2"], 5) == {"u2": {}}

    async def test_pods_are_requested_one_by_one_if_they_exceed_message(
        self, containerd: SimulatedContainerd, client: ContainerdClient, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        containerd.state.has_cri = True
        containerd.state.pods += [{"io.kubernetes.pod.uid": f"u{number}", "app": "web"} for number in range(20)]
        monkeypatch.setattr("tests.simulator.containerd.MAX_MESSAGE_BYTES", 500)
        assert await client.pod_labels(("u3", "u4", "u20"), 5) == {"u3": {"app": "web"}, "u4": {"app": "web"}}
        assert await client.pod_labels((), 5) == {}
        containerd.faults.hooks["RuntimeService.ListPodSandbox"] = lambda: containerd.faults.hang(
            "RuntimeService.ListPodSandbox"
        )
        with pytest.raises(TransientError):
            await client.pod_labels(("u3", "u4", "u5"), 0.2)
        containerd.faults.release()

    @pytest.mark.parametrize(
        ("code", "error_type"),
        [
            (StatusCode.UNAVAILABLE, TransientError),
            (StatusCode.UNKNOWN, TransientError),
            (StatusCode.PERMISSION_DENIED, UnreadableError),
            (StatusCode.RESOURCE_EXHAUSTED, UnreadableError),
        ],
    )
    async def test_cri_errors_are_transient_only_if_retry_may_help(
        self, containerd: SimulatedContainerd, client: ContainerdClient, code: StatusCode, error_type: type[BridgeError]
    ) -> None:
        containerd.state.has_cri = True
        for method in ("ListContainers", "ContainerStatus", "ListPodSandbox"):
            fail_with(containerd, f"RuntimeService.{method}", code)
        with pytest.raises(error_type):
            await client.exited_containers(5)
        with pytest.raises(error_type):
            await client.recorded_exit(self.POD, 5)
        with pytest.raises(error_type):
            await client.pod_labels(["u1"], 5)

    async def test_cri_call_times_out(self, containerd: SimulatedContainerd, client: ContainerdClient) -> None:
        containerd.faults.hang("RuntimeService.ListContainers")
        with pytest.raises(TransientError):
            await client.exited_containers(0.1)
        containerd.faults.release()


def test_client_rejects_address_other_than_unix_socket(golden: Golden) -> None:
    with golden.error("containerd_errors", "address 'tcp://10.0.0.1:1234'", BridgeError, "tcp://10.0.0.1:1234"):
        ContainerdClient("tcp://10.0.0.1:1234", LabelRules.keep_all())
