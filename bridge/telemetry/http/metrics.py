"""The metrics, collected for each request from the counters of the bridge.

All series with known label values exist from the start, with value 0, because Prometheus's ``increase`` does not count
the first value of a new series.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias, get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bridge import __version__
from bridge.core.exit_counts import STATUSES
from bridge.core.records import SnapshotReason, TransitionType
from bridge.telemetry.counters import BUCKET_BOUNDS, GAP_REASONS, Histogram
from bridge.telemetry.status import BridgeInspector, SinkStatus, Status, evaluate

# Reasons why an event produced no record: the key of the internal counter, and the label value of the metric.
_IGNORED_REASONS = {
    "exec_exit": "exec_exit",
    "duplicate": "duplicate",
    "late": "late",
    "never_started": "never_started",
    "dropped_evidence": "too_many",
    "ignored": "irrelevant_topic",
    "foreign_marker": "foreign_marker",
    "unknown": "unknown_topic",
    "undecodable": "undecodable",
}
_TYPES, _ORIGINS = get_args(TransitionType), ("live", "inferred")

Series: TypeAlias = Iterable[tuple[Sequence[str], float]]  # label values, and the value of the series


class Metrics:
    """The metrics of one bridge."""

    def __init__(self, bridge: BridgeInspector) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(bridge))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in a format that the ``Accept`` header allows, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Collector(Collector):
    def __init__(self, bridge: BridgeInspector) -> None:
        self._bridge = bridge

    def collect(self) -> Iterator[Metric]:
        status = self._bridge.status()
        yield from _bridge_metrics(status)
        yield from _record_metrics(status)
        yield from _exit_metrics(status)
        yield from _stream_metrics(status)
        yield from _sink_metrics(status.sinks)


def _bridge_metrics(status: Status) -> Iterator[Metric]:
    program = [((__version__, platform.python_version()), 1)]
    yield _gauge("build_info", "Version of whalebridge and Python; always 1.", program, "version", "python")
    engine = [((status.engine.id, status.engine.version), 1)] if status.engine is not None else []
    yield _gauge("engine_info", "The connected containerd; always 1.", engine, "id", "version")
    attributes = [(list(status.attributes.values()), 1)] if status.attributes else []
    text = "The attributes of every record; always 1."
    yield _gauge("attributes_info", text, attributes, *status.attributes)
    yield _gauge("ready", "1 if /readyz returns 200.", [((), evaluate(status).ready)])
    applied = [((), status.settings_error is None)]
    yield _gauge("settings_applied", "1 if all settings of the last reload are in effect.", applied)
    containers = [(["running"], status.running), (["paused"], status.paused)]
    yield _gauge("containers", "Running and paused containers that match the filters.", containers, "state")


def _record_metrics(status: Status) -> Iterator[Metric]:
    counters = status.counters
    records = {("present", "snapshot"): 0} | {(type_, origin): 0 for type_ in _TYPES for origin in _ORIGINS}
    records |= {(str(type_), str(origin)): count for (type_, origin), count in counters.records.items()}
    yield _counter("records", "Container records.", records.items(), "type", "origin")
    snapshots = [([reason], counters.snapshots[reason]) for reason in get_args(SnapshotReason)]
    yield _counter("snapshots", "Snapshots, by reason.", snapshots, "reason")
    gaps = [([reason], counters.gaps[reason]) for reason in sorted(GAP_REASONS)]
    yield _counter(
        "gaps",
        "Intervals in which events may have been missed, by the reason of the snapshot that reports them.",
        gaps,
        "reason",
    )
    seconds = [([reason], counters.gap_seconds[reason]) for reason in sorted(GAP_REASONS)]
    yield _counter(
        "gap_seconds",
        "Total length in seconds of the intervals counted by whalebridge_gaps_total, where known.",
        seconds,
        "reason",
    )


def _exit_metrics(status: Status) -> Iterator[Metric]:
    exits, labels = status.counters.exits.persisted.items(), ("containerd_namespace", "pod_namespace")
    by_status = (
        ((*namespace, name), count)
        for namespace, each in exits
        for name, count in zip(STATUSES, each.statuses, strict=True)
    )
    yield _counter("container_exits", "Published exits, by namespace and exit status.", by_status, *labels, "status")
    oom = ((namespace, each.oom) for namespace, each in exits)
    yield _counter("container_oom_exits", "Published exits of containers with an OOM kill.", oom, *labels)


def _stream_metrics(status: Status) -> Iterator[Metric]:
    ignored = [([label], status.ignored_events[key]) for key, label in _IGNORED_REASONS.items()]
    yield _counter("ignored_events", "Events from containerd that produced no record, by reason.", ignored, "reason")
    failed_queries = [((), status.ignored_events["query_failed"])]
    yield _counter(
        "task_query_failures", "Task queries to containerd that failed or returned an unknown state.", failed_queries
    )
    cri_exits = [((), status.ignored_events["cri_exit"])]
    yield _counter("cri_exits", "Exits that CRI's record has completed, or that only it has reported.", cri_exits)
    others = [((), status.second_bridges)]
    yield _gauge("second_bridges", "Second bridges: others that publish for the same host on this containerd.", others)
    reconnects = [((), status.counters.reconnects)]
    yield _counter("reconnects", "Established connections to containerd that were lost.", reconnects)
    age = [] if status.watermark_age is None else [((), status.watermark_age)]
    yield _gauge(
        "stream_watermark_age_seconds",
        "Age of the last marker that has returned: events before it have been received.",
        age,
    )
    denied = [] if status.proxy_denied_calls is None else [((), status.proxy_denied_calls)]
    yield _counter("proxy_denied_calls", "Calls that whalebridge proxy has denied since its start.", denied)
    yield _gauge("outbox_writable", "1 if the outbox can be written.", [((), status.outbox_error is None)])
    yield _gauge("outbox_limit_bytes", "Maximum size of the backlog of one sink.", [((), status.outbox_max_bytes)])
    text = "Time from the start of a transaction of the outbox to its end, on disk if there is a state_dir."
    yield _histogram("outbox_commit_duration_seconds", text, [((), status.commits)])


def _sink_metrics(sinks: Sequence[SinkStatus]) -> Iterator[Metric]:
    def gauge(name: str, help_text: str, value: Callable[[SinkStatus], float]) -> Metric:
        return _gauge(name, help_text, [([sink.name], value(sink)) for sink in sinks], "sink")

    def counter(name: str, help_text: str, value: Callable[[SinkStatus], int]) -> Metric:
        return _counter(name, help_text, [([sink.name], value(sink)) for sink in sinks], "sink")

    yield gauge("sink_up", "1 if the last attempt to reach the sink succeeded.", lambda sink: sink.state == "ok")
    yield gauge("outbox_backlog_records", "Records not yet acknowledged by the sink.", lambda sink: sink.lag.records)
    text = "Size of the records not yet acknowledged by the sink."
    yield gauge("outbox_backlog_bytes", text, lambda sink: sink.lag.size)
    text = "Age of the oldest record not yet acknowledged by the sink."
    yield gauge("outbox_oldest_record_age_seconds", text, lambda sink: sink.lag.oldest_age)
    text = "Records dropped because the backlog exceeded its limits."
    yield counter("sink_dropped_records", text, lambda sink: sink.lag.dropped)
    yield counter("sink_published_records", "Records acknowledged by the sink.", lambda sink: sink.published)
    yield counter("sink_publish_failures", "Failed attempts to reach the sink.", lambda sink: sink.failures)
    text = "Records rejected by the sink because of their content or size."
    yield counter("sink_rejected_records", text, lambda sink: sink.rejected)
    text = "Time from sending a batch to its acknowledgment."
    yield _histogram("sink_publish_duration_seconds", text, [([sink.name], sink.latency) for sink in sinks], "sink")


def _histogram(name: str, help_text: str, series: Iterable[tuple[Sequence[str], Histogram]], *labels: str) -> Metric:
    family = HistogramMetricFamily(f"whalebridge_{name}", help_text, labels=labels)
    bounds = [*map(str, BUCKET_BOUNDS), "+Inf"]
    for label_values, histogram in series:
        family.add_metric(label_values, list(zip(bounds, histogram.cumulative(), strict=True)), histogram.total)
    return family


def _gauge(name: str, help_text: str, series: Series, *labels: str) -> Metric:
    return _family(GaugeMetricFamily, name, help_text, series, *labels)


def _counter(name: str, help_text: str, series: Series, *labels: str) -> Metric:
    return _family(CounterMetricFamily, name, help_text, series, *labels)


def _family(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, help_text: str, series: Series, *labels: str
) -> Metric:
    family = kind(f"whalebridge_{name}", help_text, labels=labels)
    for label_values, value in series:
        family.add_metric(label_values, value)
    return family
