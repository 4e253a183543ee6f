"""What the other tests do with brokers of the testbed, testcontainers does on any machine with Docker.

The images are made here, of what the testbed has; WHALEBRIDGE_TEST_NATS_IMAGE and WHALEBRIDGE_TEST_KAFKA_IMAGE name
others (`nats:2`, `confluentinc/cp-kafka:8.1.0`) where a registry can be reached.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import docker  # type: ignore[import-untyped]
import pytest
from aiokafka import AIOKafkaProducer
from nats import connect
from testcontainers.community.kafka import KafkaContainer
from testcontainers.core.config import ConnectionMode, testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from tests.testbed.broker_images import Image, kafka_image, nats_image
from tests.testbed.kafka_admin import KafkaAdmin

# Its clients leave connections to the engine open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def engine_of_the_test(docker_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No helper container from a registry, and published ports are found where the engine runs."""
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    monkeypatch.setattr(testcontainers_config, "connection_mode_override", ConnectionMode.docker_host)


@pytest.fixture
def nats_url(tmp_path: Path) -> Iterator[str]:
    name = os.environ.get("WHALEBRIDGE_TEST_NATS_IMAGE") or imported(nats_image, tmp_path)
    # testcontainers' own NatsContainer waits in a way that it calls deprecated itself.
    ready = LogMessageWaitStrategy("Server is ready")
    with DockerContainer(name).with_exposed_ports(4222).with_command("-js").waiting_for(ready) as container:
        yield f"nats://{container.get_container_host_ip()}:{container.get_exposed_port(4222)}"


@pytest.fixture
def kafka_bootstrap(tmp_path: Path) -> Iterator[str]:
    name = os.environ.get("WHALEBRIDGE_TEST_KAFKA_IMAGE") or imported(kafka_image, tmp_path)
    with KafkaContainer(name).with_kraft() as container:
        yield container.get_bootstrap_server()


def imported(make: Callable[[Path], Image], folder: Path) -> str:
    """Make an image and hand it to the engine."""
    client = docker.from_env()
    try:
        image = make(folder)
        options = {"repository": image.repository, "tag": image.tag, "changes": list(image.changes)}
        client.api.import_image(src=str(image.archive), **options)
    finally:
        client.close()
    return image.name


async def test_nats_stores_a_message(nats_url: str) -> None:
    connection = await connect(nats_url)
    try:
        stream = connection.jetstream()
        await stream.add_stream(name="EVENTS", subjects=["events.>"])
        assert (await stream.publish("events.one", b"hello")).seq == 1
    finally:
        await connection.close()


async def test_kafka_stores_a_record(kafka_bootstrap: str) -> None:
    admin = KafkaAdmin(kafka_bootstrap)
    admin.create_topic("events")
    producer = AIOKafkaProducer(bootstrap_servers=kafka_bootstrap, enable_idempotence=True)
    await producer.start()
    try:
        await producer.send_and_wait("events", b"hello")
    finally:
        await producer.stop()
    assert [record.value for record in admin.records("events")] == [b"hello"]
