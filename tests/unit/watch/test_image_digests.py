"""Digests of containers' images in records: from calls after the creation, shared, kept, and never wrong."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.containerd.http2 import StatusCode
from bridge.core.containerd_model import ContainerKey
from bridge.core.errors import UnreadableError
from bridge.core.time import to_seconds
from bridge.watch import image_digests
from tests.simulator.state import IMAGE, SimulatedRpcError
from tests.unit.watch.fakes import HookedClient, RunningWatch, running_watch, synced_watch

WEB, DB = ContainerKey("default", "web"), ContainerKey("default", "db")
OLD, NEW = "sha256:" + "1f" * 32, "sha256:" + "2e" * 32
GET = "Images.Get"
DENIED = SimulatedRpcError(StatusCode.PERMISSION_DENIED, "whalebridge's read-only proxy does not allow this call")
ABSENT = SimulatedRpcError(StatusCode.UNIMPLEMENTED, "unknown service containerd.services.images.v1.Images")


def client_with_image(*running: ContainerKey) -> HookedClient:
    """Return a client of a containerd with an image, which was tagged before the running containers were created."""
    client = HookedClient()
    tag(client, OLD)
    for key in running:
        run(client, key)
    return client


def tag(client: HookedClient, digest: str, name: str = IMAGE) -> None:
    """Let the image's name point to a digest from just before now: in virtual time, everything happens at once."""
    client.state.tag("default", digest, name, client.clock.now().wall - 1)


def run(client: HookedClient, key: ContainerKey) -> None:
    """Run a container without an event."""
    listeners, client.state.listeners = client.state.listeners, []
    client.state.run(key)
    client.state.listeners = listeners


async def reconnect(running: RunningWatch, snapshots: int = 2) -> None:
    running.client.stream.end()
    await running.wait_synced(snapshots)


def digests(running: RunningWatch, type_: str | None = None) -> dict[str, str | None]:
    """Digest in the last record of each container, or of each container's last record of a type."""
    about = [each for each in running.documents if each["container"] and type_ in (None, each["type"])]
    return {each["container"]["id"]: each["container"]["image_digest"] for each in about}


async def wait_for_record(running: RunningWatch, type_: str, id_: str = "web") -> None:
    await running.eventually(lambda: id_ in digests(running, type_))


async def test_start_and_exit_have_digest_of_image() -> None:
    client = client_with_image()
    async with synced_watch(client) as running:
        client.state.run(WEB)
        await wait_for_record(running, "started")
        await asyncio.sleep(1)
        tag(client, NEW)
        client.state.relabel(WEB, {"nerdctl/name": "front"})
        client.state.exit(WEB)
        await wait_for_record(running, "exited")
    assert (digests(running, "started"), digests(running, "exited")) == ({"web": OLD}, {"web": OLD})
    assert client.calls["image"] == 1


async def test_listed_containers_share_one_call_for_each_image() -> None:
    client = client_with_image(WEB, DB)
    tag(client, NEW, "alpine")
    client.state.create(ContainerKey("default", "job"), image="alpine")
    client.state.create_task(ContainerKey("default", "job"))
    client.state.start(ContainerKey("default", "job"))
    async with synced_watch(client) as running:
        assert digests(running, "present") == {"web": OLD, "db": OLD, "job": NEW}
    assert client.calls["image"] == 2


@pytest.mark.parametrize("live", [False, True])
async def test_name_that_points_elsewhere_since_creation_proves_nothing(live: bool) -> None:
    client = client_with_image(*([] if live else [WEB]))

    async def tag_again(_: str) -> None:
        await asyncio.sleep(0.1)
        tag(client, NEW)

    client.hooks["image"] = tag_again
    async with synced_watch(client) as running:
        if live:
            client.state.run(WEB)
            await wait_for_record(running, "started")
        assert digests(running) == {"web": None}


async def test_known_digest_outlives_tag_image_and_bridge() -> None:
    client = client_with_image(WEB)
    async with synced_watch(client) as running:
        await asyncio.sleep(1)
        tag(client, NEW)
        await reconnect(running)
        client.state.images.clear()
        await reconnect(running, 3)
    async with running_watch(client, running.outbox.checkpoint) as restarted:
        await restarted.wait_synced()
        assert digests(restarted) == {"web": OLD}
    assert client.calls["image"] == 1
    async with synced_watch(client) as without_checkpoint:
        assert digests(without_checkpoint) == {"web": None}


async def test_recreated_container_has_digest_of_its_own() -> None:
    client = client_with_image(WEB)
    async with synced_watch(client) as running:
        await asyncio.sleep(1)
        tag(client, NEW)
        client.state.exit(WEB)
        client.state.delete_task(WEB)
        client.state.delete(WEB)
        client.state.run(WEB)
        await wait_for_record(running, "started")
        assert (digests(running, "exited"), digests(running, "started")) == ({"web": OLD}, {"web": NEW})


