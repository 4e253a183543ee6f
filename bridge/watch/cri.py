"""What only containerd's CRI plugin knows: how containers have ended unseen, and labels of pods.

containerd forgets a task when it is deleted, which CRI does as soon as the container has exited. CRI itself remembers
the container until kubelet removes it. The labels of a pod are those of its sandbox container, unless a runtime with
``sandboxer = "shim"`` makes none. CRI is only evidence beside containerd's API: if it does not respond, the watch goes
on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

import structlog
from msgspec.structs import replace

from bridge.core.container_metadata import KUBERNETES_NAMESPACE
from bridge.core.containerd_model import ContainerKey, Labels, Metadata, RecordedExit
from bridge.core.errors import BridgeError, TransientError
from bridge.core.ports import Clock, EngineClient
from bridge.core.reconcile import Listing
from bridge.core.time import from_seconds, to_seconds
from bridge.task_groups import task_group
from bridge.watch.settings import WatchSettings

CALL_SECONDS = 5.0  # for one call; a slower CRI is hung
INITIALIZATION_SECONDS = 15.0  # CRI fails calls until it has restored its containers, after a start of containerd
RECORDS_SECONDS = 10.0  # for all records that are requested together
MAX_RECORDS = 10_000  # requested together, the oldest containers first: a node rarely has a tenth of them
_PROBE_SECONDS = 1.0  # for the list call while CRI is known not to respond
_RETRY_PAUSE_SECONDS = 0.25
_MAX_CALLS = 16  # at a time
_MAX_FAILURES = 3  # of status calls one after the other: more are not due to the containers
_Call: TypeAlias = Literal["list", "status"]
_log = structlog.get_logger(__name__)


class CRI:
    """The CRI plugin of the watched containerd; ``settings`` returns the current settings.

    Whether it responds is found by listing, at each synchronization and audit; until then, no records are requested.
    """

    def __init__(self, client: EngineClient, clock: Clock, settings: Callable[[], WatchSettings]) -> None:
        self._client = client
        self._clock = clock
        self._settings = settings
        self._responds = False
        self._failing: _Call | None = None  # the call that has failed, until it succeeds
        self._lists_pods = True  # as far as known

    async def complete(self, listing: Listing) -> None:
        """Add what CRI lists to a listing of containerd: the containers that have exited, and the labels of pods."""
        listing.exits = dict.fromkeys(await self.exited_containers())
        listing.exits_listed = self._responds
        await self._add_pod_labels(listing.containers)

    async def exited_containers(self) -> Sequence[ContainerKey]:
        """Return the containers that CRI knows to have exited, in the order of creation; none if it does not respond.

        Waits for a CRI that is not initialized yet.
        """
        self._responds = False
        if not self._is_watched():
            return []
        deadline = self._clock.now().monotonic + from_seconds(INITIALIZATION_SECONDS)
        while True:
            called_at = self._clock.now().monotonic
            seconds = self._seconds("list")
            try:
                exited = await self._client.exited_containers(seconds)
                break
            except BridgeError as error:
                now = self._clock.now().monotonic
                is_hung = to_seconds(now - called_at) >= seconds
                if not isinstance(error, TransientError) or is_hung or self._failing == "list" or now >= deadline:
                    self._note_failure("list", error)
                    return []
                await self._clock.sleep(_RETRY_PAUSE_SECONDS)
        if exited is None:  # containerd has no CRI
            return []
        self._responds = True
        self._note_success("list")
        return exited

    def may_know(self, key: ContainerKey) -> bool:
        """Return whether CRI responds and may know a container."""
        return self._responds and key.namespace == KUBERNETES_NAMESPACE and self._settings().uses_cri

    async def recorded_exits(self, keys: Sequence[ContainerKey]) -> dict[ContainerKey, RecordedExit]:
        """Return CRI's records of the exits of containers, as far as CRI has them and responds.

        Those of the containers named first are requested first, so that attempts remain in order if others must wait.
        """
        keys = [key for key in keys if self.may_know(key)][:MAX_RECORDS]
        recorded: dict[ContainerKey, RecordedExit] = {}
        deadline = self._clock.now().monotonic + from_seconds(RECORDS_SECONDS)
        queue, failures = iter(keys), 0

        async def request() -> None:
            nonlocal failures
            for key in queue:
                if not self._responds:
                    return
                called_at, seconds = self._clock.now().monotonic, self._seconds("status")
                try:
                    exit_ = await self._client.recorded_exit(key, seconds)
                except BridgeError as error:
                    failures += 1
                    is_hung = to_seconds(self._clock.now().monotonic - called_at) >= seconds
                    if is_hung or failures > _MAX_FAILURES:
                        self._note_failure("status", error)
                        return
                    _log.warning("cri_record_unavailable", id=key.id, error=str(error))
                    continue
                failures = 0
                self._note_success("status")
                if exit_ is not None:
                    recorded[key] = exit_
                if self._clock.now().monotonic >= deadline:
                    return

        async with task_group() as tasks:
            for _ in range(min(_MAX_CALLS, len(keys))):
                tasks.create_task(request())
        return recorded

    async def _add_pod_labels(self, containers: dict[ContainerKey, Metadata]) -> None:
        """Add the labels of their pods to listed containers whose pods have no sandbox container, if CRI responds."""
        sandboxes = {each.pod.uid for each in containers.values() if each.kind == "sandbox" and each.pod is not None}
        incomplete = [each for each in containers.values() if each.pod is not None and each.pod.uid not in sandboxes]
        if incomplete:
            labels = await self._pod_labels()
            containers.update((each.key, _with_pod_labels(each, labels)) for each in incomplete)

    async def with_pod_labels(self, metadata: Metadata) -> Metadata:
        """Return the metadata of a container with the labels of its pod, unless CRI has failed to list pods."""
        if metadata.pod is None or not self._lists_pods:
            return metadata
        return _with_pod_labels(metadata, await self._pod_labels(metadata.pod.uid))

    async def _pod_labels(self, uid: str = "") -> Mapping[str, Labels]:
        if not self._responds:
            return {}
        try:
            labels = await self._client.pod_labels(CALL_SECONDS if self._lists_pods else _PROBE_SECONDS, uid)
        except BridgeError as error:
            if self._lists_pods:
                _log.warning("cri_pods_unavailable", error=str(error))
            self._lists_pods = False
            return {}
        self._lists_pods = True
        return labels

    def _is_watched(self) -> bool:
        settings = self._settings()
        return settings.uses_cri and settings.namespace_filter(KUBERNETES_NAMESPACE)

    def _seconds(self, call: _Call) -> float:
        return _PROBE_SECONDS if self._failing == call else CALL_SECONDS

    def _note_failure(self, call: _Call, error: BridgeError) -> None:
        """Do without CRI until it responds to a list call again; log the first of several failures."""
        self._responds = False
        if self._failing is None:
            hint = "exits that fall into a gap have no status; see containerd's log, or set containerd.cri to off"
            _log.warning("cri_unavailable", error=str(error), hint=hint)
        self._failing = call

    def _note_success(self, call: _Call) -> None:
        if self._failing == call:
            self._failing = None
            _log.info("cri_available")


def _with_pod_labels(metadata: Metadata, labels: Mapping[str, Labels]) -> Metadata:
    return replace(metadata, pod_labels=labels.get(metadata.pod.uid)) if metadata.pod is not None else metadata
