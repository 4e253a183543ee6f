"""Wait for the exit of a task as a coroutine."""

from __future__ import annotations

import asyncio

from bridge.core.containerd_model import ContainerKey, ExitStatus
from bridge.core.errors import BridgeError
from bridge.core.ports import EngineClient


async def wait_for_exit(client: EngineClient, key: ContainerKey) -> ExitStatus | None:
    """Wait for the exit of a container's task; None if there is no task.

    Raises:
        BridgeError: The call failed.
    """
    ended: asyncio.Future[ExitStatus | BridgeError | None] = asyncio.get_running_loop().create_future()
    calls = client.wait_calls()
    try:
        calls.start(key, ended.set_result)
        result = await ended
    finally:
        calls.close()
    if isinstance(result, BridgeError):
        raise result
    return result