async def test_digest_is_found_at_next_connect_if_unknown() -> None:
    client = client_with_image()
    client.faults.errors[GET, "default"] = DENIED
    async with synced_watch(client) as running:
        client.state.run(WEB)
        await wait_for_record(running, "started")
        client.faults.errors.clear()
        await reconnect(running)
        assert (digests(running, "started"), digests(running, "present")) == ({"web": None}, {"web": OLD})


async def test_containers_out_of_scope_cost_no_call() -> None:
    client = client_with_image(WEB)
    client.out_of_scope = {"web", "db"}
    async with synced_watch(client) as running:
        client.state.run(DB)
        await asyncio.sleep(1)
        assert running.transitions == []
    assert client.calls["image"] == 0


async def test_containers_created_during_a_call_share_the_next_one() -> None:
    client = client_with_image()
    calls: list[asyncio.Event] = []

    async def hold(_: str) -> None:
        calls.append(asyncio.Event())
        await calls[-1].wait()

    client.hooks["image"] = hold
    async with synced_watch(client) as running:
        client.state.run(WEB)
        await running.eventually(lambda: calls)
        for number in range(20):
            client.state.run(ContainerKey("default", f"job-{number}"))
        await asyncio.sleep(0.5)
        tag(client, NEW)
        for _ in range(2):
            calls[-1].set()
            await asyncio.sleep(0.1)
        assert len(running.transitions) == 21
        assert set(digests(running).values()) == {None}
    assert len(calls) == 2


@pytest.mark.parametrize("fault", ["denied", "absent", "hung", "unreadable"])
async def test_failing_image_service_is_called_rarely_and_delays_once(fault: str) -> None:
    client = client_with_image()
    match fault:
        case "denied" | "absent":
            client.faults.errors[GET, "default"] = DENIED if fault == "denied" else ABSENT
        case "hung":
            client.faults.hang(GET)
        case _:
            client.faults.unreadable_responses.add(GET)
    with capture_logs() as logs:
        async with synced_watch(client) as running:
            assert await seconds_until_start(running, WEB) < 1.5
            assert await seconds_until_start(running, DB) < 0.5
            assert digests(running) == {"web": None, "db": None}
            assert client.calls["image"] == 1
            await asyncio.sleep(image_digests.RETRY_SECONDS)
            client.state.run(ContainerKey("default", "job"))
            await wait_for_record(running, "started", "job")
            assert client.calls["image"] == 2
            client.faults.errors.clear()
            client.faults.unreadable_responses.clear()
            client.faults.release()
            await asyncio.sleep(image_digests.RETRY_SECONDS)
            client.state.run(ContainerKey("default", "last"))
            await wait_for_record(running, "started", "last")
            assert digests(running)["last"] == OLD
    assert events(logs) == ["image_digests_unavailable", "image_digests_available"]


async def test_success_of_earlier_call_does_not_end_pause_after_failure() -> None:
    client = client_with_image()

    async def respond(name: str) -> None:
        await asyncio.sleep(0.1 if name == "broken" else 0.2)
        if name == "broken":
            raise UnreadableError("broken")

    client.hooks["image"] = respond
    with capture_logs() as logs:
        async with synced_watch(client) as running:
            for number in range(3):
                job, other = ContainerKey("default", f"job-{number}"), ContainerKey("default", f"other-{number}")
                client.state.create(job, image="broken")
                client.state.create_task(job)
                client.state.start(job)
                client.state.run(other)
                await wait_for_record(running, "started", other.id)
            assert digests(running, "started")["other-0"] == OLD
            assert client.calls["image"] == 2
    assert events(logs) == ["image_digests_unavailable"]


async def seconds_until_start(running: RunningWatch, key: ContainerKey) -> float:
    before = running.clock.now().monotonic
    running.client.state.run(key)
    await wait_for_record(running, "started", key.id)
    return to_seconds(running.clock.now().monotonic - before)


def events(logs: list[Any]) -> list[str]:
    return [each["event"] for each in logs if each["event"].startswith("image_digests")]


async def test_hung_image_service_delays_snapshot_by_one_second() -> None:
    client = client_with_image(WEB)
    for number in range(50):
        tag(client, OLD, f"image-{number}")
        client.state.create(ContainerKey("default", f"job-{number}"), image=f"image-{number}")
    client.faults.hang(GET)
    async with running_watch(client) as running:
        before = client.clock.now().monotonic
        await running.wait_synced()
        assert to_seconds(client.clock.now().monotonic - before) < 1.5
        assert digests(running) == {"web": None}
