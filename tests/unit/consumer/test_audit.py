from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from random import Random

import msgspec
import pytest

from bridge.consumer.audit import Audit, Report
from bridge.consumer.record_decoder import InvalidMessageError, decode
from bridge.core.records import Record
from tests.sample_records import loss_record, record, retirement
from tests.scale import scaled
from tests.simulator.history import run_history
from tests.unit.consumer import defects
from tests.unit.consumer.defects import RecordedTopic
from tests.unit.consumer.test_state import snapshot

SEEDS = scaled(reduced=12, full=200)
DEFECTS = scaled(reduced=300, full=10_000)


def audit(*inputs: Sequence[bytes], ordered: bool = True) -> Report:
    collected = Audit()
    for number, messages in enumerate(inputs):
        for data in messages:
            try:
                collected.add(*decode(data), input_number=number, ordered=ordered)
            except InvalidMessageError as error:
                collected.add_invalid("here", str(error))
    return collected.report()


def topic(*records: Record) -> list[bytes]:
    return [each.data for each in records]


def findings(*inputs: Sequence[bytes], ordered: bool = True) -> list[tuple[str, int, int]]:
    return [(each.kind, each.first, each.last) for each in audit(*inputs, ordered=ordered).findings]


@pytest.fixture(scope="module")
def topics() -> list[tuple[bool, list[bytes]]]:
    """Return the topics of simulated brokers, and whether each keeps the order."""
    return [
        (broker.ordered, [each.data for each in broker.stored])
        for seed in range(SEEDS)
        for broker in run_history(seed).brokers
    ]


# --- recorded topics ---


def test_untouched_topics_have_no_findings(topics: list[tuple[bool, list[bytes]]]) -> None:
    for ordered, messages in topics:
        report = audit(messages, ordered=ordered)
        assert report.findings == []
        assert report.holds is bool(report.records)


def test_every_injected_defect_is_found(topics: list[tuple[bool, list[bytes]]]) -> None:
    chance = Random(3)  # noqa: S311
    recorded = [RecordedTopic(messages) for ordered, messages in topics if ordered and messages]
    injected = Counter[str]()
    while sum(injected.values()) < DEFECTS:
        for inject in defects.KINDS:
            for damaged, position, kinds in inject(chance.choice(recorded), chance):
                host, engine, epoch, sequence = position
                assert any(
                    (each.host, each.engine, each.epoch) == (host, engine, epoch)
                    and each.first <= sequence <= each.last
                    and each.kind in kinds
                    for each in audit(damaged).findings
                ), f"{inject.__name__} at {position}"
                injected[inject.__name__] += 1
    assert set(injected) == {each.__name__ for each in defects.KINDS}


def test_copies_of_a_topic_complete_one_another(topics: list[tuple[bool, list[bytes]]]) -> None:
    chance = Random(4)  # noqa: S311
    ordered, messages = max(topics, key=lambda each: len(each[1]))
    halves = [[], []]  # type: list[list[bytes]]
    for data in messages:
        halves[chance.randrange(2)].append(data)
    assert audit(*halves, ordered=ordered).findings == []
    assert audit(halves[0], ordered=ordered).findings != []


# --- single rules ---


def test_missing_records_are_named_with_the_time_around_them() -> None:
    records = [*snapshot(1, "a"), record(4), record(7)]
    (finding,) = audit(topic(*records)).findings
    assert (finding.kind, finding.host, finding.engine) == ("missing", records[0].host, records[0].engine)
    assert (finding.epoch, finding.first, finding.last) == (records[0].epoch, 5, 6)
    assert (finding.after, finding.before) == (records[3].time, records[4].time)
    assert findings(topic(*records[:-1], loss_record(record(6), 5), records[-1])) == []


def test_records_out_of_order_are_accepted_if_none_is_promised() -> None:
    first, second, *rest = topic(*snapshot(1), record(3), record(4, "paused"))
    assert findings([second, first, *rest], ordered=False) == []
    assert findings([second, first, *rest]) == [("order", 1, 1)]
    assert findings([first, second, *rest, second, first]) == []


