"""Histories of a host: the promises hold, a seed always has the same history, and broken bridges are noticed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace

from bridge.core import reconcile
from bridge.core.container_state import Transition
from bridge.core.container_store import ContainerStore
from bridge.core.containerd_model import ContainerEvent, ContainerKey, Image, Instant, Metadata, Task
from bridge.core.errors import BridgeError
from bridge.core.exit_counts import ExitCounts
from bridge.core.label_rules import LabelRules
from bridge.core.record_encoder import Gap, RecordEncoder
from bridge.core.records import Record
from bridge.core.tracker import Tracker
from bridge.core.transition_emitter import TransitionEmitter
from bridge.delivery.pump import Pump
from bridge.outbox.outbox import StoredOutbox
from bridge.outbox.sink_queue import Limits
from bridge.outbox.writer import Writer
from bridge.watch import audit, follow, image_digests, recovery, sync
from bridge.watch.cri import CRI
from bridge.watch.event_queue import EventQueue
from bridge.watch.follow import Connection
from bridge.watch.journal import Journal
from bridge.watch.listing import query_tasks
from bridge.watch.state import WatchState
from tests.scale import scaled
from tests.simulator.__main__ import find_broken_promises, replay_command

SEEDS = scaled(reduced=500, full=5_000)
CHUNKS = 10
MAX_SEEDS = 150  # until a broken bridge must have been noticed


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_promises_hold_in_all_histories(chunk: int) -> None:
    for seed in range(chunk, SEEDS, CHUNKS):
        broken = find_broken_promises(seed)
        assert not broken, "\n".join([replay_command(seed), *broken])


def test_history_of_a_seed_does_not_depend_on_the_process() -> None:
    code = (
        "from tests.simulator.history import run_history, trace_hash\n"
        "print(*(trace_hash(run_history(seed)) for seed in range(20)))"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(outputs) == 1
    assert len(set(outputs.pop().split())) == 20


# --- broken bridges ---


async def acknowledge_before_publishing(pump: Any, batch: Sequence[Record]) -> None:
    await pump._outbox.acknowledge(pump.name, batch)
    with contextlib.suppress(BridgeError):
        await pump._publish(batch)


async def acknowledge_rejected_records(outbox: Any, sink: str, positions: Any, _reason: str) -> int:
    await outbox.acknowledge(sink, outbox._queues[sink].in_flight.records)
    return len(positions)


async def deliver_before_commit(writer: Any) -> None:
    records = [record for append in writer._in_flight for record in append.records]
    size = sum(len(record.data) for record in records)
    batch = writer._build_batch(records, size)
    writer._cache.extend(records, size)
    for queue in writer._queues.values():
        queue.not_empty.set()
    await writer._worker.run_until_done(lambda store: store.write(batch))
    for append in writer._in_flight:
        append.done.set_result(None)
    writer._in_flight = []


def reuse_epoch(_: WatchState, minimum: int) -> int:
    return max(1, minimum - 1)


_init_encoder = RecordEncoder.__init__


def forget_previous_position(encoder: RecordEncoder, *args: Any, **_: Any) -> None:
    _init_encoder(encoder, *args)


async def write_checkpoint_later(journal: Any, *, force: bool = False) -> None:
    records, journal._buffer = journal._buffer, []
    if records or force:
        await journal._state.outbox.append(records, {})
    if not journal._state.pending and (records or force):
        await journal._state.outbox.append([], journal._checkpoint_changes())


_take = TransitionEmitter.take


def publish_exits_twice(emitter: TransitionEmitter) -> list[Transition]:
    transitions = _take(emitter)
    return transitions + [each for each in transitions if each.type == "exited"]


_present = TransitionEmitter.present


def omit_paused_containers(emitter: TransitionEmitter, now: Instant) -> list[Transition]:
    return [each for each in _present(emitter, now) if not each.paused]


async def take_hung_shims_for_gone(*args: Any) -> list[Task | BridgeError | None]:
    return [None if isinstance(each, BridgeError) else each for each in await query_tasks(*args)]


def trust_listing(tracker: Tracker, key: ContainerKey, task: Task | None, now: Instant) -> list[Transition]:
    return tracker.apply_task_state(key, task, now)


def begin_gap_now(reason: Any, _since: object, until: int) -> Gap:
    return Gap(reason, until, until)


async def trust_subscription(connection: Connection) -> object:
    return connection.state.clock.now()


_acknowledge = StoredOutbox.acknowledge


async def acknowledge_silently(outbox: StoredOutbox, sink: str, batch: Sequence[Record]) -> bool:
    await _acknowledge(outbox, sink, batch)
    return False


async def find_no_records(*_: object) -> dict[object, object]:
    return {}


async def do_nothing(*_: object) -> None:
    pass


def forget_queue(queue: Any) -> None:
    queue._known_keys.clear()
    queue._queue.clear()


_update_metadata = ContainerStore.update_metadata


def keep_first_metadata(store: ContainerStore, metadata: Metadata) -> None:
    entry = store.find(metadata.key)
    if entry is None or entry.metadata is None:
        _update_metadata(store, metadata)


def trust_image(metadata: Metadata, image: Image | None, _: int) -> Metadata:
    return metadata if image is None else replace(metadata, image_digest=image.digest)


async def publish_backwards(pump: Any, batch: Sequence[Record]) -> None:
    await pump._sink.publish(batch[::-1])


async def receive_and_process(queue: EventQueue, events: list[ContainerEvent]) -> None:
    queue.put_nowait(events)
    await queue.wait_processed()


_count_exit = ExitCounts._count_exit


def count_silently(counts: ExitCounts, *args: Any) -> None:
    _count_exit(counts, *args)
    counts._changed = False


class Mutant(NamedTuple):
    """A bridge that breaks a promise, because attributes of ``patches`` are replaced."""

    name: str
    promise: str
    patches: Mapping[tuple[Any, str], Callable[..., Any]]


MUTANTS = [
    Mutant("acknowledges before publishing", "P1", {(Pump, "_deliver"): acknowledge_before_publishing}),
    Mutant("drops lost records", "P1", {(StoredOutbox, "reject"): acknowledge_rejected_records}),
    Mutant("delivers before the commit", "P1", {(Writer, "_write"): deliver_before_commit}),
    Mutant("reuses an epoch", "P1", {(recovery, "_next_epoch"): reuse_epoch}),
    Mutant("forgets the previous position", "P1", {(RecordEncoder, "__init__"): forget_previous_position}),
    Mutant("writes the checkpoint later", "P2", {(Journal, "write"): write_checkpoint_later}),
    Mutant("omits paused containers", "P2", {(TransitionEmitter, "present"): omit_paused_containers}),
    Mutant("publishes exits twice", "P2", {(TransitionEmitter, "take"): publish_exits_twice}),
    Mutant(
        "takes hung shims for gone",
        "P3",
        {(follow, "query_tasks"): take_hung_shims_for_gone},
    ),
    Mutant("trusts the listing against newer events", "P3", {(reconcile, "_merge_task"): trust_listing}),
    Mutant("never audits", "P3", {(audit, "find_mismatches"): lambda *_: set()}),
    Mutant("begins the gap too late", "P4", {(sync, "Gap"): begin_gap_now}),
    Mutant("skips the marker round trip", "P4", {(Connection, "pass_marker"): trust_subscription}),
    Mutant("takes no snapshot after a loss", "P4", {(StoredOutbox, "acknowledge"): acknowledge_silently}),
    Mutant("publishes backwards", "P5", {(Pump, "_publish"): publish_backwards}),
    Mutant(
        "loses received events when it stops",
        "P6",
        {(Connection, "shut_down"): do_nothing, (Connection, "process_received"): lambda _: None},
    ),
    Mutant(
        "loses received events when it reconnects",
        "P6",
        {(EventQueue, "reconnect"): forget_queue, (Connection, "process_received"): lambda _: None},
    ),
    Mutant("ignores CRI's records", "P6", {(CRI, "recorded_exits"): find_no_records}),
    Mutant("keeps the first metadata", "P7", {(ContainerStore, "update_metadata"): keep_first_metadata}),
    Mutant("ignores when an image was changed", "P7", {(image_digests, "with_image_digest"): trust_image}),
    Mutant("receives no faster than it writes", "P8", {(EventQueue, "put"): receive_and_process}),
    Mutant("ignores the limits", "P8", {(Limits, "overflow"): lambda *_: (0, 0)}),
    Mutant("ignores the label rules", "P9", {(LabelRules, "apply"): lambda _, labels: dict(labels)}),
    Mutant("forgets the exit counts", "exit counts", {(ExitCounts, "restore"): lambda *_: None}),
    Mutant("persists no counts between snapshots", "exit counts", {(ExitCounts, "_count_exit"): count_silently}),
    Mutant("keeps labels that new rules drop", "P9", {(Tracker, "apply_label_rules"): lambda *_: None}),
]


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_broken_bridge_is_noticed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    for (target, name), replacement in mutant.patches.items():
        monkeypatch.setattr(target, name, replacement)
    for seed in range(MAX_SEEDS):
        try:
            broken = find_broken_promises(seed)
        except asyncio.CancelledError:
            continue
        if any(each.startswith(mutant.promise) for each in broken):
            return
    pytest.fail(f"{MAX_SEEDS} histories do not show that {mutant.promise} is broken")
