"""Write the conformance vectors: ``python -m tests.conformance.vectors``. Expected values are written by hand."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from msgspec.structs import replace

from bridge.consumer.conformance import BEGIN, ENGINE, HOST, edit
from bridge.consumer.conformance import FIRST_EPOCH as E1
from bridge.consumer.conformance import SampleBridge as Bridge
from bridge.consumer.conformance import incarnation_of as run
from bridge.core.record_encoder import rfc3339
from bridge.core.records import Record
from bridge.core.time import SECOND
from sinks.cloudevents import envelope

DIRECTORY = Path(__file__).parent / "topics"
E2, E3 = E1 + 100_000, E1 + 200_000

Lines = list[bytes]


@dataclass
class Expected:
    """What a consumer must know of one source at the end of a vector.

    ``state``: by id, the incarnation and whether the container is paused. ``stale`` is judged at ``now`` of the vector.
    """

    position: tuple[int, int]
    state: dict[str, tuple[str, bool]]
    complete: bool = True
    stale: bool | None = None
    retired: bool = False
    missing: list[tuple[int, int, int]] = field(default_factory=list)
    altered: list[tuple[int, int]] = field(default_factory=list)
    findings: list[tuple[str, int, int, int]] = field(default_factory=list)
    host: str = HOST
    engine: str = ENGINE


@dataclass
class Vector:
    """A topic, as lines, and what is expected after it; ``invalid`` counts the lines that are no records."""

    name: str
    description: str
    lines: Lines
    sources: list[Expected]
    ordered: bool
    now: int
    invalid: int

    def document(self) -> dict[str, Any]:
        """Return the content of the JSON file."""
        return {
            "description": self.description,
            "ordered": self.ordered,
            "now": rfc3339(self.now),
            "invalid": self.invalid,
            "sources": [
                {
                    "host": each.host,
                    "engine": each.engine,
                    "position": each.position,
                    "state": {
                        id_: {"incarnation": incarnation, "paused": paused}
                        for id_, (incarnation, paused) in each.state.items()
                    },
                    "complete": each.complete,
                    "stale": each.stale,
                    "retired": each.retired,
                    "missing": each.missing,
                    "altered": each.altered,
                    "findings": each.findings,
                }
                for each in self.sources
            ],
        }


def flat(*parts: Record | Sequence[Record]) -> Lines:
    """Return the lines of records and lists of records."""
    records = [each for part in parts for each in ([part] if isinstance(part, Record) else part)]
    return [each.data for each in records]


def edited(record: Record, **values: Any) -> bytes:
    """Return the line of a record with other values."""
    return edit(record, **values).data


VECTORS: list[Vector] = []
_Result = tuple[Lines, Expected | list[Expected]]


def vector(
    *, ordered: bool = True, seconds: int = 0, invalid: int = 0
) -> Callable[[Callable[[], _Result]], Callable[[], _Result]]:
    """Register a vector: a function that returns lines and what is expected; ``now`` is ``seconds`` after the begin."""

    def register(function: Callable[[], _Result]) -> Callable[[], _Result]:
        lines, expected = function()
        sources = expected if isinstance(expected, list) else [expected]
        name, description = function.__name__.strip("_"), inspect.getdoc(function) or ""
        VECTORS.append(Vector(name, description, lines, sources, ordered, BEGIN + seconds * SECOND, invalid))
        return function

    return register


# --- transitions ---


@vector()
def transitions() -> _Result:
    """Containers start, are paused and resumed, and exit."""
    node = Bridge()
    lines = flat(
        node.snapshot(),
        *(node.start("a", 101), node.start("b", 102), node.start("c", 103)),
        *(node.pause("a", 101), node.pause("b", 102), node.unpause("b", 102), node.exit("c", 103)),
    )
    return lines, Expected((E1, 9), {"a": (run(101), True), "b": (run(102), False)})


@vector()
def restarted_container() -> _Result:
    """A container runs twice under the same id: the second run has another incarnation."""
    node = Bridge()
    lines = flat(node.snapshot(), node.start("a", 101), node.exit("a", 101), node.start("a", 104))
    return lines, Expected((E1, 5), {"a": (run(104), False)})


@vector()
def additional_events() -> _Result:
    """Optional events change no state, with or without a pid."""
    node = Bridge()
    lines = flat(
        node.snapshot(),
        *(node.encode("created", "a"), node.start("a", 101), node.encode("oom", "a", 101)),
        *(node.encode("renamed", "a", 101), node.encode("created", "b"), node.encode("deleted", "b")),
    )
    return lines, Expected((E1, 8), {"a": (run(101), False)})


@vector()
def unknown_types_and_fields() -> _Result:
    """Types, fields, reasons and kinds that a consumer does not know are ignored; their positions count."""
    node = Bridge()
    snapshot, start = node.snapshot(), node.start("a", 101)
    sparkle, pause = node.start("b", 102), node.pause("a", 101)
    lines = [
        *flat(snapshot),
        edited(start, a_new_field={"deep": [1]}),
        edited(sparkle, type="sparkled"),
        pause.data,
    ]
    return lines, Expected((E1, 5), {"a": (run(101), True)})


@vector(invalid=8)
def foreign_messages() -> _Result:
    """Messages that are no records, or records of another major version, are skipped and counted."""
    node = Bridge()
    start, other, exited = node.snapshot(), node.start("a", 101), node.start("b", 102)
    foreign = [b"hello", b"{}", edited(other, version=2), other.data[:100]]
    foreign += [edited(exited, host=None), edited(exited, epoch=None)]
    foreign += [edited(exited, container="x"), edited(exited, snapshot=7)]
    return [*flat(start, other), *foreign, exited.data], Expected(
        (E1, 4), {"a": (run(101), False), "b": (run(102), False)}
    )


@vector()
def cloudevents_envelopes() -> _Result:
    """Records in CloudEvents envelopes, as the structured mode writes them."""
    node = Bridge()
    records = [*node.snapshot(), node.start("a", 101)]
    return [envelope(each, each.data) for each in records], Expected((E1, 3), {"a": (run(101), False)})


# --- snapshots ---


@vector()
def late_start() -> _Result:
    """A consumer that starts late is complete after the next complete snapshot."""
    node = Bridge()
    node.snapshot(("a", 101), ("b", 102))
    lines = flat(node.exit("b", 102), node.snapshot(("a", 101), ("c", 103), reason="interval"))
    return lines, Expected((E1, 9), {"a": (run(101), False), "c": (run(103), False)})


@vector()
def snapshot_removes_unlisted() -> _Result:
    """A completed snapshot removes what it does not list, such as containers that a new filter excludes."""
    node = Bridge()
    lines = flat(
        node.snapshot(("a", 101), ("b", 102), ("c", 103)),
        node.snapshot(("b", 102), reason="filters_changed", paused=["b"], missed=[("paused", "b", 102)]),
    )
    return lines, Expected((E1, 9), {"b": (run(102), True)})


@vector()
def missed_transitions() -> _Result:
    """After a gap, a snapshot contains the transitions that were missed."""
    node = Bridge()
    missed = [("exited", "a", 101), ("started", "a", 105), ("exited", "b", 102), ("started", "d", 106)]
    lines = flat(
        node.snapshot(("a", 101), ("b", 102)),
        node.snapshot(("a", 105), ("d", 106), reason="reconnect", missed=missed),
    )
    return lines, Expected((E1, 12), {"a": (run(105), False), "d": (run(106), False)})


@vector()
def failed_namespace() -> _Result:
    """A namespace that could not be listed keeps its containers."""
    node = Bridge()
    lines = flat(node.snapshot(("a", 101), ("shop/b", 102)), node.snapshot(reason="filters_changed", failed=["shop"]))
    return lines, Expected((E1, 6), {"shop/b": (run(102), False)})


@vector()
def partial_snapshot() -> _Result:
    """In a partial snapshot, states may be unconfirmed; it removes what it does not list, like any other."""
    node = Bridge()
    lines = flat(node.snapshot(("a", 101), ("b", 102)), node.snapshot(("a", 101), reason="audit", partial=True))
    return lines, Expected((E1, 7), {"a": (run(101), False)})


@vector()
def void_snapshot() -> _Result:
    """A snapshot with a loss inside removes nothing; each single record in it is valid."""
    node = Bridge()
    first = node.snapshot(("a", 101), ("b", 102))
    second = node.snapshot(("b", 102), ("c", 103), reason="overflow")
    lines = flat(first, second[0], node.lost(second[1]), second[2:])
    state = {"a": (run(101), False), "b": (run(102), False), "c": (run(103), False)}
    return lines, Expected((E1, 8), state, complete=False)


@vector()
def unfinished_snapshot() -> _Result:
    """A snapshot without an end removes nothing."""
    node = Bridge()
    lines = flat(node.snapshot(("a", 101), ("b", 102)), node.snapshot(("b", 102), reason="filters_changed")[:-1])
    return lines, Expected((E1, 6), {"a": (run(101), False), "b": (run(102), False)})


# --- repetitions and losses ---


@vector()
def repeated_records() -> _Result:
    """Repeated records have no effect, wherever they arrive."""
    node = Bridge()
    snapshot, start, exited = node.snapshot(("a", 101)), node.start("b", 102), node.exit("a", 101)
    lines = flat(snapshot, snapshot[:2], start, start, snapshot, exited, start, snapshot)
    return lines, Expected((E1, 5), {"b": (run(102), False)})


@vector()
def altered_repetition() -> _Result:
    """A repetition that differs is a finding; the first copy counts."""
    node = Bridge()
    snapshot, start = node.snapshot(), node.start("a", 101)
    altered = edited(start, timestamp="2026-01-01T00:00:00Z")
    return [*flat(snapshot, start), altered], Expected(
        (E1, 3), {"a": (run(101), False)}, altered=[(E1, 3)], findings=[("altered", E1, 3, 3)]
    )


@vector()
def hole() -> _Result:
    """Missing sequences that no loss announces are a finding."""
    node = Bridge()
    snapshot, start = node.snapshot(), node.start("a", 101)
    node.start("b", 102), node.pause("b", 102)
    return flat(snapshot, start, node.start("c", 103)), Expected(
        (E1, 6),
        {"a": (run(101), False), "c": (run(103), False)},
        complete=False,
        missing=[(E1, 4, 5)],
        findings=[("missing", E1, 4, 5)],
    )


@vector()
def loss_by_overflow() -> _Result:
    """A loss takes the place of dropped records; the snapshot after it makes the state complete."""
    node = Bridge()
    snapshot, start, exited = node.snapshot(), node.start("a", 101), node.exit("a", 101)
    other = node.start("b", 102)
    lines = flat(snapshot, start, node.lost(exited, other), node.snapshot(("b", 102), reason="overflow"))
    return lines, Expected((E1, 8), {"b": (run(102), False)})


@vector()
def loss_by_rejection() -> _Result:
    """What a rejected record would have changed is missing until a later record of the container."""
    node = Bridge()
    snapshot, rejected, other = node.snapshot(("a", 101)), node.start("b", 102), node.exit("a", 101)
    later = node.pause("b", 102)
    lines = flat(snapshot, node.lost(rejected, reason="rejected"), other, later)
    return lines, Expected((E1, 6), {"b": (run(102), True)}, complete=False)


@vector()
def loss_after_its_record() -> _Result:
    """A loss may repeat the position of a record whose acknowledgment did not arrive; nothing is lost then."""
    node = Bridge()
    snapshot, start = node.snapshot(), node.start("a", 101)
    return flat(snapshot, start, node.lost(start), node.pause("a", 101)), Expected((E1, 4), {"a": (run(101), True)})


@vector()
def loss_before_its_record() -> _Result:
    """A record that arrives after a loss of its position counts as a repetition."""
    node = Bridge()
    snapshot, start = node.snapshot(), node.start("a", 101)
    return flat(snapshot, node.lost(start), start), Expected((E1, 3), {}, complete=False)


@vector(ordered=False)
def records_out_of_order() -> _Result:
    """On a stream without atomic batches, first copies may arrive in any order."""
    node = Bridge()
    snapshot, start, pause = node.snapshot(("a", 101), ("b", 102)), node.start("c", 103), node.pause("c", 103)
    exited = node.exit("a", 101)
    lines = flat(pause, exited, snapshot[3], snapshot[1], start, snapshot[0], snapshot[2])
    return lines, Expected((E1, 7), {"b": (run(102), False), "c": (run(103), True)})


@vector(ordered=False)
def snapshot_with_late_record() -> _Result:
    """A snapshot is applied when all of its records have arrived."""
    node = Bridge()
    first, second = node.snapshot(("a", 101), ("b", 102)), node.snapshot(("b", 102), reason="filters_changed")
    return flat(first, second[0], second[2]), Expected(
        (E1, 7),
        {"a": (run(101), False), "b": (run(102), False)},
        complete=False,
        missing=[(E1, 6, 6)],
        findings=[("missing", E1, 6, 6)],
    )


# --- epochs and sources ---


@vector()
def restart() -> _Result:
    """A new epoch names the last record before it."""
    first = Bridge()
    lines = flat(first.snapshot(("a", 101)), first.start("b", 102))
    second = Bridge(E2, (E1, 4))
    lines += flat(second.snapshot(("b", 102), missed=[("exited", "a", 101)]), second.pause("b", 102))
    return lines, Expected((E2, 5), {"b": (run(102), True)})


@vector()
def changed_attributes() -> _Result:
    """Attributes of the records may change with a new epoch; the source is the same."""
    first, second = Bridge(), Bridge(E2, (E1, 4), attributes={"cluster": "prod-1"})
    lines = flat(first.snapshot(("a", 101)), first.start("b", 102), second.snapshot(("a", 101), ("b", 102)))
    return lines, Expected((E2, 4), {"a": (run(101), False), "b": (run(102), False)})


@vector()
def restart_without_state() -> _Result:
    """Without a state directory, the end of the epoch before is unknown, and no exits are published for the gap."""
    first, second = Bridge(), Bridge(E2)
    lines = flat(first.snapshot(("a", 101), ("b", 102)), second.snapshot(("b", 102), ("c", 103)))
    return lines, Expected((E2, 4), {"b": (run(102), False), "c": (run(103), False)})


@vector()
def epoch_with_missing_end() -> _Result:
    """Records at the end of an epoch are missing, as the next one shows."""
    first = Bridge()
    lines = flat(first.snapshot(("a", 101)))
    lines += flat(Bridge(E2, (E1, 5)).snapshot(("a", 101)))
    missing = [(E1, 4, 5)]
    return lines, Expected(
        (E2, 3), {"a": (run(101), False)}, missing=missing, findings=[("missing", *each) for each in missing]
    )


@vector()
def missing_epoch() -> _Result:
    """A whole epoch is missing, as the next one shows."""
    lines = flat(Bridge().snapshot(("a", 101)), Bridge(E3, (E2, 2)).snapshot(("a", 101)))
    return lines, Expected((E3, 3), {"a": (run(101), False)}, missing=[(E2, 1, 2)], findings=[("missing", E2, 1, 2)])


@vector()
def older_epoch() -> _Result:
    """Two instances publish for a source: the records of the older epoch are skipped."""
    old, new = Bridge(), Bridge(E2)
    lines = flat(old.snapshot(("a", 101)), new.snapshot(("a", 101)))
    lines += flat(old.start("b", 102), new.start("b", 102), new.pause("b", 102), old.exit("b", 102))
    lines += flat(new.snapshot(("a", 101), ("b", 102), reason="second_bridge", paused=["b"]))
    return lines, Expected((E2, 9), {"a": (run(101), False), "b": (run(102), True)})


@vector()
def several_sources() -> _Result:
    """Sources are separate, by host and by engine, even with equal ids and epochs."""
    nodes = [Bridge(), Bridge(host="node-2"), Bridge(engine="another")]
    lines = [line for node in nodes for line in flat(node.snapshot(("a", 101)))]
    lines += flat(nodes[1].exit("a", 101), nodes[2].pause("a", 101))
    return lines, [
        Expected((E1, 3), {"a": (run(101), False)}),
        Expected((E1, 4), {}, host="node-2"),
        Expected((E1, 4), {"a": (run(101), True)}, engine="another"),
    ]


# --- heartbeats and retirements ---


@vector(seconds=180)
def heartbeat_is_fresh() -> _Result:
    """A heartbeat takes no position; within three intervals, the state is current."""
    node = Bridge()
    lines = flat(node.snapshot(("a", 101)), node.heartbeat(), node.heartbeat(), node.start("b", 102))
    return lines, Expected((E1, 4), {"a": (run(101), False), "b": (run(102), False)}, stale=False)


@vector(seconds=184)
def heartbeat_is_old() -> _Result:
    """After three intervals without a heartbeat or record, the source is stale; its containers are kept."""
    node = Bridge()
    lines = flat(node.snapshot(("a", 101)), node.heartbeat())
    return lines, Expected((E1, 3), {"a": (run(101), False)}, stale=True)


@vector()
def heartbeat_proves_loss() -> _Result:
    """A heartbeat has the position of the last record: later records than the last one have been sent."""
    node = Bridge()
    lines = flat(node.snapshot(("a", 101)))
    node.start("b", 102)
    lines += flat(node.heartbeat())
    return lines, Expected(
        (E1, 3),
        {"a": (run(101), False)},
        complete=False,
        stale=False,
        missing=[(E1, 4, 4)],
        findings=[("missing", E1, 4, 4)],
    )


@vector()
def retired_source() -> _Result:
    """A retired source has no containers; repetitions of its records have no effect."""
    node = Bridge()
    snapshot = node.snapshot(("a", 101), ("b", 102))
    return flat(snapshot, node.retire(), snapshot, node.retire()), Expected((E1, 4), {}, complete=False, retired=True)


@vector()
def retirement_that_is_too_late() -> _Result:
    """A retirement is ignored if a later record is known: the source is alive."""
    node = Bridge()
    snapshot, start = node.snapshot(("a", 101)), node.start("b", 102)
    lines = flat(snapshot, start, node.retire(snapshot[-1]))
    return lines, Expected((E1, 4), {"a": (run(101), False), "b": (run(102), False)})


@vector()
def retired_source_returns_restarted() -> _Result:
    """A node comes back after its retirement: the new epoch begins with a snapshot, and takes over."""
    node = Bridge()
    lines = flat(node.snapshot(("a", 101), ("b", 102)), node.retire())
    back = Bridge(E2, (E1, 4))
    lines += flat(back.snapshot(("a", 101), ("c", 103), missed=[("exited", "b", 102), ("started", "c", 103)]))
    return lines, Expected((E2, 6), {"a": (run(101), False), "c": (run(103), False)})


@vector()
def retired_source_returns_running() -> _Result:
    """A source was retired although it was alive: it is incomplete until its next complete snapshot."""
    node = Bridge()
    lines = flat(node.snapshot(("a", 101)), node.retire(), node.start("b", 102))
    return lines, Expected((E1, 4), {"b": (run(102), False)}, complete=False)


# --- findings of an audit ---


@vector()
def snapshot_that_disagrees() -> _Result:
    """A periodic snapshot does not list a container that has not exited."""
    node = Bridge()
    lines = flat(node.snapshot(("a", 101), ("b", 102)), node.snapshot(("a", 101), reason="interval"))
    return lines, Expected((E1, 7), {"a": (run(101), False)}, findings=[("snapshot", E1, 7, 7)])


@vector()
def run_that_ends_twice() -> _Result:
    """A run exits twice."""
    node = Bridge()
    lines = flat(node.snapshot(("a", 101)), node.exit("a", 101), node.exit("a", 101))
    return lines, Expected((E1, 5), {}, findings=[("incarnation", E1, 5, 5)])


@vector()
def incarnation_of_another_pid() -> _Result:
    """An incarnation does not have the form of its pid."""
    node = Bridge()
    snapshot, start = node.snapshot(), node.start("a", 101)
    document = msgspec.json.decode(start.data)
    document["container"]["incarnation"] = "5f3c9a1e-999"
    line = replace(start, data=msgspec.json.encode(document))
    return flat(snapshot, line), Expected((E1, 3), {"a": ("5f3c9a1e-999", False)}, findings=[("incarnation", E1, 3, 3)])


def files() -> dict[str, bytes]:
    """Return the content of each file."""
    result = {}
    for each in VECTORS:
        result[f"{each.name}.jsonl"] = b"".join(line + b"\n" for line in each.lines)
        result[f"{each.name}.json"] = msgspec.json.format(msgspec.json.encode(each.document()), indent=2) + b"\n"
    return result


def main() -> None:
    """Write all files."""
    for path in DIRECTORY.glob("*.json*"):
        path.unlink()
    for name, content in files().items():
        (DIRECTORY / name).write_bytes(content)


if __name__ == "__main__":
    main()
