"""From containerd to brokers that lose what was published: a snapshot follows at once, without a restart."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka.errors import KafkaError
from nats.js.errors import NoKeysError, NotFoundError

from tests.bridge_process import BridgeProcess
from tests.eventually import eventually
from tests.integration.engines import one_engine
from tests.integration.nats_reading import StreamReader
from tests.testbed.containerd import Containerd
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats

pytestmark = one_engine
_numbers = itertools.count()


@pytest.fixture
def namespace(engine: Containerd) -> str:
    """A namespace with three running containers."""
    name = f"resets{os.getpid()}x{next(_numbers)}"
    engine.import_image(name)
    for number in range(3):
        engine.run(f"c{number}", "sleep", "86400", namespace=name)
    return name


def has_baseline(values: Sequence[bytes], ids: set[str]) -> bool:
    """Return whether the records include a complete snapshot, and show exactly these running containers."""
    records = [msgspec.json.decode(value) for value in values]
    started = [each["sequence"] for each in records if each["type"] == "snapshot_started"]
    completed = [each["sequence"] for each in records if each["type"] == "snapshot_completed"]
    if not started or not completed or started[-1] > completed[-1]:
        return False
    presents = {
        each["container"]["id"] for each in records if each["type"] == "present" and each["sequence"] > started[-1]
    }
    return presents == ids


# --- NATS ---


def nats_bridge(engine: Containerd, nats: Nats, directory: Path, namespace: str) -> BridgeProcess:
    servers = ",".join(url.partition("//")[2] for url in nats.urls)
    environment = {
        "WHALEBRIDGE_SINKS__MAIN__TYPE": "nats",
        "WHALEBRIDGE_SINKS__MAIN__SERVERS": servers,
        "WHALEBRIDGE_SINKS__MAIN__SUBJECT_PREFIX": "events",
        "WHALEBRIDGE_SINKS__MAIN__KV_BUCKET__NAME": "state",
    }
    return BridgeProcess(engine.address, directory, "--namespace", namespace, environment=environment)


def nats_state(nats: Nats) -> tuple[list[bytes], set[str]]:
    """Return the records in the stream, and the ids of the containers in the bucket; empty if they do not exist."""

    async def read() -> tuple[list[bytes], set[str]]:
        async with StreamReader(nats) as reader:
            try:
                values = [each.data for each in await reader.read_stored()]
                keys = await (await reader.jetstream.key_value("state")).keys()
            except (NotFoundError, NoKeysError):
                return [], set()
            return values, {key.rpartition(".")[2] for key in keys if key.count(".") > 1}

    return asyncio.run(read())


def delete_stream_and_bucket(nats: Nats) -> None:
    async def delete() -> None:
        async with StreamReader(nats) as reader:
            await reader.jetstream.delete_stream("WHALEBRIDGE_EVENTS")
            await reader.jetstream.delete_key_value("state")

    asyncio.run(delete())


def delete_bucket(nats: Nats) -> None:
    async def delete() -> None:
        async with StreamReader(nats) as reader:
            await reader.jetstream.purge_stream("WHALEBRIDGE_EVENTS")
            await reader.jetstream.delete_key_value("state")

    asyncio.run(delete())


def restart_with_empty_store(nats: Nats) -> None:
    nats.kill()
    for node in nats.nodes:
        shutil.rmtree(node.directory / "jetstream")
    nats.start()


@pytest.mark.parametrize("lose", [delete_stream_and_bucket, delete_bucket, restart_with_empty_store])
def test_snapshot_follows_when_nats_loses_records(
    engine: Containerd,
    namespace: str,
    nats_factory: Callable[..., Nats],
    tmp_path: Path,
    lose: Callable[[Nats], None],
) -> None:
    nats = nats_factory()
    ids = {"c0", "c1", "c2"}

    def is_complete() -> bool:
        values, in_bucket = nats_state(nats)
        return has_baseline(values, ids) and in_bucket == ids

    with nats_bridge(engine, nats, tmp_path, namespace) as bridge:
        eventually(is_complete, "the first snapshot")
        assert not bridge.log_lines("target_reset")
        lose(nats)
        engine.run("c3", "sleep", "86400", namespace=namespace)
        ids.add("c3")
        eventually(is_complete, "the snapshot in the new stream and bucket", within=60)
        (snapshot, *others) = snapshots_after_first(nats_state(nats)[0])
        assert (snapshot["snapshot"]["reason"], others) == ("on_demand", [])


def snapshots_after_first(values: Sequence[bytes]) -> list[dict[str, Any]]:
    """Return the beginnings of the snapshots that are not the first one of the bridge."""
    records = [msgspec.json.decode(value) for value in values]
    return [each for each in records if each["type"] == "snapshot_started" and each["sequence"] > 1]


# --- Kafka ---


def kafka_bridge(engine: Containerd, kafka: Kafka, topic: str, directory: Path, namespace: str) -> BridgeProcess:
    environment = {
        "WHALEBRIDGE_SINKS__MAIN__TYPE": "kafka",
        "WHALEBRIDGE_SINKS__MAIN__BOOTSTRAP_SERVERS": kafka.bootstrap,
        "WHALEBRIDGE_SINKS__MAIN__TOPIC": topic,
        "WHALEBRIDGE_SINKS__MAIN__STATE_TOPIC": f"{topic}.state",
    }
    return BridgeProcess(engine.address, directory, "--namespace", namespace, environment=environment)


def kafka_state(kafka: Kafka, topic: str) -> tuple[list[bytes], set[str]]:
    """Return the records in the topic, and the ids of the containers in the state topic; empty if they do not exist."""
    try:
        values = [each.value or b"" for each in kafka.admin.records(topic)]
        entries = {(each.key or b"").decode(): each.value for each in kafka.admin.records(f"{topic}.state")}
    except (KafkaError, AssertionError, TimeoutError):  # the topics are being created
        return [], set()
    return values, {key.rpartition("/")[2] for key, value in entries.items() if value and key.count("/") > 1}


def delete_topics(kafka: Kafka, topic: str) -> None:
    kafka.admin.delete_topic(topic)
    kafka.admin.delete_topic(f"{topic}.state")


def delete_records(kafka: Kafka, topic: str) -> None:
    kafka.admin.delete_records(topic)


def erase_cluster(kafka: Kafka, _: str) -> None:
    kafka.kill()
    kafka.erase()
    kafka.start()


@pytest.mark.parametrize("lose", [delete_topics, delete_records, erase_cluster])
def test_snapshot_follows_when_kafka_loses_records(
    engine: Containerd,
    namespace: str,
    kafka_factory: Callable[..., Kafka],
    tmp_path: Path,
    lose: Callable[[Kafka, str], None],
) -> None:
    kafka, topic, ids = kafka_factory(), "events", {"c0", "c1", "c2"}

    def is_complete() -> bool:
        values, in_state_topic = kafka_state(kafka, topic)
        return has_baseline(values, ids) and in_state_topic == ids

    with kafka_bridge(engine, kafka, topic, tmp_path, namespace) as bridge:
        eventually(is_complete, "the first snapshot", within=60)
        assert not bridge.log_lines("target_reset")
        lose(kafka, topic)
        engine.run("c3", "sleep", "86400", namespace=namespace)
        ids.add("c3")
        eventually(is_complete, "the snapshot in the new topics", within=90)
        (snapshot, *others) = snapshots_after_first(kafka_state(kafka, topic)[0])
        assert (snapshot["snapshot"]["reason"], others) == ("on_demand", [])
