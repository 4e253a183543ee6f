"""What only containerd's CRI plugin knows: how containers have ended unseen, and labels of pods.

containerd forgets a task when it is deleted, which CRI does as soon as the container has exited. CRI itself remembers
the container until kubelet removes it. The labels of a pod are those of its sandbox container, unless a runtime with
``sandboxer = "shim"`` makes none. CRI is only evidence beside containerd's API: if it does not respond, the watch goes
on without it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Literal, TypeAlias

import structlog
from msgspec.structs import replace

from bridge.core.container_metadata import KUBERNETES_NAMESPACE
from bridge.core.containerd_model import ContainerKey, Labels, Metadata, RecordedExit
from bridge.core.errors import BridgeError, TransientError
from bridge.core.ports import Clock, EngineClient
from bridge.core.reconcile import Listing
from bridge.core.time import from_seconds, to_seconds
from bridge.task_groups import completes_within, task_group
from bridge.watch.settings import WatchSettings

CALL_SECONDS = 5.0  # for one call; a slower CRI is hung
INITIALIZATION_SECONDS = 15.0  # CRI fails calls until it has restored its containers, after a start of containerd
RECORDS_SECONDS = 10.0  # for all records that are requested together
MAX_RECORDS = 10_000  # requested together, the oldest containers first: a node rarely has a tenth of them
POD_SECONDS = 2.0  # for the labels of one pod, while the event of its container waits for them
_PROBE_SECONDS = 1.0  # for a call that is known to fail
_RETRY_PAUSE_SECONDS = 0.25
_MAX_CALLS = 16  # at a time
_MAX_FAILURES = 3  # containers whose status calls fail one after the other: more are not due to the containers
_Call: TypeAlias = Literal["list", "status"]
_log = structlog.get_logger(__name__)


class CRI:
    """The CRI plugin of the watched containerd; ``settings`` returns the current settings.

    Whether it responds is found by listing, at each synchronization and audit; until then, nothing else is requested.
    After several failed status calls, no more records are requested until it is listed again.
    """

    def __init__(self, client: EngineClient, clock: Clock, settings: Callable[[], WatchSettings]) -> None:
        self._client = client
        self._clock = clock
        self._settings = settings
        self._responds = False  # to the last list call
        self._returns_records = self._lists_pods = True  # as far as known
        self._failing: set[_Call] = set()  # the calls that do not work, until they do
        self._failed: set[ContainerKey] = set()  # exited containers whose last status call has failed
        self._failures = 0  # of status calls, of different containers, since the last success
        self._successes = 0  # of status calls

    async def complete(self, listing: Listing) -> None:
        """Add what CRI lists to a listing of containerd: the containers that have exited, and the labels of pods."""
        listing.exits = dict.fromkeys(await self.exited_containers())
        listing.exits_listed = self._responds
        await self._add_pod_labels(listing.containers)

    async def exited_containers(self) -> Sequence[ContainerKey]:
        """Return the containers that CRI knows to have exited, in the order of creation; none if it does not respond.

        Waits for a CRI that is not initialized yet.
        """
        if not self._is_watched():
            self._responds = False
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
                if not isinstance(error, TransientError) or is_hung or "list" in self._failing or now >= deadline:
                    self._responds = False
                    self._note_failure("list", error)
                    return []
                await self._clock.sleep(_RETRY_PAUSE_SECONDS)
        self._responds = self._returns_records = exited is not None
        if exited is None:  # containerd has no CRI
            return []
        self._note_success("list")
        self._failed.intersection_update(exited)
        return exited

    def may_know(self, key: ContainerKey) -> bool:
        """Return whether CRI responds and may know a container."""
        return (
            self._responds
            and self._returns_records
            and key.namespace == KUBERNETES_NAMESPACE
            and self._settings().uses_cri
        )

    async def recorded_exits(self, keys: Sequence[ContainerKey]) -> dict[ContainerKey, RecordedExit]:
        """Return CRI's records of the exits of containers, as far as CRI has them and responds.

        Those of the containers named first are requested first, so that attempts remain in order if others must wait.
        """
        keys = [key for key in keys if self.may_know(key)][:MAX_RECORDS]
        recorded: dict[ContainerKey, RecordedExit] = {}
        failures: dict[ContainerKey, BridgeError] = {}
        queue = iter(keys)

        async def request() -> None:
            for key in queue:
                if not self._returns_records:
                    return
                try:
                    exit_ = await self._recorded_exit(key)
                except BridgeError as error:
                    failures[key] = error
                else:
                    if exit_ is not None:
                        recorded[key] = exit_

        async def request_all() -> None:
            async with task_group() as tasks:
                for _ in range(min(_MAX_CALLS, len(keys))):
                    tasks.create_task(request())

        known_failures = self._failed.copy()
        await completes_within(RECORDS_SECONDS, self._clock, request_all())
        if self._returns_records:  # otherwise, that was reported
            for key, error in failures.items():
                if key not in known_failures:
                    _log.warning("cri_record_unavailable", id=key.id, error=str(error))
        return recorded

    async def _recorded_exit(self, key: ContainerKey) -> RecordedExit | None:
        """Return CRI's record of an exit. If the calls for several containers fail, stop requesting records.

        A container whose call has failed before proves nothing, nor does a call that others have overtaken.
        """
        seconds = _PROBE_SECONDS if key in self._failed else self._seconds("status")
        successes = self._successes
        try:
            exit_ = await self._client.recorded_exit(key, seconds)
        except BridgeError as error:
            self._failures += key not in self._failed and self._successes == successes
            self._failed.add(key)
            if self._failures > _MAX_FAILURES:
                self._returns_records = False
                self._note_failure("status", error)
            raise
        self._failed.discard(key)
        self._failures = 0
        self._successes += 1
        if self._returns_records:  # otherwise, other calls have failed meanwhile
            self._note_success("status")
        return exit_

    async def _add_pod_labels(self, containers: dict[ContainerKey, Metadata]) -> None:
        """Add the labels of their pods to listed containers whose pods have no sandbox container, if CRI responds.

        If it has failed to list pods, find out whether it does so again.
        """
        sandboxes = {each.pod.uid for each in containers.values() if each.kind == "sandbox" and each.pod is not None}
        incomplete = [each for each in containers.values() if each.pod is not None and each.pod.uid not in sandboxes]
        if incomplete or not self._lists_pods:
            uids = {each.pod.uid for each in incomplete if each.pod is not None}
            labels = await self._pod_labels(uids, CALL_SECONDS if self._lists_pods else _PROBE_SECONDS)
            containers.update((each.key, _with_pod_labels(each, labels)) for each in incomplete)

    async def with_pod_labels(self, metadata: Metadata) -> Metadata:
        """Return the metadata of a container with the labels of its pod, unless CRI has failed to list pods."""
        if metadata.pod is None or not self._lists_pods:
            return metadata
        return _with_pod_labels(metadata, await self._pod_labels({metadata.pod.uid}, POD_SECONDS))

    async def _pod_labels(self, uids: Collection[str], seconds: float) -> Mapping[str, Labels]:
        if not self._responds:
            return {}
        try:
            labels = await self._client.pod_labels(uids, seconds)
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
        return _PROBE_SECONDS if call in self._failing else CALL_SECONDS

    def _note_failure(self, call: _Call, error: BridgeError) -> None:
        """Note that a call does not work; log the first of several failures."""
        if not self._failing:
            hint = "exits that fall into a gap have no status; see containerd's log, or set containerd.cri to off"
            _log.warning("cri_unavailable", error=str(error), hint=hint)
        self._failing.add(call)

    def _note_success(self, call: _Call) -> None:
        if call in self._failing:
            self._failing.remove(call)
            if not self._failing:
                _log.info("cri_available")


def _with_pod_labels(metadata: Metadata, labels: Mapping[str, Labels]) -> Metadata:
    return replace(metadata, pod_labels=labels.get(metadata.pod.uid)) if metadata.pod is not None else metadata
