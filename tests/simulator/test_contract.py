"""The contract: behavior that both faces of the simulator and real containerds share, seen by client and stream."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.clock import SystemClock
from bridge.containerd import methods
from bridge.containerd.client import ContainerdClient
from bridge.containerd.connection import Connection
from bridge.containerd.event_stream import ContainerdEventStream
from bridge.containerd.http2 import StatusCode
from bridge.containerd.protos import containers_pb2
from bridge.containerd.rpc_errors import RpcError
from bridge.core.containerd_model import (
    ContainerCreated,
    ContainerDeleted,
    ContainerKey,
    ContainerUpdated,
    Event,
    ExitStatus,
    Ignored,
    Marker,
    Task,
    TaskCreated,
    TaskDeleted,
    TaskExited,
    TaskPaused,
    TaskResumed,
    TaskStarted,
    TaskStatus,
    Undecodable,
)
from bridge.core.errors import TransientError
from bridge.core.label_rules import LabelRules
from bridge.stream_markers import read_to_marker
from tests.simulator.client import InProcessClient, InProcessConnection
from tests.simulator.containerd import VERSIONS, SimulatedContainerd
from tests.simulator.drivers import Driver, RealDriver, SimulatedDriver
from tests.simulator.state import IMAGE, KILLED, RUNTIME
from tests.testbed.containerd import Containerd
from tests.wait_calls import wait_for_exit

_numbers = itertools.count(1)


def unique(name: str) -> str:
    return f"{name}-{os.getpid()}-{next(_numbers)}"


async def read(client: ContainerdClient, stream: ContainerdEventStream) -> list[Event]:
    """Return the events that containerd has sent by now, and were not returned before."""
    return [each for each in await read_to_marker(client, stream, SystemClock(), 60) if not isinstance(each, Marker)]


async def subscribed(client: ContainerdClient) -> ContainerdEventStream:
    """Return a stream whose subscription works."""
    stream = await client.subscribe()
    await read(client, stream)
    return stream


async def running(driver: Driver, client: ContainerdClient, name: str) -> tuple[ContainerKey, ContainerdEventStream]:
    """Run a container; return its key, and a stream of the events after its start event."""
    key, stream = ContainerKey(driver.namespace, unique(name)), await subscribed(client)
    await driver.run(key.id, {})
    await wait_for_events(client, stream, driver.namespace, TaskStarted)
    return key, stream


async def wait_for_events(
    client: ContainerdClient, stream: ContainerdEventStream, namespace: str, last: type[Event]
) -> list[Event]:
    """Return the events up to the first event of type ``last``; shims publish after they change state."""
    events: list[Event] = []
    async with asyncio.timeout(60):
        while not any(isinstance(event, last) for event in events):
            received = await read(client, stream)
            events += [
                each for each in received if getattr(each, "key", ContainerKey(namespace, "")).namespace == namespace
            ]
    return events


class Contract:
    @pytest.fixture
    async def client(self, driver: Driver) -> AsyncIterator[ContainerdClient]:
        async with ContainerdClient(driver.address, LabelRules.keep_all()) as client:
            yield client

    @pytest.fixture
    async def connection(self, driver: Driver) -> AsyncIterator[Connection]:
        connection = Connection(driver.address, SystemClock())
        yield connection
        connection.close()

    async def test_engine_returns_stable_identity(self, driver: Driver, client: ContainerdClient) -> None:
        engine = await client.engine()
        assert engine == await client.engine()
        assert len(engine.id) == 36
        assert engine.version.startswith(f"{driver.version}.")
        assert engine.api == driver.address
        assert engine.pid > 1
        assert await client.health()

    async def test_running_container_emits_events_and_is_listed(self, driver: Driver, client: ContainerdClient) -> None:
        key = ContainerKey(driver.namespace, unique("run"))
        stream = await subscribed(client)
        await driver.run(key.id, {"a": "b"})
        task = await client.task(key)
        assert task is not None
        assert task == Task(key, task.pid, TaskStatus.RUNNING)
        assert await client.tasks(driver.namespace) == [task]

        events = await wait_for_events(client, stream, driver.namespace, TaskStarted)
        created, task_created, started = events
        assert isinstance(created, ContainerCreated)
        assert isinstance(task_created, TaskCreated)
        assert isinstance(started, TaskStarted)
        assert (created.key, created.image, created.runtime) == (key, IMAGE, RUNTIME)
        assert task_created.key == started.key == key
        assert task_created.pid == started.pid == task.pid > 1
        assert created.at < task_created.at < started.at

    async def test_pause_and_resume_emit_events_and_change_status(
        self, driver: Driver, client: ContainerdClient
    ) -> None:
        key, stream = await running(driver, client, "pause")
        await driver.pause(key.id)
        assert [task.status for task in await client.tasks(driver.namespace)] == [TaskStatus.PAUSED]
        await driver.resume(key.id)
        paused, resumed = await wait_for_events(client, stream, driver.namespace, TaskResumed)
        assert isinstance(paused, TaskPaused)
        assert isinstance(resumed, TaskResumed)
        assert paused.key == resumed.key == key

    async def test_exec_exit_has_exec_id(self, driver: Driver, client: ContainerdClient) -> None:
        key, stream = await running(driver, client, "exec")
        await driver.exec(key.id, "e1")
        *ignored, exited = await wait_for_events(client, stream, driver.namespace, TaskExited)
        assert ignored == [Ignored("/tasks/exec-added", known=True), Ignored("/tasks/exec-started", known=True)]
        assert isinstance(exited, TaskExited)
        assert (exited.key, exited.exec_id, exited.status) == (key, "e1", 0)
        (task,) = await client.tasks(driver.namespace)
        assert exited.pid != task.pid

    async def test_exit_emits_events_and_stops_task(self, driver: Driver, client: ContainerdClient) -> None:
        key, stream = await running(driver, client, "exit")
        (task,) = await client.tasks(driver.namespace)
        waiting = asyncio.create_task(wait_for_exit(client, key))
        await driver.kill(key.id)
        (exited,) = await wait_for_events(client, stream, driver.namespace, TaskExited)
        assert isinstance(exited, TaskExited)
        assert (exited.key, exited.exec_id, exited.pid, exited.status) == (key, "", task.pid, KILLED)
        assert exited.exited_at is not None
        assert exited.exited_at <= exited.at

        exit_status = ExitStatus(KILLED, exited.exited_at)
        assert await waiting == exit_status
        assert await wait_for_exit(client, key) == exit_status
        stopped = Task(key, task.pid, TaskStatus.STOPPED, KILLED, exited.exited_at)
        assert await client.task(key) == stopped
        assert await client.tasks(driver.namespace) == [stopped]

        await driver.delete_task(key.id)
        assert await client.tasks(driver.namespace) == []
        await driver.delete(key.id)
        events = await wait_for_events(client, stream, driver.namespace, ContainerDeleted)
        assert ContainerDeleted in {type(event) for event in events}
        for event in events:  # containerd 2.4 loses TaskDeleted in a tenth of the cases: the shim exits too early
            if isinstance(event, TaskDeleted):
                assert (event.key, event.exec_id, event.pid) == (key, "", task.pid)
                assert (event.status, event.exited_at) == (KILLED, exited.exited_at)

    async def test_container_changes_emit_events_and_are_listed(self, driver: Driver, client: ContainerdClient) -> None:
        namespace, id_ = driver.namespace, unique("container")
        key = ContainerKey(namespace, id_)
        stream = await subscribed(client)
        await driver.create(id_)
        metadata = await client.container(key)
        assert metadata is not None
        assert (metadata.key, metadata.name, metadata.image, metadata.runtime) == (key, id_, IMAGE, RUNTIME)
        assert metadata.created_at
        assert metadata.created_at == metadata.updated_at
        assert [metadata async for metadata in client.containers(namespace)] == [metadata]

        await driver.relabel(id_, "nerdctl/name", "new")
        relabeled = await client.container(key)
        assert relabeled is not None
        assert relabeled.name == "new"
        assert relabeled.labels
        assert relabeled.labels["nerdctl/name"] == "new"
        assert relabeled.updated_at
        assert relabeled.updated_at > metadata.updated_at
        assert relabeled.created_at == metadata.created_at
        await driver.delete(id_)
        created, updated, deleted = await wait_for_events(client, stream, namespace, ContainerDeleted)
        assert isinstance(created, ContainerCreated)
        assert isinstance(updated, ContainerUpdated)
        assert isinstance(deleted, ContainerDeleted)
        assert updated.labels == relabeled.labels
        assert created.key == updated.key == deleted.key == key

    async def test_image_has_digest_and_time_of_last_change(self, driver: Driver, client: ContainerdClient) -> None:
        name, before = f"example.com/{unique('image')}:1", time.time_ns()
        assert await client.image(driver.namespace, name, 20) is None
        digest = await driver.tag(name)
        image = await client.image(driver.namespace, name, 20)
        assert image is not None
        assert image.updated_at is not None
        assert (image.digest, before < image.updated_at < time.time_ns()) == (digest, True)
        await driver.tag(name)  # the same digest again
        changed = await client.image(driver.namespace, name, 20)
        assert changed is not None
        assert changed.updated_at is not None
        assert (changed.digest, changed.updated_at > image.updated_at) == (digest, True)

    async def test_missing_task_or_container_is_none(self, driver: Driver, client: ContainerdClient) -> None:
        never_run, task_deleted = unique("container"), unique("deleted")
        await driver.create(never_run)
        await driver.run(task_deleted, {})
        await driver.kill(task_deleted)
        await asyncio.wait_for(wait_for_exit(client, ContainerKey(driver.namespace, task_deleted)), 60)
        await driver.delete_task(task_deleted)
        for id_ in (never_run, task_deleted, "never"):
            key = ContainerKey(driver.namespace, id_)
            assert await client.task(key) is None
            assert await wait_for_exit(client, key) is None
        assert await client.container(ContainerKey(driver.namespace, "never")) is None

    @pytest.mark.parametrize("namespace", ["never", "not a name", "ümlaut", "a\nb", ""])
    async def test_missing_namespace_is_empty(self, client: ContainerdClient, namespace: str) -> None:
        assert namespace not in await client.namespaces()
        assert [metadata async for metadata in client.containers(namespace)] == []
        assert await client.tasks(namespace) == []
        assert await client.container(ContainerKey(namespace, "x")) is None
        assert await client.task(ContainerKey(namespace, "x")) is None
        assert namespace not in await client.namespaces()

    async def test_markers_reach_all_streams_and_create_no_namespace(self, client: ContainerdClient) -> None:
        first, second = await subscribed(client), await subscribed(client)
        await client.publish_marker("abc", 7)
        for stream in (first, second):
            events: list[Event] = []
            while Marker("abc", 7) not in events:
                events.extend(await stream.batch())
            assert not [event for event in events if isinstance(event, Ignored | Undecodable)]
        assert methods.MARKER_NAMESPACE not in await client.namespaces()

    async def test_oversized_listing_is_streamed(
        self, driver: Driver, client: ContainerdClient, connection: Connection
    ) -> None:
        ids = [unique("large") for _ in range(3)]
        for id_ in ids:
            await driver.create(id_, spec_bytes=6 * 1024 * 1024)
        request = containers_pb2.ListContainersRequest()
        with pytest.raises(RpcError) as caught:
            await connection.call(methods.CONTAINERS, request, driver.namespace, 20)
        assert caught.value.code is StatusCode.RESOURCE_EXHAUSTED
        assert {metadata.key.id async for metadata in client.containers(driver.namespace)} == set(ids)

    async def test_hung_shim_leaves_task_status_unknown(self, driver: Driver, client: ContainerdClient) -> None:
        hung, healthy = unique("hung"), unique("healthy")
        await driver.run(hung, {})
        await driver.run(healthy, {})
        await driver.hang_shim(hung, hung=True)
        try:
            with pytest.raises(TransientError):
                await client.task(ContainerKey(driver.namespace, hung))
            statuses = {task.key.id: task.status for task in await client.tasks(driver.namespace)}
        finally:
            await driver.hang_shim(hung, hung=False)
        unknown = {hung: TaskStatus.UNKNOWN} if driver.version == "1.6" else {}
        assert statuses == {healthy: TaskStatus.RUNNING} | unknown
        task = await client.task(ContainerKey(driver.namespace, hung))
        assert task is not None
        assert task.status is TaskStatus.RUNNING


class TestSimulator(Contract):
    @pytest.fixture(params=VERSIONS)
    async def driver(self, request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Driver]:
        async with SimulatedContainerd(tmp_path / "c.sock", request.param) as engine:
            yield SimulatedDriver(engine, "contract")


class TestInProcess(Contract):
    @pytest.fixture(params=VERSIONS)
    def containerd(self, request: pytest.FixtureRequest) -> SimulatedContainerd:
        return SimulatedContainerd(version=request.param)

    @pytest.fixture
    def driver(self, containerd: SimulatedContainerd) -> Driver:
        return SimulatedDriver(containerd, "contract")

    @pytest.fixture
    def client(self, containerd: SimulatedContainerd) -> ContainerdClient:
        return InProcessClient(containerd, SystemClock())

    @pytest.fixture
    def connection(self, containerd: SimulatedContainerd) -> Connection:
        return InProcessConnection(containerd, SystemClock())


@pytest.mark.integration
class TestContainerd(Contract):
    @pytest.fixture
    async def driver(self, engine: Containerd) -> Driver:
        driver = RealDriver(engine, unique("contract"))
        await driver.prepare()
        return driver
