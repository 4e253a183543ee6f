"""Drivers with the same operations for the simulator and for real containerds, for tests that run against both."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping
from typing import Protocol

from bridge.core.containerd_model import ContainerKey
from tests.simulator.containerd import SimulatedContainerd
from tests.simulator.records import create_containers
from tests.simulator.state import IMAGE
from tests.testbed.containerd import Containerd
from tests.testbed.process import suspend_process


class Driver(Protocol):
    """Perform the operations of containerd's clients in one namespace."""

    namespace: str

    @property
    def address(self) -> str:
        """Return the path of the socket."""

    @property
    def version(self) -> str:
        """Return the version: 1.6 or 2.4."""

    async def create(self, id_: str, *, spec_bytes: int = 0) -> None:
        """Create a container without a task."""

    async def run(self, id_: str, labels: Mapping[str, str]) -> None:
        """Run a container until it is killed."""

    async def exec(self, id_: str, exec_id: str) -> None:
        """Run another process in a container, with exit status 0."""

    async def pause(self, id_: str) -> None:
        """Pause a container."""

    async def resume(self, id_: str) -> None:
        """Resume a container."""

    async def relabel(self, id_: str, key: str, value: str) -> None:
        """Set one label of a container."""

    async def kill(self, id_: str) -> None:
        """Kill a container with SIGKILL."""

    async def delete_task(self, id_: str) -> None:
        """Delete the task of a container."""

    async def delete(self, id_: str) -> None:
        """Delete a container."""

    async def tag(self, name: str) -> str:
        """Make a name point to an image, which may be the same as before; return the digest."""

    async def hang_shim(self, id_: str, *, hung: bool) -> None:
        """Suspend or resume the shim of a container."""


class RealDriver:
    """Drive a real containerd through its own client."""

    def __init__(self, engine: Containerd, namespace: str) -> None:
        self.namespace = namespace
        self._engine = engine

    @property
    def address(self) -> str:
        return self._engine.address

    @property
    def version(self) -> str:
        return self._engine.version

    async def prepare(self) -> None:
        """Import the image into the namespace."""
        await asyncio.to_thread(self._engine.import_image, self.namespace)

    async def create(self, id_: str, *, spec_bytes: int = 0) -> None:
        await create_containers(self.address, self.namespace, [id_], spec_bytes=spec_bytes)

    async def run(self, id_: str, labels: Mapping[str, str]) -> None:
        options = [f"--label={key}={value}" for key, value in labels.items()]
        # The container is not removed, so it must run longer than all tests: its exit would disturb another test.
        await self._ctr("run", "--detach", *options, IMAGE, id_, "sleep", "86400")

    async def exec(self, id_: str, exec_id: str) -> None:
        await self._ctr("tasks", "exec", "--exec-id", exec_id, id_, "true")

    async def pause(self, id_: str) -> None:
        await self._ctr("tasks", "pause", id_)

    async def resume(self, id_: str) -> None:
        await self._ctr("tasks", "resume", id_)

    async def relabel(self, id_: str, key: str, value: str) -> None:
        await self._ctr("containers", "label", id_, f"{key}={value}")

    async def kill(self, id_: str) -> None:
        await self._ctr("tasks", "kill", "--signal", "SIGKILL", id_)

    async def delete_task(self, id_: str) -> None:
        await self._ctr("tasks", "delete", id_)

    async def delete(self, id_: str) -> None:
        await self._ctr("containers", "delete", id_)

    async def tag(self, name: str) -> str:
        await self._ctr("images", "tag", "--force", IMAGE, name)
        return await asyncio.to_thread(self._engine.image_digest, IMAGE, self.namespace)

    async def hang_shim(self, id_: str, *, hung: bool) -> None:
        for pid in self._engine.shim_pids(self.namespace, id_):
            if hung:
                await asyncio.to_thread(suspend_process, pid)
            else:
                os.kill(pid, signal.SIGCONT)

    async def _ctr(self, *args: str) -> None:
        await asyncio.to_thread(self._engine.ctr, *args, namespace=self.namespace)


class SimulatedDriver:
    """Drive the simulator."""

    def __init__(self, engine: SimulatedContainerd, namespace: str) -> None:
        self.namespace = namespace
        self._engine = engine
        self._state = engine.state

    @property
    def address(self) -> str:
        return self._engine.address

    @property
    def version(self) -> str:
        return self._engine.version

    async def create(self, id_: str, *, spec_bytes: int = 0) -> None:
        self._state.create(self._key(id_), spec_bytes=spec_bytes)

    async def run(self, id_: str, labels: Mapping[str, str]) -> None:
        self._state.run(self._key(id_), labels)

    async def exec(self, id_: str, exec_id: str) -> None:
        self._state.exec(self._key(id_), exec_id)

    async def pause(self, id_: str) -> None:
        self._state.pause(self._key(id_))

    async def resume(self, id_: str) -> None:
        self._state.resume(self._key(id_))

    async def relabel(self, id_: str, key: str, value: str) -> None:
        labels = self._state.container(self._key(id_)).labels
        self._state.relabel(self._key(id_), {**labels, key: value})

    async def kill(self, id_: str) -> None:
        self._state.exit(self._key(id_))

    async def delete_task(self, id_: str) -> None:
        self._state.delete_task(self._key(id_))

    async def delete(self, id_: str) -> None:
        self._state.delete(self._key(id_))

    async def tag(self, name: str) -> str:
        digest = f"sha256:{1:064x}"
        self._state.tag(self.namespace, digest, name)
        return digest

    async def hang_shim(self, id_: str, *, hung: bool) -> None:
        shims = self._engine.faults.hung_shims
        (shims.add if hung else shims.discard)(self._key(id_))

    def _key(self, id_: str) -> ContainerKey:
        return ContainerKey(self.namespace, id_)
