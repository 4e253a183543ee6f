"""Exit wait as a fallback for exit events."""

from __future__ import annotations

import asyncio

from bridge.core.containerd_model import ContainerKey, ExitStatus, TaskStarted
from bridge.core.errors import TransientError
from tests.unit.watch.fakes import WEB, FakeEngineClient, make_metadata, running_watch


async def test_failed_exit_wait_is_repeated_with_growing_delay() -> None:
    client, waited_at = FakeEngineClient(), list[float]()
    client.metadata[WEB] = make_metadata(WEB)

    async def fail(_: ContainerKey) -> None:
        waited_at.append(asyncio.get_running_loop().time())
        if len(waited_at) <= 4:
            raise TransientError("the shim does not respond")

    client.hooks["wait_for_exit"] = fail
    client.set_exit(WEB, ExitStatus(3, 8))
    async with running_watch(client) as running:
        await running.wait_synced()
        client.stream.put(TaskStarted(WEB, running.clock.now().wall, 10))
        await running.eventually(lambda: len(running.transitions) == 2)
    assert running.documents[-1]["exit"]["status"] == 3
    assert len(waited_at) == 5
    assert 15 <= waited_at[-1] - waited_at[0] <= 30


async def test_event_processed_after_disconnect_starts_no_call() -> None:
    client = FakeEngineClient()
    client.metadata[WEB] = make_metadata(WEB)
    async with running_watch(client) as running:
        await running.wait_synced()
        client.stream.put(TaskStarted(WEB, running.clock.now().wall, 10))
        client.stream.end()
        await running.wait_synced(2)
    assert running.transitions == [("started", "live", "web"), ("exited", "inferred", "web")]
    assert client.calls["wait_for_exit"] == 0
