"""The ports: what the flow needs of the world, and nothing of how the world does it.

Clock, sleep and randomness are reached through here only, so that a simulator can own them.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import NamedTuple, Protocol

from bridge.core.events import Record
from bridge.core.model import ContainerKey, Engine, Event, Instant, Metadata, Task, TaskEnd


class Clock(Protocol):
    """Time and chance."""

    def now(self) -> Instant:
        """Return this moment on both clocks."""

    async def sleep(self, seconds: float) -> None:
        """Wait."""

    def random(self) -> float:
        """Return a number of the interval [0, 1)."""


class Stream(Protocol):
    """One subscription to containerd's events, drained into memory whether or not anyone asks for batches."""

    async def batch(self) -> Sequence[Event]:
        """Wait for events; return the oldest, in containerd's order, from one to some thousands.

        Raises:
            StreamOverflowError: More was received than may be held; what was held is dropped.
            TransientError: The stream ended; whatever was received before has been returned.
        """

    def close(self) -> None:
        """End the subscription; harmless when repeated."""

    def rest(self) -> Sequence[Event]:
        """Return what was received before it was closed and has not been handed over; nothing after an overflow."""


class Source(Protocol):
    """One containerd, read only but for marks. Every call is bounded in time and raises BridgeErrors only."""

    async def engine(self) -> Engine:
        """Connect where that is needed, and tell which containerd answers."""

    async def subscribe(self) -> Stream:
        """Start receiving events; that it works is known only when a mark came back."""

    async def mark(self, nonce: str, number: int) -> None:
        """Publish a mark, which comes back on every stream that works."""

    async def namespaces(self) -> Sequence[str]:
        """List all namespaces."""

    def containers(self, namespace: str) -> AsyncIterator[Metadata]:
        """List a namespace's records, however many and however large they are."""

    async def tasks(self, namespace: str) -> Sequence[Task]:
        """List a namespace's tasks; one that is left out may live all the same."""

    async def container(self, key: ContainerKey) -> Metadata | None:
        """Return a container's record as it is now; None where there is none.

        Raises:
            TransientError: containerd cannot be reached.
            UnreadableError: It can, but does not give this record.
        """

    async def task(self, key: ContainerKey) -> Task | None:
        """Return a container's task as it is now; None is containerd's word that there is none.

        Raises:
            TransientError: containerd or the shim gave no answer, which proves nothing.
        """

    async def wait(self, key: ContainerKey) -> TaskEnd | None:
        """Wait for the end of a container's task, for as long as it takes; None where there is no task.

        Raises:
            TransientError: The connection ended, or containerd or the shim gave no answer.
        """

    async def close(self) -> None:
        """End all connections; harmless when repeated."""


class Sink(Protocol):
    """Where records go. One owner of each retry: a sink bounds its library's own retries, the pump repeats."""

    async def start(self) -> None:
        """Connect.

        Raises:
            TransientError: Not reachable now.
            FatalError: Refused for a reason that only a person can change.
        """

    async def publish(self, batch: Sequence[Record]) -> None:
        """Hand over records in order; return when the other side has acknowledged all of them.

        Raises:
            TransientError: Some were perhaps not stored; the whole batch may be handed over again.
            RefusedRecordError: Some will never be taken, for what they are; the others are to be handed over again.
            FatalError: This sink cannot go on.
        """

    async def close(self) -> None:
        """Let go of everything within a bounded time; harmless when repeated."""


class Recollection(NamedTuple):
    """What an earlier process has left in the outbox.

    ``reset``: there was something, but it could not be read any more; ``last_written`` (wall clock, 0: nothing known)
    is then when that was written to last.
    """

    values: Mapping[str, bytes]
    reset: bool = False
    last_written: int = 0


class Lag(NamedTuple):
    """What waits for a sink: records, bytes, for how many seconds the oldest one; and how many it has lost so far."""

    records: int
    size: int
    age: float
    lost: int


class Outbox(Protocol):
    """Where records wait until every sink has acknowledged them; what it took it keeps, within its bounds.

    Beside the records it keeps a memory: values by key, which mean nothing to it, and change together with them.
    """

    @property
    def trouble(self) -> str | None:
        """Why nothing can be written down at the moment, if that is so."""

    def recall(self) -> Recollection:
        """Hand over the memory as it was left; to be asked for once, before anything is appended."""

    async def append(self, records: Sequence[Record], memory: Mapping[str, bytes | None] = ...) -> None:
        """Write down records and what changes in the memory with them (None: the key is removed), all or nothing.

        When this returns they are as safe as this outbox makes them; it waits for as long as that takes. The moment
        it is called they are taken over: whoever gives up waiting must not append them again.

        Raises:
            FatalError: The outbox cannot go on.
        """

    async def read(self, sink: str, limit: int, max_bytes: int = ...) -> Sequence[Record]:
        """Wait for records that a sink has not acknowledged; return the oldest, at least one, in order.

        Where some had to be dropped or were refused, a ``lost`` record comes in their place. No more than ``limit``
        are returned, and no more than ``max_bytes`` of data unless the first one alone is larger.
        """

    async def acknowledge(self, sink: str, batch: Sequence[Record]) -> None:
        """The sink has what was read last, or its beginning: forget it."""

    async def refuse(self, sink: str, positions: Collection[tuple[int, int]], reason: str) -> int:
        """The sink will never have those of the records read last: set them aside, and have their loss told.

        Returns:
            How many of them were among the records read last. The others of those are to be read again.
        """

    def depth(self, sink: str) -> int:
        """Return how many records a sink has not acknowledged."""

    def lag(self, sink: str) -> Lag:
        """Tell more of what a sink has not acknowledged."""

    async def close(self) -> None:
        """Write down what can be, and let go of everything, within a bounded time; harmless when repeated."""
