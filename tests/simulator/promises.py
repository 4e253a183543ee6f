"""Validators of the promises of docs/reliability.md: what happened, against what the bridge has published."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import msgspec

from bridge.consumer.audit import Audit
from bridge.consumer.projection import Projection
from bridge.consumer.record_decoder import Source, decode
from bridge.containerd.protos.cri_pb2 import CONTAINER_EXITED
from bridge.core.container_metadata import CRI_KIND_LABEL, NERDCTL_NAME_LABEL, display_id
from bridge.core.containerd_model import ContainerKey, TaskCreated, TaskExited, TaskStarted, TaskStatus
from bridge.core.exit_counts import OTHER, STATUSES
from bridge.core.record_encoder import rfc3339
from bridge.core.records import Record
from tests.documentation import documented_fold
from tests.simulator.broker import Broker
from tests.simulator.disk import stored_bytes, stored_exits
from tests.simulator.history import FILTERS, HOST, RULES, SECRET, World
from tests.simulator.shims import TrueRun, run_id

Position = tuple[int, int]
Document = dict[str, Any]

_fold = documented_fold()
_NO_GAP = ("interval", "on_demand", "filters_changed")
# Operations after which CRI, or the bridge without CRI, may not know the status of an exit.
_CHANGES_OF_SCOPE = {"filters", "replace containerd"}
_CRI_FAULTS = {"hang containerd", "restart containerd", "lose shim", "hung shim", "failing namespace", "reboot"}
_RUNNING = (TaskStatus.RUNNING, TaskStatus.PAUSED)


def check_promises(world: World) -> list[str]:
    """Return the promises that were broken, with the details."""
    found = list(world.violations)
    if not world.stored_before_snapshot:
        return found  # the history has no end
    checks = (
        check_delivery,
        check_incarnations,
        check_truth,
        check_state,
        check_gaps,
        check_runs,
        check_recorded,
        check_image_digests,
        check_secrets,
        check_audit,
        check_exit_counts,
    )
    for check in checks:
        found += check(world)
    return found


def source_of(record: Document) -> str:
    return str(record["engine"]["id"])


def position_of(record: Document) -> Position:
    return record["epoch"], record["sequence"]


def documents(records: list[Record]) -> list[Document]:
    """Return the content of records, without heartbeats."""
    return [msgspec.json.decode(record.data) for record in records if not record.heartbeat_number]


# --- P1 and P5: delivery ---


def check_delivery(world: World) -> Iterator[str]:
    """Each committed record is stored by each broker, after its commit, or replaced by a legitimate loss."""
    for broker in world.brokers:
        copies: dict[tuple[Position, bool], bytes] = {}
        covered: set[Position] = set()
        newest: dict[str, Position] = {}
        for record in (each for each in broker.stored if not each.heartbeat_number):
            position, lost = (record.epoch, record.sequence), record.type == "lost"
            is_first = position not in covered  # a loss record may follow a record whose acknowledgment was lost
            if copies.setdefault((position, lost), record.data) != record.data:
                yield f"P1: {broker.name} has different copies of {record.id}"
            if lost:
                covered |= set(_lost_positions(msgspec.json.decode(record.data)["lost"]))
            elif world.documents.get(position) != record.data:
                yield f"P1: {broker.name} has {record.id}, which was not committed"
            covered.add(position)
            if broker.ordered and is_first and position < newest.get(record.engine, (0, 0)):
                yield f"P5: {broker.name} has {record.id} after {newest[record.engine]}"
            newest[record.engine] = max(position, newest.get(record.engine, (0, 0)))
        yield from _check_losses(world, broker)
        if world.disk is not None:
            yield from (f"P1: {broker.name} lacks {each}" for each in world.documents if each not in covered)
        else:
            yield from _check_last_epoch(world, broker, covered)
    yield from _check_sequences(world)


def _lost_positions(lost: Document) -> Iterator[Position]:
    for sequence in range(lost["first"], lost["last"] + 1):
        yield lost["epoch"], sequence


def _check_losses(world: World, broker: Broker) -> Iterator[str]:
    for record in documents(broker.stored):
        if (lost := record["lost"]) is None:
            continue
        positions = set(_lost_positions(lost))
        if lost["reason"] == "rejected" and not positions <= broker.rejected:
            yield f"P1: {lost} although {broker.name} did not reject it"
        if lost["reason"] == "overflow" and not world.tight:
            yield f"P1: {lost} although {broker.name} had room"


def _check_last_epoch(world: World, broker: Broker, covered: set[Position]) -> Iterator[str]:
    """Without a disk, records are safe only while the process runs."""
    epochs = [position[0] for position in world.documents]
    missing = [each for each in world.documents if each[0] == max(epochs, default=0) and each not in covered]
    yield from (f"P1: {broker.name} lacks {each}" for each in missing)


def _check_sequences(world: World) -> Iterator[str]:
    """Sequences have no holes, epochs grow, and each names the position before it."""
    last: dict[str, Position] = {}
    for _, record in world.committed:
        source, position = source_of(record), position_of(record)
        known = last.get(source)
        last[source] = position
        if known is None or position[0] != known[0]:
            if position[1] != 1 or (known is not None and position < known):
                yield f"P1: {position} follows {known}"
            previous = (record["snapshot"] or {}).get("previous")
            if world.disk is not None and previous != (known and {"epoch": known[0], "sequence": known[1]}):
                yield f"P1: {position} follows {known}, but names {previous}"
        elif position[1] != known[1] + 1:
            yield f"P1: {position} follows {known}"


# --- P2: incarnations ---


def check_incarnations(world: World) -> Iterator[str]:
    """Each incarnation starts once, is paused and resumed in turn, and exits at most once."""
    states: dict[tuple[str, str, str], str] = {}
    # Also runs from before the container was recreated.
    skipped = {display_id(key) for key, labels in world.state.labels.items() if "app.skip" in labels}
    excludable: set[tuple[str, str, str]] = set()
    listed: set[tuple[str, str, str]] | None = None
    epoch = 0
    for _, record in world.committed:
        kind, container = record["type"], record["container"]
        if world.disk is None and record["epoch"] != epoch:
            states.clear()  # nothing is known about the time before
        epoch = record["epoch"]
        if kind == "snapshot_started":
            listed = set()
        elif kind == "snapshot_completed" and listed is not None:
            for each in states.keys() - listed:
                if states[each] in ("running", "paused") and each[0] == source_of(record):
                    if each not in excludable:
                        yield f"P2: {each} is not listed by snapshot {record['snapshot']['id']}"
                    states[each] = "filtered out"
        if container is None:
            continue
        run = (source_of(record), record["id"], container["incarnation"])
        state, paused = states.get(run), "paused" if container["paused"] else "running"
        allowed: dict[str, tuple[str | None, ...]] = {
            "started": (None,),
            "present": (None, "filtered out", paused),
            "paused": ("running",),
            "unpaused": ("paused",),
            "exited": ("running", "paused", "filtered out"),
        }
        if state not in allowed[kind]:
            yield f"P2: {kind} {record['id']} {container['incarnation']} at {position_of(record)} after {state}"
        states[run] = "exited" if kind == "exited" else paused
        if "filters" in world.kinds and (container["labels"] is None or record["id"] in skipped):
            excludable.add(run)
        if listed is not None:
            listed.add(run)


# --- P3 and P7: the state of consumers ---


def check_truth(world: World) -> Iterator[str]:
    """Nothing is published that did not happen, or not yet."""
    runs: dict[tuple[Any, ...], list[TrueRun]] = {}
    for run in world.state.runs:
        runs.setdefault(run.id[:3], []).append(run)
    for at, record in world.committed:
        container = record["container"]
        if container is None:
            continue
        known = runs.get(run_id(record, None)[:3], [])
        if not container["pid"]:  # known from CRI only
            known = [each for each in world.state.runs if display_id(each.key) == record["id"]]
        if not known:
            yield f"P3: {record['type']} of unknown {record['id']} {container['incarnation']}"
            continue
        name = f"{record['type']} {record['id']} {container['incarnation']} at {position_of(record)}"
        if not any(map(_may_have_started, known)):
            yield f"P3: {name} was never started"
        if record["type"] == "exited":
            exit_ = record["exit"]
            ended = [each for each in known if each.ended is not None and each.ended <= at]
            statuses = {None}.union(*(each.statuses for each in ended))
            if not ended:
                yield f"P3: {name} is running"
            if exit_["status"] not in statuses:
                yield f"P3: {name} with {exit_['status']} instead of {statuses}"
            if exit_["oom"] is False and ended and all(each.oom and not each.unreliable for each in ended):
                yield f"P3: {name} without its OOM kill"


def _may_have_started(run: TrueRun) -> bool:
    """Return whether a run has started, or whether the bridge cannot know that it has not."""
    is_followed = run.streams.get(TaskCreated) is run.streams.get(TaskExited) is not None
    return run.started_at is not None or not is_followed or run.unreliable or run.excused


def check_state(world: World) -> Iterator[str]:
    """The state that consumers derive from the records is what containerd lists; names and labels are current."""
    for broker, before in zip(world.brokers, world.stored_before_snapshot, strict=True):
        for records, length in ((broker.stored[:before], 2), (broker.stored, 4)):
            if records is not broker.stored and broker.rejected:
                continue  # the state may be wrong until the next snapshot
            yield from _check_state(world, broker, records, length)


def _check_state(world: World, broker: Broker, records: list[Record], length: int) -> Iterator[str]:
    expected = {id_: each[:length] for id_, each in running_containers(world).items()}
    source = Source(HOST, world.containerd.id)
    states: dict[tuple[str, str], dict[str, Document]]
    if broker.ordered:
        states = _fold(documents(records))
    else:
        projection = Projection()
        for record in records:
            projection.apply(decode(record.data)[0])
        states = {key: msgspec.to_builtins(each.running) for key, each in projection.sources.items()}
    current = {id_: _summary(each)[:length] for id_, each in states.pop(source, {}).items()}
    if current != expected:
        yield f"P{3 if length == 2 else 7}: {broker.name} says {current} instead of {expected}"
    complete = not (world.disk is None or world.tight or broker.rejected)  # the last snapshot of a source is not void
    if complete and any(states.values()):
        yield f"P3: {broker.name} has containers of {[key for key, each in states.items() if each]}"


def running_containers(world: World) -> dict[str, tuple[Any, ...]]:
    """Return what consumers should know: by display id, the container's pid, pause state, name and labels."""
    running = {}
    for namespace, containers in world.state.namespaces.items():
        for container in containers.values():
            task, key = container.task, ContainerKey(namespace, container.id)
            name = container.labels.get(NERDCTL_NAME_LABEL, key.id)
            in_scope = FILTERS[world.filters](
                kind="container", name=name, project="", labels=container.labels, id=key.id
            )
            if task is not None and task.status in _RUNNING and in_scope and namespace != "moby":
                paused = task.status is TaskStatus.PAUSED
                running[display_id(key)] = (task.pid, paused, name, RULES[world.rules].apply(container.labels))
    return running


