"""Hostile names and labels of containers harm neither brokers nor consumers nor other containers' records."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sinks.nats.messages import decode_token
from tests.bridge_process import BridgeProcess
from tests.eventually import eventually
from tests.integration.delivery import BrokerTargets, deduplicated_records
from tests.integration.engines import one_engine
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats

pytestmark = one_engine

HOST = "n*.>größe"
VALUE_BYTES = 4000  # containerd accepts 4096 bytes of key and value
HOSTILE = {
    "com.docker.compose.project": "x\r\nNats-Msg-Id: stolen\r\n\r\nPUB a.> 5\r\n* \x01\x1b[2J%0d%0a 🐳",
    "nerdctl/name": '"><script>\r\nce_id: 0-0\r\n\r\n*.>\x7f\u2028\u202e',
    "a\r\nb: c\t*>": "v\r\n\r\n\x01",
    "../../{host}%s{0}": "$SYS.REQ.>",
}


@pytest.fixture
def namespace(engine: Containerd) -> Iterator[str]:
    name = f"with.dot.{os.getpid()}"
    engine.import_image(name)
    yield name
    for id_ in engine.ctr("containers", "ls", "--quiet", namespace=name).stdout.split():
        engine.ctr("tasks", "delete", "--force", id_, namespace=name, check=False)
        engine.ctr("containers", "delete", id_, namespace=name)


def labels_of(count: int, prefix: str = "big") -> list[str]:
    return [f"{prefix}-{number:04}={chr(97 + number % 26) * VALUE_BYTES}" for number in range(count)]


def test_fault_36_hostile_labels_and_names(
    engine: Containerd, namespace: str, kafka: Kafka, nats: Nats, tmp_path: Path
) -> None:
    targets = BrokerTargets(kafka, nats)
    template = "{host}.{namespace}.{project}.{type}"
    environment = targets.environment(KAFKA__COMPRESSION="gzip", NATS__SUBJECT_TEMPLATE=template)
    environment["WHALEBRIDGE_HOST"] = HOST
    flags, state_dir = ("--namespace", namespace), tmp_path / "state"

    def run(id_: str, *labels: str) -> None:
        engine.ctr("containers", "create", IMAGE, id_, "sleep", "86400", namespace=namespace)
        for start in range(0, len(labels), 200):  # argument lists are limited, too
            engine.ctr("containers", "label", id_, *labels[start : start + 200], namespace=namespace)
        engine.ctr("tasks", "start", "--detach", "--null-io", id_, namespace=namespace)

    with BridgeProcess(engine.address, tmp_path, *flags, state_dir=state_dir, environment=environment) as bridge:
        bridge.wait_logged("synced")
        hostile = [f"{key}={value}" for key, value in HOSTILE.items()]
        run("hostile", *hostile)
        run("just-fits", *labels_of(100))
        run("huge", *labels_of(530), "com.docker.compose.project=huge")  # 2 MiB
        for number in range(3):
            run(f"neighbor{number}")
        engine.ctr("tasks", "kill", "--signal", "SIGKILL", "huge", namespace=namespace)

        def complete() -> bool:
            published = [deduplicated_records(values()) for values in (targets.kafka_values, targets.nats_values)]
            return all(sum(each["type"] in ("started", "exited") for each in records) == 7 for records in published)

        eventually(complete, "seven transitions in both brokers")
        assert bridge.log_lines("records_rejected") == bridge.log_lines("sink_publish_failed") == []
    assert targets.kafka_values() == targets.nats_values()
    records = targets.complete_records()
    started = {each["container"]["id"]: each["container"] for each in records if each["type"] == "started"}
    labels = dict(each.split("=", 1) for each in hostile)
    assert {key: started["hostile"]["labels"][key] for key in labels if key in started["hostile"]["labels"]} == labels
    assert started["hostile"]["project"] == labels["com.docker.compose.project"]
    assert started["hostile"]["name"] == labels["nerdctl/name"]
    assert not started["just-fits"]["labels_dropped"]
    assert len(started["just-fits"]["labels"]) >= 100
    assert started["huge"]["labels_dropped"]
    assert started["huge"]["labels"] is None
    assert started["huge"]["project"] == "huge"
    assert max(map(len, targets.kafka_values())) <= 512 * 1024
    for record, message in zip(records, targets.nats_records(), strict=True):
        prefix, *tokens = message.subject.split(".")
        assert prefix == targets.topic
        container = record["container"] or {"namespace": "", "project": ""}
        expected = [HOST, container["namespace"], container["project"], record["type"]]
        assert [*map(decode_token, tokens)] == expected
        assert message.headers["ce-id"] == f"{record['epoch']}-{record['sequence']}"
        assert {name.lower() for name in message.headers} <= {
            *(f"ce-{name}" for name in ("id", "source", "type", "time", "subject", "sequence", "specversion")),
            *("ce-dataschema", "ce-datacontenttype", "nats-msg-id"),
            *(f"nats-batch-{name}" for name in ("id", "sequence", "commit")),
        }
