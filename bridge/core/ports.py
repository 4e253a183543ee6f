"""Ports: the interfaces of clock, containerd, sinks and outbox that the core depends on.

Time, waits, timeouts and randomness are accessed only through ``Clock``, so that tests and simulators control them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import NamedTuple, Protocol

from bridge.core.containerd_model import (
    ContainerKey,
    Engine,
    Event,
    ExitStatus,
    Image,
    Instant,
    Labels,
    Metadata,
    RecordedExit,
    Task,
)
from bridge.core.errors import BridgeError
from bridge.core.records import Record


class Clock(Protocol):
    """Time and randomness."""

    def now(self) -> Instant:
        """Return the current moment on both clocks."""

    async def sleep(self, seconds: float) -> None:
        """Sleep for a number of seconds."""

    def timeout(self, seconds: float | None) -> AbstractAsyncContextManager[object]:
        """Limit the duration of a block; None for no limit. A block that takes longer raises a TimeoutError."""

    def random(self) -> float:
        """Return a random number in the interval [0, 1)."""


class EventStream(Protocol):
    """One subscription to containerd's events, received into memory regardless of downstream load."""

    async def batch(self) -> Sequence[Event]:
        """Wait for events; return the oldest in containerd's order, between one and several thousand.

        Raises:
            StreamOverflowError: The buffer overflowed; its events are dropped.
            TransientError: The stream ended; all events received before have been returned.
        """

    def close(self) -> None:
        """End the subscription; idempotent."""

    def drain(self) -> Sequence[Event]:
        """Return the events received before ``close`` and not returned yet; none after an overflow."""


class WaitCalls(Protocol):
    """Calls that wait for the exits of tasks, without a time limit, thousands at a time."""

    def start(self, key: ContainerKey, on_end: Callable[[ExitStatus | BridgeError | None], None]) -> None:
        """Wait for the exit of a container's task.

        ``on_end`` gets the exit status, or None if there is no task, or a BridgeError if the connection ended, or if
        containerd or the shim did not respond. It may be called before this method returns.
        """

    def close(self) -> None:
        """End all calls without a result; idempotent."""


class EngineClient(Protocol):
    """Client of one containerd, read-only except for markers. Calls raise BridgeErrors, and have a time limit."""

    @property
    def path(self) -> str:
        """The path of containerd's socket, for error messages."""

    async def engine(self) -> Engine:
        """Connect if necessary, and return which containerd responds."""

    async def subscribe(self) -> EventStream:
        """Subscribe to events; only a returned marker confirms that the subscription works."""

    async def publish_marker(self, nonce: str, number: int) -> None:
        """Publish a marker, which returns on every working subscription."""

    async def namespaces(self) -> Sequence[str]:
        """List all namespaces."""

    def containers(self, namespace: str) -> AsyncIterator[Metadata]:
        """List the metadata of a namespace's containers, regardless of number and size."""

    async def tasks(self, namespace: str) -> Sequence[Task]:
        """List a namespace's tasks; a task missing from the list may still be running."""

    async def container(self, key: ContainerKey) -> Metadata | None:
        """Return a container's current metadata; None if the container does not exist.

        Raises:
            TransientError: containerd cannot be reached.
            UnreadableError: containerd responds, but cannot return this container.
        """

    async def task(self, key: ContainerKey) -> Task | None:
        """Return a container's current task; None if containerd reports that there is none.

        Raises:
            TransientError: containerd or the shim did not respond; the state of the task is unknown.
        """

    async def exited_containers(self, seconds: float) -> Sequence[ContainerKey] | None:
        """List the containers that CRI knows to have exited, in the order of creation; None if there is no CRI.

        Raises:
            TransientError: CRI did not respond within the time, or is not initialized yet.
            UnreadableError: CRI fails, or the proxy denies the call.
        """

    async def recorded_exit(self, key: ContainerKey, seconds: float) -> RecordedExit | None:
        """Return CRI's record of a container that has exited; None if CRI has none. Errors as above."""

    async def pod_labels(self, uids: Collection[str], seconds: float) -> Mapping[str, Labels]:
        """Return the own labels of CRI's pods by uid, at least of these; empty if there is no CRI. Errors as above."""

    async def image(self, namespace: str, name: str, seconds: float) -> Image | None:
        """Return what the name of an image points to; None if there is no such image.

        Raises:
            TransientError: containerd cannot be reached, or did not respond within the time.
            UnreadableError: containerd fails, or the proxy denies the call.
        """

    def wait_calls(self) -> WaitCalls:
        """Return calls that wait for exits; they connect when the first one starts."""

    async def close(self) -> None:
        """Close all connections; idempotent."""