def _summary(container: Document) -> tuple[Any, ...]:
    return container["pid"], container["paused"], container["name"], container["labels"]


# --- P4: gaps ---


def check_gaps(world: World) -> Iterator[str]:
    """A snapshot covers the time of each event that had no subscriber, and one follows each loss at the limits."""
    gaps: list[tuple[int, str, str]] = []
    synced: set[str] = set()  # sources
    for at, record in world.committed:
        snapshot = record["snapshot"]
        if record["type"] == "snapshot_completed" and snapshot["namespaces"]:  # the end of a source has none
            synced.add(source_of(record))
        if record["type"] == "snapshot_started" and snapshot["reason"] not in _NO_GAP:
            if snapshot["since"] is None and world.disk is not None and source_of(record) in synced:
                yield f"P4: snapshot {snapshot['id']} of {snapshot['reason']} does not say since when"
            gaps.append((at, snapshot["since"] or "", snapshot["until"]))
    for missed in world.state.missed:
        time = rfc3339(missed.wall)
        # After the clock was set, times before and after it cannot be compared, and the interval may be too short.
        if not any(
            missed.monotonic <= at and (world.clock_stepped or since <= time <= until) for at, since, until in gaps
        ):
            yield f"P4: no snapshot covers {time}"
    for broker, before in zip(world.brokers, world.stored_before_snapshot, strict=True):
        records = sorted(documents(broker.stored[:before]), key=position_of)
        overflows = [position_of(each) for each in records if each["lost"] and each["lost"]["reason"] == "overflow"]
        completed = [position_of(each) for each in records if each["type"] == "snapshot_completed"]
        if overflows and overflows[-1] > max(completed, default=(0, 0)):
            yield f"P4: no snapshot of {broker.name} follows the loss {overflows[-1]}"


