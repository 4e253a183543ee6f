"""The metrics: collected when somebody asks, from what the bridge counts anyway.

Every series that is known beforehand is there from the beginning, at 0: only so does ``increase`` see its first step.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeAlias, get_args

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bridge import __version__
from bridge.core.events import Reason, TransitionType
from bridge.telemetry.counters import ANNOUNCING, BOUNDS
from bridge.telemetry.status import Bridge, SinkStatus, Status, judge

# What containerd sent and nobody was told: as it is counted, and what the metric calls it.
_IGNORED = {
    "exec_exit": "exec_exit",
    "duplicate": "duplicate",
    "late": "late",
    "never_started": "never_started",
    "ignored": "not_about_a_life",
    "foreign_mark": "foreign_mark",
    "unknown": "unknown_topic",
    "undecodable": "undecodable",
}
_TYPES, _ORIGINS = get_args(TransitionType), ("live", "inferred")

Series: TypeAlias = Iterable[tuple[Sequence[str], float]]  # values of labels, and the number


class _OfSink(NamedTuple):
    """A metric of which each sink has one."""

    kind: type[GaugeMetricFamily | CounterMetricFamily]
    name: str
    text: str
    value: Callable[[SinkStatus], float]


_OF_SINKS = (
    _OfSink(GaugeMetricFamily, "sink_up", "Whether the sink's last attempt worked.", lambda sink: sink.state == "ok"),
    _OfSink(GaugeMetricFamily, "outbox_records", "Records that wait for the sink.", lambda sink: sink.lag.records),
    _OfSink(GaugeMetricFamily, "outbox_bytes", "Bytes of those records.", lambda sink: sink.lag.size),
    _OfSink(GaugeMetricFamily, "outbox_oldest_age_seconds", "Age of the oldest of them.", lambda sink: sink.lag.age),
    _OfSink(CounterMetricFamily, "lost_records", "Records dropped for want of room.", lambda sink: sink.lag.lost),
    _OfSink(CounterMetricFamily, "published_records", "Records the sink has.", lambda sink: sink.published),
    _OfSink(CounterMetricFamily, "publish_retries", "Attempts that failed.", lambda sink: sink.retries),
    _OfSink(CounterMetricFamily, "dead_letters", "Records the sink refused.", lambda sink: sink.refused),
)


class Metrics:
    """Writes the metrics of one bridge."""

    def __init__(self, bridge: Bridge) -> None:
        self._registry = CollectorRegistry()
        self._registry.register(_Collector(bridge))
        ProcessCollector(registry=self._registry)

    def render(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics in the format that a reader accepts, and what that is called."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type


class _Collector(Collector):
    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def collect(self) -> Iterator[Metric]:
        status = self._bridge.status()
        yield from _about_itself(status)
        yield from _told(status)
        yield from _stream(status)
        for each in _OF_SINKS:
            yield _family(each.kind, each.name, each.text, [([s.name], each.value(s)) for s in status.sinks], "sink")
        yield _latency(status.sinks)


def _about_itself(status: Status) -> Iterator[Metric]:
    program = [((__version__, platform.python_version()), 1)]
    yield _gauge("build_info", "The program; always 1.", program, "version", "python")
    engine = [((status.engine.id, status.engine.version), 1)] if status.engine is not None else []
    yield _gauge("engine_info", "The containerd that is watched; always 1.", engine, "id", "version")
    yield _gauge("ready", "Whether /readyz says so.", [((), judge(status).ready)])
    tracked = [(["running"], status.running), (["paused"], status.paused)]
    yield _gauge("tracked_containers", "Living containers that are told of.", tracked, "state")


def _told(status: Status) -> Iterator[Metric]:
    tally = status.tally
    events = {("present", "snapshot"): 0} | {(type_, origin): 0 for type_ in _TYPES for origin in _ORIGINS}
    events |= {(str(type_), str(origin)): number for (type_, origin), number in tally.told.items()}
    yield _counter("events", "Records about containers.", events.items(), "type", "origin")
    snapshots = [([reason], tally.snapshots[reason]) for reason in get_args(Reason)]
    yield _counter("snapshots", "Snapshots, by why they were taken.", snapshots, "reason")
    gaps = [([reason], tally.gaps[reason]) for reason in sorted(ANNOUNCING)]
    yield _counter("gaps", "Snapshots that announce that something may have been missed.", gaps, "reason")
    seconds = [([reason], tally.gap_seconds[reason]) for reason in sorted(ANNOUNCING)]
    yield _counter("gap_seconds", "Time of those gaps, as far as it is known.", seconds, "reason")


def _stream(status: Status) -> Iterator[Metric]:
    ignored = [([name], status.ignored[counted]) for counted, name in _IGNORED.items()]
    yield _counter("ignored_events", "What containerd sent and no record was made of.", ignored, "reason")
    unanswered = [((), status.ignored["unanswered"])]
    yield _counter("unanswered_tasks", "Containers whose task containerd could not tell of.", unanswered)
    reconnects = [((), status.tally.reconnects)]
    yield _counter("reconnects", "Connections to containerd that worked and were lost.", reconnects)
    age = [] if status.proof_age is None else [((), status.proof_age)]
    yield _gauge("stream_proof_age_seconds", "Time since the event stream was last proven to work.", age)
    yield _gauge("outbox_writable", "Whether records can be written down.", [((), status.trouble is None)])
    yield _gauge("outbox_limit_bytes", "Bytes of records that may wait for one sink.", [((), status.max_bytes)])


def _latency(sinks: Sequence[SinkStatus]) -> Metric:
    text = "From handing over a batch to its acknowledgement."
    family = HistogramMetricFamily("whalebridge_publish_duration_seconds", text, labels=["sink"])
    bounds = [*map(str, BOUNDS), "+Inf"]
    for sink in sinks:
        counts = sink.latency.cumulative()
        family.add_metric([sink.name], list(zip(bounds, counts, strict=True)), sink.latency.total)
    return family


def _gauge(name: str, text: str, series: Series, *labels: str) -> Metric:
    return _family(GaugeMetricFamily, name, text, series, *labels)


def _counter(name: str, text: str, series: Series, *labels: str) -> Metric:
    return _family(CounterMetricFamily, name, text, series, *labels)


def _family(
    kind: type[GaugeMetricFamily | CounterMetricFamily], name: str, text: str, series: Series, *labels: str
) -> Metric:
    family = kind(f"whalebridge_{name}", text, labels=labels)
    for values, number in series:
        family.add_metric(values, number)
    return family
