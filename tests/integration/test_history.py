"""The main guarantee: a known history is published without missing records, false exits or wrong names."""

from __future__ import annotations

import os
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from tests.bridge_process import (
    BridgeProcess,
    RecordDict,
    check_stream,
    running_after,
    summary,
    transitions_of_new_containers,
)
from tests.integration.container_history import (
    SCENARIOS,
    SHORT_SCENARIOS,
    ExpectedTransition,
    Scenario,
    compose_project,
    run_scenarios,
)
from tests.proxy_process import ProxyProcess
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE

CLOCK_SLACK = 0.05  # seconds: the kernel's coarse clock, which Go's runtime may use, lags behind the exact one
KILL_SLACK = 5.0  # seconds: a kill command may return before the process has ended
DETECTION_SLACK = 10.0  # seconds: an exit without an event is detected later, but long before the next audit
MAX_UNKNOWN = 5  # brief runs without a status or labels, which the bridge requested too late; of 18 or more


def test_history_of_many_containers_is_exact(engine: Containerd, tmp_path: Path) -> None:
    assert_history_published(engine, engine.address, tmp_path, SCENARIOS)


def test_history_is_exact_through_proxy(engine: Containerd, tmp_path: Path) -> None:
    with ProxyProcess(engine.address, tmp_path) as proxy:
        assert_history_published(engine, proxy.address, tmp_path, SHORT_SCENARIOS)
        assert proxy.log_lines("call_denied") == []


def assert_history_published(engine: Containerd, address: str, tmp_path: Path, scenarios: dict[Scenario, int]) -> None:
    with BridgeProcess(address, tmp_path) as bridge:
        bridge.wait_synced()
        histories = run_scenarios(engine, tmp_path, bridge.out, scenarios)
        expected = sum(len(steps) for history in histories for steps in history.expected.values())
        bridge.wait(lambda records: len(transitions_of_new_containers(records)) >= expected, f"{expected} transitions")
        last = f"last-{engine.version}-{os.getpid()}"
        engine.ctr("run", "--rm", "--null-io", IMAGE, last, "true")
        records = bridge.wait(
            lambda records: any(each["type"] == "exited" and each["id"] == last for each in records), "the last exit"
        )
    check_stream(records)
    published = group_by_container([each for each in transitions_of_new_containers(records) if each["id"] != last])
    expected_steps: dict[str, list[ExpectedTransition]] = {}
    for history in histories:
        expected_steps |= history.expected
        assert not history.unpublished & {each["id"] for each in records if each["id"]}
    containers = sum(count + (scenario is compose_project) * count for scenario, count in scenarios.items())
    assert len(expected_steps) + sum(len(each.unpublished) for each in histories) >= containers * len(histories)
    wrong = [id_ for id_ in expected_steps | published if not matches(expected_steps.get(id_), published.get(id_))]
    assert not wrong, "\n".join(
        describe_difference(id_, expected_steps.get(id_, []), published.get(id_, [])) for id_ in wrong
    )
    assert not running_after(records).keys() & expected_steps.keys()
    # containerd 2.4 loses exit events of tasks that are deleted at their exit; only those exits are inferred.
    inferred = [each for each in transitions_of_new_containers(records) if each["origin"] != "live"]
    assert all(each["type"] == "exited" and engine.version == "2.4" for each in inferred), list(map(summary, inferred))
    brief = [published[id_][-1] for id_, steps in expected_steps.items() if steps[-1].brief]
    unknown = [each for each in brief if _has_unknown_status(each) or _has_unknown_labels(each)]
    assert len(unknown) <= MAX_UNKNOWN, list(map(summary, unknown))


def group_by_container(records: list[RecordDict]) -> dict[str, list[RecordDict]]:
    by_id: dict[str, list[RecordDict]] = defaultdict(list)
    for record in records:
        by_id[record["id"]].append(record)
    return dict(by_id)


def matches(expected: list[ExpectedTransition] | None, published: list[RecordDict] | None) -> bool:
    if expected is None or published is None or len(expected) != len(published):
        return False
    return all(matches_step(step, record) for step, record in zip(expected, published, strict=True))


def _has_unknown_status(record: RecordDict) -> bool:
    """Return whether the record is an inferred exit without a status: the exit came before the bridge could wait."""
    return bool(record["origin"] == "inferred" and record["exit"] and record["exit"]["status"] is None)


def _has_unknown_labels(record: RecordDict) -> bool:
    """Return whether the container was removed before the bridge could request its metadata."""
    return record["container"]["labels"] is None


def matches_step(step: ExpectedTransition, record: RecordDict) -> bool:
    container, exit_ = record["container"], record["exit"] or {}
    unknown_status = step.brief and _has_unknown_status(record)
    unknown_labels = step.removed and _has_unknown_labels(record)
    at = datetime.fromisoformat(exit_.get("at") or record["timestamp"]).timestamp()
    published = (record["type"], container["name"], container["project"], exit_.get("status"))
    name, project = (container["id"], "") if unknown_labels else (step.name, step.project)
    expected = (step.type, name, project, None if unknown_status else step.status)
    known = container["image"] and container["pid"]
    known = known and (unknown_labels or (container["labels"] is not None and container["created_at"]))
    slack = DETECTION_SLACK if unknown_status else KILL_SLACK
    in_time = step.interval[0] - CLOCK_SLACK <= at <= step.interval[1] + slack
    return published == expected and bool(known) and in_time


def describe_difference(id_: str, expected: list[ExpectedTransition], published: list[RecordDict]) -> str:
    lines = [f"{id_}: {len(expected)} expected, {len(published)} published"]
    lines += [f"  expected {step}" for step in expected]
    for record in published:
        container = record["container"]
        at = datetime.fromisoformat(record["timestamp"]).timestamp()
        known = {key: container[key] for key in ("name", "project", "pid", "labels", "created_at", "image")}
        lines.append(
            f"  published {record['sequence']} {record['type']} {record['origin']} at {at} {record['exit']} {known}"
        )
    return "\n".join(lines)