# --- P6: short runs ---


def check_runs(world: World) -> Iterator[str]:
    """Each run whose events the bridge has received is published, with its exit status."""
    begun: set[tuple[str, str]] = set()
    exits: dict[tuple[Any, ...], Document] = {}
    for _, record in world.committed:
        if record["type"] in ("started", "present"):
            begun.add((record["id"], record["container"]["incarnation"]))
        elif record["type"] == "exited":
            exits[run_id(record, record["exit"]["at"])] = record
    for run in world.state.runs:
        delivered_to = {run.delivered_to.get(kind, 0) for kind in (TaskStarted, TaskExited)}
        if run.unreliable or run.excused or len(delivered_to) != 1 or not min(delivered_to):
            continue
        if run.key.namespace == "moby" or ("filters" in world.kinds and "app.skip" in run.labels):
            continue
        exited = exits.get(run.id)
        if exited is None:
            yield f"P6: the exit of {run.id} is not published"
        elif (exited["id"], exited["container"]["incarnation"]) not in begun:
            yield f"P6: the start of {run.id} is not published"
        elif exited["exit"]["status"] is None:
            yield f"P6: {run.id} has no exit status"


def check_recorded(world: World) -> Iterator[str]:
    """Each run that CRI remembers is published once, with its status, if it began after the first snapshot.

    Without a checkpoint, and after a change of filters, runs within a gap are not known. A status is unknown if CRI
    could not be called, or if the shim or the host ended before CRI knew it.
    """
    if world.disk is None or not world.state.has_cri or _CHANGES_OF_SCOPE & world.kinds:
        return
    if world.clock_stepped:  # which containers are older than the first snapshot is not known
        return
    ends: dict[str, list[Document]] = {}
    synced_at: str | None = None
    for _, record in world.committed:
        if (
            record["type"] == "snapshot_completed"
            and synced_at is None
            and "k8s.io" not in record["snapshot"]["failed"]
        ):
            synced_at = record["timestamp"]
        if record["type"] in ("started", "exited") and record["id"].startswith("k8s.io/pod-"):
            ends.setdefault(record["id"], []).append(record)
    for container in world.state.namespaces.get("k8s.io", {}).values():
        status, id_ = container.cri_status, f"k8s.io/{container.id}"
        if status.state != CONTAINER_EXITED or not status.started_at or CRI_KIND_LABEL not in container.labels:
            continue
        if "app.skip" in container.labels or synced_at is None or rfc3339(container.created_at) <= synced_at:
            continue
        published = ends.get(id_, [])
        if [each["type"] for each in published] != ["started", "exited"]:
            yield f"P6: CRI remembers {id_}, published is {[each['type'] for each in published]}"
        elif published[1]["exit"]["status"] not in (None, status.exit_code):
            yield f"P6: {id_} has exited with {status.exit_code}, published is {published[1]['exit']}"
        elif published[1]["exit"]["status"] is None and not _CRI_FAULTS & world.kinds:
            yield f"P6: CRI remembers the status of {id_}, published is {published[1]['exit']}"


