"""Measure one pipeline from containerd to a topic under one load."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from aiokafka.errors import KafkaError

from bridge.core.time import MILLISECOND, to_seconds
from tests.bench.pipelines import Pipeline, Values
from tests.bench.usage import cpu_seconds, peak_bytes
from tests.eventually import eventually
from tests.testbed.containerd import Containerd
from tests.testbed.flood import PHASES, flood
from tests.testbed.kafka import Kafka

CONTAINERS = 100
WARM_UP_PREFIX = "warm-"  # separate containers: whalebridge publishes each pid of a container only once
WARM_UP = 2_000  # events that are not measured, for Java's compiler and all caches
READY_SECONDS = 30.0
# From the first record until the load: in its first audit, 30 s after the first snapshot, whalebridge finds out that
# there are no tasks behind the events, and ends their runs. The next audit follows 5 minutes later.
AUDITED_SECONDS = 35.0
QUIET_SECONDS = 6.0  # without a new record, after which the wait ends
STABLE_SECONDS = 1.0  # for work that follows the last append


@dataclass(frozen=True)
class Load:
    """A number of events, sent as fast as possible, or when they are ``due`` (seconds after the start)."""

    name: str
    events: int
    due: Sequence[float] = ()

    def __post_init__(self) -> None:
        """Require complete runs of the containers, from start to exit."""
        if self.events % (PHASES * CONTAINERS):
            raise ValueError(f"events must be a multiple of {PHASES * CONTAINERS}")


def measure(engine: Containerd, kafka: Kafka, pipeline: Pipeline, topic: str, load: Load) -> Values:
    """Run a pipeline to a new topic, put the load on containerd, and read the records with their append times.

    The broker sets append times (LogAppendTime, in milliseconds), by the same clock as the sender's.
    """
    kafka.admin.create_topic(topic, settings={"message.timestamp.type": "LogAppendTime"})
    with pipeline:
        _wait_ready(engine, kafka, pipeline, topic)
        warm = flood(engine, events=WARM_UP, containers=CONTAINERS, prefix=WARM_UP_PREFIX)
        before = _wait_delivered(engine, kafka, pipeline, topic, warm.events)
        cpu, engine_cpu = cpu_seconds(pipeline.pids), cpu_seconds([engine.pid])
        sent = flood(engine, events=load.events, containers=CONTAINERS, due=load.due)
        _wait_delivered(engine, kafka, pipeline, topic, before + sent.events)
        time.sleep(STABLE_SECONDS)
        cpu, engine_cpu = cpu_seconds(pipeline.pids) - cpu, cpu_seconds([engine.pid]) - engine_cpu
        peak = peak_bytes(pipeline.pids)
        pipeline.check()
    latencies: list[int] = []
    seen: set[bytes] = set()
    last = repeated = 0
    for record in kafka.admin.records(topic):
        at = pipeline.sent_at(record.value or b"")
        if at is None or not sent.started_at <= at <= sent.finished_at:
            continue
        if record.value in seen:
            repeated += 1
            continue
        seen.add(record.value or b"")
        latencies.append(record.timestamp * MILLISECOND - at)
        last = max(last, record.timestamp * MILLISECOND)
    latencies.sort()
    return {
        "lost": sent.events - len(latencies),
        "repeated": repeated,
        "time to the last append (s)": to_seconds(max(last - sent.started_at, 0)),
        "CPU/event (us)": cpu / sent.events * 1e6,
        "containerd CPU/event (us)": engine_cpu / sent.events * 1e6,
        "p50 (ms)": _percentile(latencies, 0.5),
        "p90 (ms)": _percentile(latencies, 0.9),
        "p99 (ms)": _percentile(latencies, 0.99),
        "peak memory (MiB)": peak / 2**20,
    }


def _percentile(sorted_values: list[int], share: float) -> float:
    return sorted_values[int(share * (len(sorted_values) - 1))] / MILLISECOND if sorted_values else float("nan")


def _wait_ready(engine: Containerd, kafka: Kafka, pipeline: Pipeline, topic: str) -> None:
    """Publish events (of namespace labels) until the topic has a record, which may be whalebridge's snapshot."""

    def has_published() -> bool:
        pipeline.check()
        _publish_label_event(engine)
        return _end_offset(kafka, topic) > 0

    eventually(has_published, f"{pipeline.name} to publish", within=READY_SECONDS)
    time.sleep(AUDITED_SECONDS)


def _publish_label_event(engine: Containerd) -> None:
    """Make containerd publish an event that does not belong to the flood."""
    engine.ctr("namespaces", "label", "default", f"bench={time.monotonic_ns()}")


def _wait_delivered(engine: Containerd, kafka: Kafka, pipeline: Pipeline, topic: str, minimum: int) -> int:
    """Wait until the topic has ``minimum`` records or stops growing; return the number of records.

    kcat reads full blocks of its input: only further events make it send the last ones.
    """
    count, since = _end_offset(kafka, topic), time.monotonic()
    while count < minimum and time.monotonic() < since + QUIET_SECONDS:
        pipeline.check()
        time.sleep(0.1)
        new_count = _end_offset(kafka, topic)
        if new_count == count:
            _publish_label_event(engine)
        else:
            count, since = new_count, time.monotonic()
    return count


def _end_offset(kafka: Kafka, topic: str) -> int:
    try:
        return kafka.admin.end_offset(topic)
    except (KafkaError, TimeoutError):
        return 0