def test_snapshot_must_list_what_is_running() -> None:
    first = snapshot(1, "a", "b")
    second = topic(*snapshot(5, "a"))
    assert findings(topic(*first), second) == [], "after a start, another filter may apply"
    second = [data.replace(b'"reason":"start"', b'"reason":"interval"') for data in second]
    assert findings(topic(*first), second) == [("snapshot", 7, 7)]
    assert findings(topic(*first), [second[0].replace(b'"failed":[]', b'"failed":["shop"]'), *second[1:]]) != []
    failed = [data.replace(b'"failed":[]', b'"failed":["shop"]') for data in second]
    assert findings(topic(*first), failed) == []


def test_run_must_not_end_twice_or_begin_within_another() -> None:
    records = [*snapshot(1, "a"), record(4, "exited", id_="a")]
    assert findings(topic(*records)) == []
    assert findings(topic(*records, record(5, "exited", id_="a"))) == [("incarnation", 5, 5)]
    assert findings(topic(*records, record(5, "unpaused", id_="b"))) == [("incarnation", 5, 5)]
    other = record(4, id_="a").data.replace(b'"5f3c9a1e-4711"', b'"5f3c9a1e-4711-2"')
    assert findings([*topic(*records[:3]), other]) == [("incarnation", 4, 4)]


def test_nothing_is_judged_where_records_are_lost() -> None:
    records = [*snapshot(1, "a"), loss_record(record(5), 4), record(6, "exited", id_="b")]
    assert findings(topic(*records)) == []
    assert findings(topic(*records, *snapshot(7), record(9, "exited", id_="c"))) == [("incarnation", 9, 9)]


def test_retired_source_may_return_in_any_state() -> None:
    started = snapshot(1, "a")
    assert findings(topic(*started, retirement(started[-1]), record(4, "paused", id_="z"))) == []


def test_retirement_names_the_last_record() -> None:
    records = snapshot(1, "a")
    assert findings(topic(*records, retirement(record(4)))) == [("missing", 4, 4)]


@pytest.mark.parametrize(
    ("type_", "content"), [("exited", "container"), ("snapshot_completed", "snapshot"), ("lost", "lost")]
)
def test_record_without_content_does_not_hold(type_: str, content: str) -> None:
    empty = msgspec.json.decode(record(4).data) | {"type": type_, content: None}
    (finding,) = audit([*topic(*snapshot(1, "a")), msgspec.json.encode(empty)]).findings
    assert (finding.kind, finding.text, finding.first) == ("invalid", f"{type_} without {content}", 4)


def test_foreign_messages_and_empty_topics_do_not_hold() -> None:
    assert [each.kind for each in audit([b"hello", b'{"version": 2}']).findings] == ["invalid", "invalid"]
    report = audit([])
    assert (report.holds, report.findings, report.sources) == (False, [], [])


def test_report_says_what_records_cannot_show() -> None:
    epoch = snapshot(1, "a")[0].epoch
    (source,) = audit(topic(*snapshot(1, "a"), *snapshot(1, "a", epoch=epoch + 5))).sources
    assert source.unknown == [
        f"the end of epoch {epoch}: epoch {epoch + 5} does not name the record before it",
        f"whether there are records after {epoch + 5}-3",
    ]
    (source,) = audit(topic(record(5))).sources
    assert source.unknown[0] == f"whether there were records before {epoch}-5"


# --- long topics ---


def test_audit_takes_linear_time_for_many_epochs() -> None:
    """Four times as many epochs take four times as long, and not sixteen times; containers exit in each."""

    def seconds(epochs: int) -> float:
        collected: list[Record] = []
        previous: tuple[int, int] | None = None
        for epoch in range(1, epochs + 1):
            ids = [f"web-{epoch}"] if epoch % 2 else []  # the next snapshot does not have it
            collected += (records := snapshot(1, *ids, epoch=epoch, previous=previous))
            previous = epoch, len(records)
        messages = [decode(each.data) for each in collected]
        durations = []
        for _ in range(2):
            started, audited = time.process_time(), Audit()
            for record_, data in messages:
                audited.add(record_, data)
            assert audited.report().records == len(collected)
            durations.append(time.process_time() - started)
        return min(durations)

    assert seconds(6000) < 9 * seconds(1500)