# --- the metrics of exits ---


def check_exit_counts(world: World) -> Iterator[str]:
    """Each published exit is counted once, also across restarts."""
    if world.disk is None:
        return
    expected: Counter[tuple[str, str]] = Counter()
    for record in map(msgspec.json.decode, world.documents.values()):
        if record["type"] == "exited":
            status = str(record["exit"]["status"]).replace("None", "unknown")
            expected[record["container"]["namespace"], status if status in STATUSES else OTHER] += 1
    exits = stored_exits(world.disk)
    counted = Counter(
        {
            (namespace, status): count
            for (namespace, _pod), each in exits.items()
            for status, count in zip(STATUSES, each.statuses, strict=True)
        }
    )
    if +counted != expected:
        yield f"exit counts: {sorted((+counted).items())}, published are {sorted(expected.items())}"
    if world.bridge.watch.counters.exits.persisted != exits:
        yield "exit counts: those that are exposed differ from those that are stored"


# --- what consumers can check themselves ---


def check_audit(world: World) -> Iterator[str]:
    """`whalebridge audit` finds nothing but what processes without a disk did not deliver before they were killed."""
    for broker in world.brokers:
        audit = Audit()
        for record in broker.stored:
            audit.add(*decode(record.data), ordered=broker.ordered)
        for finding in audit.report().findings:
            if world.disk is not None or finding.kind != "missing":
                yield f"audit of {broker.name}: {finding}"


# --- P9: secrets ---


def check_image_digests(world: World) -> Iterator[str]:
    """A digest is what the name of the image pointed to when the container was created."""
    if world.clock_stepped:
        return  # times prove nothing then
    for _, record in world.committed:
        container = record["container"]
        if container and (digest := container["image_digest"]) is not None:
            true = world.state.image_digests.get((record["id"], container["created_at"]))
            if digest != true:
                yield f"P7: {record['id']} at {position_of(record)} has {digest}, not {true}"


def check_secrets(world: World) -> Iterator[str]:
    """Neither specs nor labels that the rules drop are stored or published."""
    stored = [each.data for broker in world.brokers for each in broker.stored]
    stored += stored_bytes(world.disk) if world.disk is not None else []
    for secret in (SECRET.encode(), b"y" * 50):
        if any(secret in data for data in stored):
            yield f"P9: {secret!r} is stored"
    yield from _check_rule_changes(world)


def _check_rule_changes(world: World) -> Iterator[str]:
    """No record after a change of the label rules has a label that the new rules drop."""
    changes = [*world.rule_changes, ((sys.maxsize, 0), "")]
    for _, record in world.committed:
        if (container := record["container"]) is None:
            continue
        position, name = position_of(record), f"{record['id']} at {position_of(record)}"
        for (after, rules), (until, _rules) in pairwise(changes):
            kept = RULES[rules].apply(container["labels"] or {})
            if after < position <= until and kept != (container["labels"] or {}):
                yield f"P9: {name} has {sorted(container['labels'].keys() - kept.keys())}"
