"""Synchronization: how the tracked state becomes right on a new connection."""

from __future__ import annotations

import structlog
from msgspec.structs import replace

from bridge.core.reconcile import find_unknown_exits, reconcile
from bridge.core.record_encoder import Gap
from bridge.core.records import SnapshotReason
from bridge.watch.follow import Connection
from bridge.watch.listing import list_containers

MAX_QUERY_ROUNDS = 5  # of task queries before a snapshot is completed as partial
_log = structlog.get_logger(__name__)


async def synchronize(connection: Connection, reason: SnapshotReason) -> None:
    """Publish a snapshot with everything that was missed since the last watermark; from then on follow the events.

    The listing is taken between two watermarks of the stream, while events keep arriving, as in Debezium's incremental
    snapshots (https://debezium.io/blog/2021/10/07/incremental-snapshots/). A watermark is a marker event that the
    bridge publishes to containerd and receives back, because containerd does not confirm a subscription:

    - Low watermark: its return shows that the subscription works. A change before it is in the listing, which is taken
      afterwards; the event of a change after it arrives. So there is no interval that neither of the two covers.
    - High watermark: its return shows that all events from before the end of the listing are processed. The events
      processed since ``state.disconnect()`` are the window, in which listing and events may contradict each other,
      because shims publish after they change state.
    - Reconcile: for a container without an event in the window, the difference between the tracked state and the
      listing is what was missed. With events, the listing counts only if it agrees with them, or shows the exit of the
      same task. Otherwise, and if the listing has no task of the container, the task is queried.

    Nothing is lost if this fails halfway: until the snapshot is published, ``state.pending`` collects the transitions,
    the watermark stays, and events that are not processed stay in the queue. The next connection continues with them.
    A published snapshot is persisted by the task that processes the queue or, if the connection ends before, at its
    end.

    Raises:
        TransientError: containerd or the connection failed.
    """
    state, journal, settings = connection.state, connection.journal, connection.state.settings
    since = state.watermark_at
    state.synced = False  # also if a connection is synchronized again

    await connection.pass_marker()  # low watermark
    await connection.verify_engine()
    gap = Gap(reason, since, state.clock.now().wall)
    listing = await list_containers(state.client, state.clock, settings)
    await state.cri.complete(listing)
    await state.image_digests.complete(listing.containers)
    listing.exits |= await state.cri.recorded_exits(find_unknown_exits(state.tracker, listing))
    watermark = await connection.pass_marker()  # high watermark

    if filters_changed := journal.header.filter_fingerprint != settings.filter_fingerprint:
        journal.apply_filters(settings, listing.failed)
        if reason == "audit":  # a snapshot with another reason says already that containers may be missing
            gap = replace(gap, reason="filters_changed")
    journal.publish(reconcile(state.tracker, listing, state.clock.now(), filters_changed=filters_changed))
    state.event_queue.mark_known(listing.containers)
    for _ in range(MAX_QUERY_ROUNDS):
        if not (queries := state.tracker.due_queries(state.clock.now())):
            break
        await connection.query(queries)

    connection.unlisted_namespaces = set(listing.failed)
    count = journal.complete_listing(gap, listing, [], forced=True)
    state.advance_watermark(watermark)
    connection.begin_following(listing.tasks.values())
    _log.info("synced", reason=gap.reason, containers=count, namespaces=len(listing.namespaces), failed=listing.failed)