class Sink(Protocol):
    """Destination of records. A sink limits the retries of its library; the pump retries batches."""

    async def start(self) -> None:
        """Connect.

        Raises:
            TransientError: Not reachable now.
            FatalError: A retry cannot succeed until an operator changes something; the pump retries rarely.
            DisconnectedError: A retry cannot succeed in this process.
        """

    async def publish(self, batch: Sequence[Record]) -> None:
        """Publish records in order; return when the broker has acknowledged all of them.

        Raises:
            TransientError: Some records may not be stored; the whole batch may be published again.
            RejectedRecordError: Some records will never be accepted; the others must be published again.
            FatalError: Like ``start``.
        """

    async def close(self) -> None:
        """Release all resources within a bounded time; idempotent."""


class StoredCheckpoint(NamedTuple):
    """The checkpoint that an earlier process left in the outbox.

    ``reset``: a checkpoint existed but could not be read; ``last_written`` (wall clock, 0 if unknown) is then the time
    of the last write. ``copied``: the checkpoint is in a copy of the file that the earlier process wrote, so it may be
    older than the published records, or another machine's.
    """

    values: Mapping[str, bytes]
    reset: bool = False
    last_written: int = 0
    copied: bool = False


class Lag(NamedTuple):
    """Backlog of a sink: records, bytes, age of the oldest record in seconds; and the number of records lost so far."""

    records: int
    size: int
    oldest_age: float
    dropped: int


class Outbox(Protocol):
    """Buffer for records until every sink has acknowledged them; it keeps all appended records, within its limits.

    In addition, the outbox stores the checkpoint: opaque values by key, updated atomically with the records.
    """

    @property
    def last_error(self) -> str | None:
        """Return why the outbox cannot write at the moment; None if it can."""

    def load_checkpoint(self) -> StoredCheckpoint:
        """Return the checkpoint of an earlier process; call once, before the first ``append``."""

    async def append(self, records: Sequence[Record], checkpoint: Mapping[str, bytes | None] = ...) -> None:
        """Append records and update the checkpoint (None removes a key), atomically.

        Returns when the data is as safe as this outbox makes it, however long that takes. The outbox owns the records
        from the moment of the call: a caller that is canceled must not append them again.

        Raises:
            FatalError: The outbox cannot continue.
        """

    async def read(self, sink: str, limit: int, max_bytes: int = ...) -> Sequence[Record]:
        """Wait for records that a sink has not acknowledged; return the oldest, at least one, in order.

        A ``lost`` record takes the place of dropped and rejected records. The result has at most ``limit`` records and
        at most ``max_bytes`` of data, unless the first record alone is larger.
        """

    async def acknowledge(self, sink: str, batch: Sequence[Record]) -> bool:
        """Acknowledge the records that the sink read last, or a prefix of them.

        Returns:
            Whether they report records dropped at the limits, so that a snapshot should follow.
        """

    async def reject(self, sink: str, positions: Collection[tuple[int, int]], reason: str) -> int:
        """Dead-letter records that the sink read last and that it rejects for good; a ``lost`` record reports the loss.

        Returns:
            How many of ``positions`` were among the records read last. The other records must be read again.
        """

    def depth(self, sink: str) -> int:
        """Return the number of records that a sink has not acknowledged."""

    def lag(self, sink: str) -> Lag:
        """Return the details of a sink's backlog."""
