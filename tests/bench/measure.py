"""One pipeline under one load, and what came of it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from aiokafka.errors import KafkaError

from bridge.core.time import MILLISECOND, to_seconds
from tests.bench.pipelines import Pipeline
from tests.bench.usage import cpu_seconds, peak_bytes
from tests.eventually import eventually
from tests.testbed.containerd import Containerd
from tests.testbed.flood import PHASES, flood
from tests.testbed.kafka import Kafka

CONTAINERS = 100
WARM_UP_PREFIX = "warm-"  # containers of its own: whalebridge tells no pid of a container twice
WARM_UP = 2_000  # events, for Kafka's compiler and ours: not measured
READY_SECONDS = 30.0
QUIET_SECONDS = 6.0  # without any new record, after which nothing more is waited for
STABLE_SECONDS = 1.0  # for what comes after the last append and belongs to it


@dataclass(frozen=True)
class Load:
    """So many events, as fast as can be or at a rate."""

    name: str
    events: int
    rate: float = 0

    def __post_init__(self) -> None:
        """Whole lives only."""
        if self.events % (PHASES * CONTAINERS):
            raise ValueError(f"events must be a multiple of {PHASES * CONTAINERS}")


@dataclass(frozen=True)
class Result:
    """What was measured; times in seconds where the name says nothing else."""

    pipeline: str
    load: str
    sent: int
    delivered: int
    repeated: int
    sent_per_second: float
    seconds: float
    cpu_us: float
    containerd_cpu_us: float
    p50_ms: float
    p99_ms: float
    peak_mib: float


def measure(engine: Containerd, kafka: Kafka, pipeline: Pipeline, topic: str, load: Load) -> Result:
    """Run a pipeline to a new topic, put the load on containerd, and read what was appended, and when.

    Times of appends are the broker's (LogAppendTime, in whole milliseconds), on the same clock as the sender's.
    """
    kafka.admin.create_topic(topic, settings={"message.timestamp.type": "LogAppendTime"})
    with pipeline:
        _wait_ready(engine, kafka, pipeline, topic)
        warm = flood(engine, events=WARM_UP, containers=CONTAINERS, prefix=WARM_UP_PREFIX)
        before = _wait_delivered(engine, kafka, pipeline, topic, warm.events)
        cpu, engine_cpu = cpu_seconds(pipeline.pids), cpu_seconds([engine.pid])
        sent = flood(engine, events=load.events, containers=CONTAINERS, rate=load.rate)
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
    return Result(
        pipeline=pipeline.name,
        load=load.name,
        sent=sent.events,
        delivered=len(latencies),
        repeated=repeated,
        sent_per_second=sent.per_second,
        seconds=to_seconds(max(last - sent.started_at, 0)),
        cpu_us=cpu / sent.events * 1e6,
        containerd_cpu_us=engine_cpu / sent.events * 1e6,
        p50_ms=_percentile(latencies, 0.5),
        p99_ms=_percentile(latencies, 0.99),
        peak_mib=peak / 2**20,
    )


def _percentile(sorted_values: list[int], share: float) -> float:
    return sorted_values[int(share * (len(sorted_values) - 1))] / MILLISECOND if sorted_values else float("nan")


def _wait_ready(engine: Containerd, kafka: Kafka, pipeline: Pipeline, topic: str) -> None:
    """Wait until events pass: namespaces are labelled till something is appended (whalebridge: its snapshot)."""

    def passes() -> bool:
        pipeline.check()
        _publish_label_event(engine)
        return _end_offset(kafka, topic) > 0

    eventually(passes, f"{pipeline.name} to publish", within=READY_SECONDS)
    time.sleep(STABLE_SECONDS)


def _publish_label_event(engine: Containerd) -> None:
    """Have containerd publish an event that is none of the flood's."""
    engine.ctr("namespaces", "label", "default", f"bench={time.monotonic_ns()}")


def _wait_delivered(engine: Containerd, kafka: Kafka, pipeline: Pipeline, topic: str, minimum: int) -> int:
    """Wait until so many records are there, or none come any more; return how many there are.

    kcat reads blocks: what lies in one that is not full is sent with what comes next, so something has to.
    """
    found, since = _end_offset(kafka, topic), time.monotonic()
    while found < minimum and time.monotonic() < since + QUIET_SECONDS:
        pipeline.check()
        time.sleep(0.1)
        now = _end_offset(kafka, topic)
        if now == found:
            _publish_label_event(engine)
        else:
            found, since = now, time.monotonic()
    return found


def _end_offset(kafka: Kafka, topic: str) -> int:
    try:
        return kafka.admin.end_offset(topic)
    except (KafkaError, TimeoutError):
        return 0
