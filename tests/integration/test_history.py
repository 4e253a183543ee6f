"""The main promise: a known history of real containers is told without a miss, a false death or a wrong name."""

from __future__ import annotations

import os
from collections import defaultdict
from datetime import datetime
from pathlib import Path

from tests.bridge_process import BridgeProcess, Document, check_stream, fold, of_newcomers, summary
from tests.integration.history import SCENARIOS, SHORT, Scenario, Story, Told, compose, live_through
from tests.proxy_process import ProxyProcess
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE

CLOCK_SLACK = 0.05  # seconds: the kernel's coarse clock, which Go's runtime may use, lags behind the exact one
KILL_SLACK = 5.0  # seconds: a kill command may return before the process has ended
NOTICE_SLACK = 10.0  # seconds: an exit that nobody told is noticed later, but long before the next audit
MOST_UNKNOWN = 5  # exits of which nobody could tell the status, of some 60 containers that live for a moment


def test_a_known_history_of_210_containers_is_told_exactly(engine: Containerd, tmp_path: Path) -> None:
    told_exactly(engine, engine.address, tmp_path, SCENARIOS)


def test_so_it_is_through_the_proxy(engine: Containerd, tmp_path: Path) -> None:
    with ProxyProcess(engine.address, tmp_path) as proxy:
        told_exactly(engine, proxy.address, tmp_path, SHORT)
        assert proxy.said("call_denied") == []


def told_exactly(engine: Containerd, address: str, tmp_path: Path, scenarios: dict[Scenario, int]) -> None:
    with BridgeProcess(address, tmp_path) as bridge:
        bridge.wait_live()
        stories = live_through(engine, tmp_path, bridge.out, scenarios)
        expected = sum(len(told) for story in stories for told in story.truth.values())
        bridge.wait(lambda records: len(of_newcomers(records)) >= expected, f"{expected} transitions")
        last = f"last-{engine.version}-{os.getpid()}"
        engine.ctr("run", "--rm", "--null-io", IMAGE, last, "true")
        records = bridge.wait(
            lambda records: any(each["type"] == "exited" and each["id"] == last for each in records), "the last exit"
        )
    check_stream(records)
    told = _by_container([each for each in of_newcomers(records) if each["id"] != last])
    truth: dict[str, list[Told]] = {}
    for story in stories:
        truth |= _with_ids(story, told)
        assert not story.silent & {each["id"] for each in records if each["id"]}
    containers = sum(count + (scenario is compose) * count for scenario, count in scenarios.items())
    assert len(truth) + sum(len(story.silent) for story in stories) >= containers * len(stories)
    wrong = [id_ for id_ in truth | told if not _same(truth.get(id_), told.get(id_))]
    assert not wrong, "\n".join(_difference(id_, truth.get(id_, []), told.get(id_, [])) for id_ in wrong)
    ours = {id_: row for id_, row in fold(records).items() if id_ in truth}
    assert ours == {}
    # containerd 2.4 loses exit events of containers that are removed the moment they end: those alone are inferred.
    inferred = [each for each in of_newcomers(records) if each["origin"] != "live"]
    assert all(each["type"] == "exited" and engine.version == "2.4" for each in inferred), list(map(summary, inferred))
    assert sum(_is_unknown(each) for each in inferred) <= MOST_UNKNOWN, list(map(summary, inferred))


def _by_container(records: list[Document]) -> dict[str, list[Document]]:
    told: dict[str, list[Document]] = defaultdict(list)
    for record in records:
        told[record["id"]].append(record)
    return dict(told)


def _with_ids(story: Story, told: dict[str, list[Document]]) -> dict[str, list[Told]]:
    """Give the containers that nobody could ask for their id the one under which they were told, by name."""
    ids = {records[0]["container"]["name"]: id_ for id_, records in told.items()}
    return {
        ids.get(id_.rpartition("named:")[2], id_) if "named:" in id_ else id_: steps
        for id_, steps in story.truth.items()
    }


def _same(truth: list[Told] | None, told: list[Document] | None) -> bool:
    if truth is None or told is None or len(truth) != len(told):
        return False
    return all(_fits(step, record) for step, record in zip(truth, told, strict=True))


def _is_unknown(record: Document) -> bool:
    """Whether it is an exit that was not told, and on a busy machine too soon over to be waited for."""
    return bool(record["origin"] == "inferred" and record["exit"] and record["exit"]["status"] is None)


def _fits(step: Told, record: Document) -> bool:
    container, exit_, unknown = record["container"], record["exit"] or {}, _is_unknown(record)
    at = datetime.fromisoformat(exit_.get("at") or record["timestamp"]).timestamp()
    status = step.status if unknown else exit_.get("status")
    known = (record["type"], container["name"], container["project"], status)
    complete = container["labels"] is not None and container["created_at"] and container["image"] and container["pid"]
    slack = NOTICE_SLACK if unknown else KILL_SLACK
    in_time = step.between[0] - CLOCK_SLACK <= at <= step.between[1] + slack
    return known == step[:4] and bool(complete) and in_time


def _difference(id_: str, truth: list[Told], told: list[Document]) -> str:
    lines = [f"{id_}: {len(truth)} true, {len(told)} told"]
    lines += [f"  true {step}" for step in truth]
    for record in told:
        container = record["container"]
        at = datetime.fromisoformat(record["timestamp"]).timestamp()
        known = {key: container[key] for key in ("name", "project", "pid", "labels", "created_at", "image")}
        lines.append(
            f"  told {record['sequence']} {record['type']} {record['origin']} at {at} {record['exit']} {known}"
        )
    return "\n".join(lines)
