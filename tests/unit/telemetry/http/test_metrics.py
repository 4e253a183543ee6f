"""Test metric values and names, and that dashboard, alerts and documentation use these names."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import yaml
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from bridge.core.container_state import ExitInfo
from bridge.core.ports import Lag
from bridge.telemetry.counters import Counters, Histogram
from bridge.telemetry.http.metrics import Metrics
from tests.unit.telemetry.http.fake_bridge import (
    FakeBridge,
    bridge_status,
    running_container,
    sink_status,
    snapshot_summary,
)

ROOT = Path(__file__).parents[4]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
METRIC_NAME = re.compile(r"(?<![\w:])(?:whalebridge|process)_[a-z_]+\b")  # without recorded ones, which have colons


def samples(bridge: FakeBridge) -> dict[str, float]:
    text = Metrics(bridge).render("")[0].decode()
    return {
        sample.name + "".join(f" {value}" for _, value in sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def test_metrics_equal_counters() -> None:
    counters, latency, commits = Counters(), Histogram(), Histogram()
    exit_ = replace(running_container(), type="exited", origin="live", exit_info=ExitInfo(137, None, True))
    counters.count_records([running_container("a"), running_container("b"), exit_])
    exits = counters.exits.unpersisted()
    assert exits is not None
    counters.exits.expose(exits)
    counters.count_records([exit_])
    counters.count_snapshot(snapshot_summary(reason="reconnect", since=500_000_000))
    counters.reconnects = 2
    latency.observe(0.003)
    latency.observe(70.0)
    commits.observe(0.02)
    sink = sink_status(lag=Lag(3, 400, 5.5, 6), published=7, failures=8, rejected=9, latency=latency, state="failing")
    ignored = Counter(exec_exit=10, query_failed=11)
    values = samples(
        FakeBridge(
            bridge_status(
                counters=counters,
                sinks=[sink],
                ignored_events=ignored,
                outbox_error="full",
                watermark_age=12.0,
                commits=commits,
            )
        )
    )
    expected = {
        "whalebridge_records_total snapshot present": 2,
        "whalebridge_records_total inferred exited": 0,
        "whalebridge_records_total live exited": 2,
        "whalebridge_container_exits_total shop  137": 1,  # the other one is not persisted
        "whalebridge_container_exits_total shop  0": 0,
        "whalebridge_container_oom_exits_total shop ": 1,
        "whalebridge_snapshots_total reconnect": 1,
        "whalebridge_snapshots_total interval": 0,
        "whalebridge_gaps_total reconnect": 1,
        "whalebridge_gap_seconds_total reconnect": 1.5,
        "whalebridge_reconnects_total": 2,
        "whalebridge_ignored_events_total exec_exit": 10,
        "whalebridge_task_query_failures_total": 11,
        "whalebridge_stream_watermark_age_seconds": 12,
        "whalebridge_proxy_denied_calls_total": 13,
        "whalebridge_attributes_info prod-1": 1,
        "whalebridge_ready": 0,
        "whalebridge_outbox_writable": 0,
        "whalebridge_outbox_limit_bytes": 1000,
        "whalebridge_outbox_commit_duration_seconds_bucket 0.01": 0,
        "whalebridge_outbox_commit_duration_seconds_bucket 0.025": 1,
        "whalebridge_outbox_commit_duration_seconds_sum": 0.02,
        "whalebridge_outbox_backlog_records main": 3,
        "whalebridge_outbox_backlog_bytes main": 400,
        "whalebridge_outbox_oldest_record_age_seconds main": 5.5,
        "whalebridge_sink_dropped_records_total main": 6,
        "whalebridge_sink_published_records_total main": 7,
        "whalebridge_sink_publish_failures_total main": 8,
        "whalebridge_sink_rejected_records_total main": 9,
        "whalebridge_sink_up main": 0,
        "whalebridge_sink_publish_duration_seconds_bucket 0.0025 main": 0,
        "whalebridge_sink_publish_duration_seconds_bucket 0.005 main": 1,
        "whalebridge_sink_publish_duration_seconds_bucket 60.0 main": 1,
        "whalebridge_sink_publish_duration_seconds_bucket +Inf main": 2,
        "whalebridge_sink_publish_duration_seconds_count main": 2,
        "whalebridge_sink_publish_duration_seconds_sum main": 70.003,
        "whalebridge_containers running": 1,
        "whalebridge_containers paused": 1,
    }
    assert {name: values.get(name) for name in expected} == expected
    assert values["process_resident_memory_bytes"] > 0


async def test_metrics_without_value_are_absent() -> None:
    unknown = {"watermark_age": None, "engine": None, "proxy_denied_calls": None}
    values = samples(FakeBridge(bridge_status(**unknown, attributes={}, synced=False)))
    absent = ("watermark_age", "engine_info", "attributes_info", "proxy_denied_calls")
    assert not [name for name in values if any(part in name for part in absent)]


@pytest.fixture
async def exposed_metrics() -> set[str]:
    return {name.split()[0] for name in samples(FakeBridge())}


async def test_dashboard_and_alerts_use_existing_metrics(exposed_metrics: set[str]) -> None:
    dashboard = (ROOT / "deploy" / "grafana" / "whalebridge.json").read_text()
    assert json.loads(dashboard)["uid"] == "whalebridge"
    shown = set(METRIC_NAME.findall(dashboard))
    alerted = set(METRIC_NAME.findall((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text()))
    assert shown | alerted <= exposed_metrics
    assert {name for name in exposed_metrics if name.startswith("whalebridge_")} - shown - alerted <= {
        "whalebridge_attributes_info",
        "whalebridge_engine_info",
        "whalebridge_outbox_commit_duration_seconds_bucket",
        "whalebridge_outbox_commit_duration_seconds_count",
        "whalebridge_outbox_commit_duration_seconds_sum",
        "whalebridge_sink_publish_duration_seconds_count",
        "whalebridge_sink_publish_duration_seconds_sum",
    }


async def test_documentation_lists_every_metric(exposed_metrics: set[str]) -> None:
    documented = set(re.findall(r"^\| `(whalebridge_[a-z_]+)` \|", OPERATIONS, re.MULTILINE))
    exposed = {re.sub(r"_(bucket|count|sum)$", "", name) for name in exposed_metrics if name.startswith("whalebridge_")}
    assert documented == exposed


def test_documentation_has_section_for_each_alert() -> None:
    group = yaml.safe_load((ROOT / "deploy" / "prometheus" / "rules.yaml").read_text())["groups"][0]
    alerts = [rule["alert"] for rule in group["rules"]]
    assert re.findall(r"^### (Whalebridge\w+)$", OPERATIONS, re.MULTILINE) == alerts
    for rule in group["rules"]:
        assert rule["annotations"]["runbook_url"] == f"docs/operations.md#{rule['alert'].lower()}"
