"""The encoding `otlp` on real brokers: OpenTelemetry's own messages and our commands read what is published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from tests.bridge_process import BridgeProcess
from tests.eventually import eventually
from tests.integration.commands import ContainerFactory, whalebridge
from tests.integration.engines import one_engine
from tests.integration.nats_reading import start_sink
from tests.sample_records import control_record, record
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats
from tests.testbed.server import HOST

STARTED = "io.whalebridge.container.started"
EXITED = "io.whalebridge.container.exited"


def read_logs(kafka: Kafka, topic: str) -> list[LogRecord]:
    """Return the log records of a topic, decoded as the collector's Kafka receiver does it."""
    requests = [ExportLogsServiceRequest.FromString(each.value or b"") for each in kafka.admin.records(topic)]
    return [request.resource_logs[0].scope_logs[0].log_records[0] for request in requests]


def attributes_of(log: LogRecord) -> dict[str, AnyValue]:
    return {each.key: each.value for each in log.attributes}


def body_of(log: LogRecord) -> dict[str, Any]:
    return dict(json.loads(log.body.string_value))


@one_engine
def test_otlp_topic_of_bridge_is_read_by_other_programs(
    container_factory: ContainerFactory, kafka: Kafka, tmp_path: Path
) -> None:
    topic, url = "otlp", f"kafka://{kafka.bootstrap}/otlp"
    sink = {"TYPE": "kafka", "BOOTSTRAP_SERVERS": kafka.bootstrap, "TOPIC": topic, "STATE_TOPIC": "otlp.state"}
    sink |= {"ENCODING": "otlp", "HEARTBEATS": "false"}
    environment = {f"WHALEBRIDGE_SINKS__MAIN__{name}": value for name, value in sink.items()}
    running = container_factory.run()
    with BridgeProcess(container_factory.address, tmp_path, environment=environment) as bridge:
        bridge.wait_logged("synced")
        bridge.wait_logged("topic_created", 2)
        killed = container_factory.run()
        container_factory.engine.ctr("tasks", "kill", "--signal", "SIGKILL", killed)
        eventually(lambda: EXITED in {each.event_name for each in read_logs(kafka, topic)}, "the exit")
    logs = read_logs(kafka, topic)
    (exited,) = (each for each in logs if each.event_name == EXITED)
    attributes = attributes_of(exited)
    assert attributes["container.id"].string_value == killed
    assert attributes["process.exit.code"].int_value == body_of(exited)["exit"]["status"] == 137
    of_killed = [each for each in logs if attributes_of(each).get("container.id") == attributes["container.id"]]
    times = {each.event_name: each.time_unix_nano for each in of_killed}
    assert times[STARTED] < times[EXITED]
    tail = whalebridge("tail", url, "--no-follow", "--json")
    assert [json.loads(line) for line in tail.stdout.splitlines()] == [body_of(each) for each in logs]
    audit = whalebridge("audit", url)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    fleet = whalebridge("fleet", url, "--once", "--json").stdout
    assert (running in fleet, killed in fleet) == (True, False)
    entries = [json.loads(each.value)["container"] for each in kafka.admin.records("otlp.state") if each.value]
    assert running in {container["id"] for container in entries if container}


async def test_otlp_stream_on_nats_is_read_by_commands(nats: Nats) -> None:
    batch = [control_record(1, "snapshot_started"), record(2, "present"), control_record(3, "snapshot_completed")]
    sink = await start_sink(nats, "otlp", encoding="otlp")
    await sink.publish(batch)
    await sink.close()
    url = f"nats://{HOST}:{nats.nodes[0].port}/otlp"
    tail = whalebridge("tail", url, "--no-follow", "--json")
    assert tail.stdout.encode().splitlines() == [each.data for each in batch], tail.stderr
