"""The client against the stand-in: failures told clearly, calls bounded, sockets followed, listings of any size."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc import StatusCode

from bridge.containerd.client import ContainerdClient
from bridge.containerd.connection import Connection
from bridge.containerd.failures import refusal
from bridge.containerd.protos import health_pb2
from bridge.containerd.rpc import VERSION
from bridge.core.errors import BridgeError, FatalError, TransientError, UnreadableError
from bridge.core.labels import LabelRules
from bridge.core.model import ContainerKey, TaskStatus
from tests.simulator.containerd import SENT_AT_MOST, SimulatedContainerd
from tests.simulator.faults import ALL
from tests.simulator.state import RefusedError

KEY = ContainerKey("shop", "web")


def refusing(standin: SimulatedContainerd, method: str, code: StatusCode, namespace: str = ALL) -> None:
    standin.faults.refused[method, namespace] = RefusedError(code, "for a reason")


class TestEngine:
    async def test_it_is_told(self, standin: SimulatedContainerd, client: ContainerdClient) -> None:
        engine = await client.engine()
        assert (engine.id, engine.version, engine.type) == (standin.id, "2.4.2+unknown", "containerd.io")
        assert (engine.api, engine.pid) == (standin.address, os.getpid())
        assert await client.health()

    async def test_one_without_introspection_has_no_id(
        self, standin: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        refusing(standin, "Introspection.Server", StatusCode.UNIMPLEMENTED)
        assert (await client.engine()).id == ""

    async def test_one_that_cannot_tell_its_id_now_is_asked_again(
        self, standin: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        refusing(standin, "Introspection.Server", StatusCode.INTERNAL)
        with pytest.raises(TransientError, match="failed to tell its id: INTERNAL: for a reason"):
            await client.engine()

    async def test_another_grpc_server_is_no_containerd(self, tmp_path: Path) -> None:
        handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(_healthy)
        server = grpc.aio.server()
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler}),)
        )
        server.add_insecure_port(f"unix:{tmp_path}/other.sock")
        await server.start()
        async with ContainerdClient(f"{tmp_path}/other.sock", LabelRules.keep_all()) as client:
            with pytest.raises(
                FatalError, match=r"other.sock is not containerd's socket: another gRPC server responds"
            ):
                await client.engine()
        await server.stop(None)

    async def test_what_was_containerd_once_may_be_it_again(
        self, standin: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        await client.engine()
        await standin.stop()
        with pytest.raises(TransientError, match="does not exist"):
            await client.engine()
        os.mkdir(standin.address)
        with pytest.raises(TransientError, match="is not a socket"):
            await client.engine()
        os.rmdir(standin.address)
        await standin.start()
        refusing(standin, "Version.Version", StatusCode.UNIMPLEMENTED)
        with pytest.raises(TransientError, match="failed to tell its version"):
            await client.engine()
        standin.faults.refused.clear()
        assert (await client.engine()).id == standin.id

    async def test_a_socket_that_was_replaced_is_followed(self, client: ContainerdClient) -> None:
        old = await client.engine()
        os.unlink(client.path)  # the old one lives on, and is still connected
        async with SimulatedContainerd(client.path) as new:
            engine = await client.engine()
            assert engine.id == new.id != old.id
            new.state.run(KEY)
            assert await client.namespaces() == ["shop"]

    async def test_a_restart_is_followed_by_calls_too(
        self, standin: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        await client.engine()
        await standin.restart()
        async with asyncio.timeout(15):
            while await _lost(client):  # noqa: ASYNC110 - how soon gRPC connects again is the point
                await asyncio.sleep(0.05)

    @pytest.mark.parametrize("name", ["with space", "100%41", "#?&", "ümlaut"])
    async def test_odd_paths_are_paths(self, tmp_path: Path, name: str) -> None:
        async with SimulatedContainerd(tmp_path / "c.sock") as standin:
            os.symlink(standin.address, tmp_path / name)
            async with ContainerdClient(f"unix://{tmp_path}/{name}", LabelRules.keep_all()) as client:
                assert (await client.engine()).id == standin.id
                (await client.subscribe()).close()


async def _healthy(_: bytes, __: object) -> bytes:
    return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()


async def _lost(client: ContainerdClient) -> bool:
    try:
        return await client.namespaces() != []
    except TransientError:
        return True


async def _listed(client: ContainerdClient) -> None:
    async for _ in client.containers("shop"):
        pass


CALLS: dict[str, Callable[[ContainerdClient], Awaitable[object]]] = {
    "Version.Version": lambda client: client.engine(),
    "Health.Check": lambda client: client.health(),
    "Namespaces.List": lambda client: client.namespaces(),
    "Containers.List": _listed,
    "Containers.Get": lambda client: client.container(KEY),
    "Tasks.List": lambda client: client.tasks("shop"),
    "Tasks.Get": lambda client: client.task(KEY),
    "Events.Publish": lambda client: client.mark("n", 1),
}


def failure(method: str) -> type[BridgeError]:
    """A record that cannot be had concerns one container only: asking again does not help the others."""
    return UnreadableError if method == "Containers.Get" else TransientError


class TestFailures:
    @pytest.mark.parametrize("method", CALLS)
    async def test_no_call_waits_for_ever(
        self, standin: SimulatedContainerd, hasty: ContainerdClient, method: str
    ) -> None:
        standin.faults.hang(method)
        async with asyncio.timeout(30):
            with pytest.raises(TransientError, match=rf"{standin.address} did not .* in time: it, or a shim, hangs"):
                await CALLS[method](hasty)

    @pytest.mark.parametrize("method", [method for method in CALLS if method != "Version.Version"])
    async def test_a_refusal_says_what_where_and_why(
        self, standin: SimulatedContainerd, client: ContainerdClient, method: str
    ) -> None:
        refusing(standin, method, StatusCode.INTERNAL)
        with pytest.raises(failure(method), match=rf"{standin.address} failed to .*: INTERNAL: for a reason$"):
            await CALLS[method](client)

    @pytest.mark.parametrize("method", [method for method in CALLS if method != "Events.Publish"])
    async def test_an_answer_that_nobody_can_read_is_told(
        self, standin: SimulatedContainerd, client: ContainerdClient, method: str
    ) -> None:
        standin.state.run(KEY)
        standin.faults.garbled.add(method)
        with pytest.raises(failure(method), match=f"gave an unreadable answer: .*{method.replace('.', '/')}"):
            await CALLS[method](client)

    async def test_foreign_text_is_one_printable_line(
        self, standin: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        refused = RefusedError(StatusCode.INTERNAL, "a\n\tb \x1b[31mred" + "x" * 2000)
        standin.faults.refused["Namespaces.List", ALL] = refused
        with pytest.raises(TransientError) as caught:
            await client.namespaces()
        told = str(caught.value)
        assert "INTERNAL: a b ?[31mredxxx" in told
        assert told.isprintable()
        assert len(told) < 600

    @pytest.mark.parametrize(
        "code", [StatusCode.PERMISSION_DENIED, StatusCode.UNAUTHENTICATED, StatusCode.UNIMPLEMENTED]
    )
    async def test_a_refused_mark_says_what_it_is_for(
        self, standin: SimulatedContainerd, client: ContainerdClient, code: StatusCode
    ) -> None:
        refusing(standin, "Events.Publish", code)
        with pytest.raises(TransientError, match=r"cannot verify the subscription: allow Events\.Publish"):
            await client.mark("n", 1)

    async def test_nobody_there(self, tmp_path: Path) -> None:
        async with ContainerdClient(f"{tmp_path}/c.sock", LabelRules.keep_all()) as client:
            with pytest.raises(TransientError, match="cannot be reached to list the namespaces"):
                await client.namespaces()

    async def test_a_call_whose_connection_is_closed_fails_and_is_not_cancelled(
        self, standin: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        standin.faults.hang("Tasks.Wait")
        waiting = asyncio.create_task(client.wait(KEY))
        await standin.until(lambda: "Tasks.Wait" in standin.calls)
        await client.close()
        with pytest.raises(TransientError, match="was closed: could not wait for a task's end"):
            await waiting

    async def test_a_connection_that_was_closed_stays_closed(self, standin: SimulatedContainerd) -> None:
        connection = Connection(standin.address)
        await connection.close()
        with pytest.raises(TransientError, match="was closed: could not tell its version"):
            await connection.call(VERSION, Empty(), "", 1)

    def test_an_error_without_a_status_is_told_too(self) -> None:
        error = refusal(grpc.RpcError("odd"), "sing", "/c.sock")
        assert (error.code, str(error)) == (StatusCode.UNKNOWN, "containerd at /c.sock failed to sing: UNKNOWN: odd")

    async def test_a_call_that_is_cancelled_is_cancelled(
        self, standin: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        standin.faults.hang()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.namespaces()

    async def test_closing_is_repeatable_and_not_the_end(
        self, standin: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        stream = await client.subscribe()
        for _ in range(2):
            await client.close()
        with pytest.raises(TransientError, match="was closed"):
            await stream.batch()
        assert (await client.engine()).id == standin.id


class TestListings:
    async def test_a_namespace_that_fails_is_not_empty(
        self, standin: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        standin.state.run(KEY)
        refusing(standin, "Tasks.List", StatusCode.UNAVAILABLE, "shop")
        refusing(standin, "Containers.List", StatusCode.UNAVAILABLE, "shop")
        assert await client.tasks("other") == []
        with pytest.raises(TransientError, match="cannot be reached to list the tasks"):
            await client.tasks("shop")
        with pytest.raises(TransientError, match="cannot be reached to list the containers"):
            await _listed(client)

    async def test_a_stream_of_records_that_breaks_is_not_its_end(
        self, standin: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        standin.state.run(KEY)
        refusing(standin, "Containers.List", StatusCode.RESOURCE_EXHAUSTED)
        refusing(standin, "Containers.ListStream", StatusCode.INTERNAL)
        with pytest.raises(TransientError, match="failed to list the containers one by one: INTERNAL"):
            await _listed(client)

    @pytest.mark.parametrize("spec_bytes", [0, 2 * SENT_AT_MOST // 100])
    async def test_a_listing_may_be_left_early(
        self, standin: SimulatedContainerd, client: ContainerdClient, spec_bytes: int
    ) -> None:
        for number in range(100):
            standin.state.create(ContainerKey("shop", f"c{number}"), spec_bytes=spec_bytes)
        async for record in client.containers("shop"):
            assert record.key.id == "c0"
            break
        assert (await client.engine()).id == standin.id

    async def test_ten_thousand_living_tasks_are_one_answer(
        self, standin: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        keys = [ContainerKey("shop", f"c{number}") for number in range(10_000)]
        pids = {key: standin.state.run(key, {"a": "b"}) for key in keys}
        tasks = await client.tasks("shop")
        assert {task.key: task.pid for task in tasks} == pids
        assert {task.status for task in tasks} == {TaskStatus.RUNNING}
        assert [record.key async for record in client.containers("shop")] == keys

    async def test_a_container_deleted_meanwhile_is_none(
        self, standin: SimulatedContainerd, client: ContainerdClient
    ) -> None:
        standin.state.run(KEY)
        standin.faults.hooks["Tasks.List"] = lambda: standin.state.delete(KEY)
        (task,) = await client.tasks("shop")
        assert await client.container(task.key) is None

    @pytest.mark.parametrize("key", [ContainerKey("shop", ""), ContainerKey("", "web"), ContainerKey("a b", "c")])
    async def test_impossible_keys_are_not_asked_for(
        self, standin: SimulatedContainerd, client: ContainerdClient, key: ContainerKey
    ) -> None:
        assert await client.container(key) is None
        assert await client.task(key) is None
        assert standin.calls == []


def test_an_address_of_another_kind_is_refused_at_once() -> None:
    with pytest.raises(BridgeError, match="invalid containerd address"):
        ContainerdClient("tcp://10.0.0.1:1234", LabelRules.keep_all())
