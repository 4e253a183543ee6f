"""The bridge with brokers of testcontainers, which run on any machine with Docker.

By default, the tests build the images from the testbed's brokers. WHALEBRIDGE_TEST_NATS_IMAGE and
WHALEBRIDGE_TEST_KAFKA_IMAGE select others (`nats:2`, `confluentinc/cp-kafka:8.1.0`), if a registry can be reached.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import docker  # type: ignore[import-untyped]
import nats
import pytest
from aiokafka.errors import UnknownTopicOrPartitionError
from nats.js.errors import NotFoundError
from testcontainers.community.kafka import KafkaContainer
from testcontainers.core.config import ConnectionMode, testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from tests.bridge_process import BridgeProcess, transitions
from tests.eventually import eventually
from tests.integration.delivery import check_gapless, deduplicated_records, without_heartbeats
from tests.integration.engines import one_engine
from tests.testbed.broker_images import Image, kafka_image, nats_image
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE
from tests.testbed.kafka_admin import KafkaAdmin

# The clients of testcontainers leave connections to the engine open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def testcontainers_engine(docker_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure testcontainers: no helper container from a registry, and published ports on the engine's host."""
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    monkeypatch.setattr(testcontainers_config, "connection_mode_override", ConnectionMode.docker_host)


@pytest.fixture
def nats_url(tmp_path: Path) -> Iterator[str]:
    name = os.environ.get("WHALEBRIDGE_TEST_NATS_IMAGE") or import_image(nats_image, tmp_path)
    # testcontainers' NatsContainer uses a deprecated wait strategy.
    ready = LogMessageWaitStrategy("Server is ready")
    with DockerContainer(name).with_exposed_ports(4222).with_command("-js").waiting_for(ready) as container:
        yield f"nats://{container.get_container_host_ip()}:{container.get_exposed_port(4222)}"


@pytest.fixture
def kafka_bootstrap(tmp_path: Path) -> Iterator[str]:
    name = os.environ.get("WHALEBRIDGE_TEST_KAFKA_IMAGE") or import_image(kafka_image, tmp_path)
    container = KafkaContainer(name).with_kraft()
    try:
        container.start(timeout=120)  # the default of 30 s is too short for a loaded machine
        yield container.get_bootstrap_server()
    finally:
        container.stop()


def import_image(make: Callable[[Path], Image], directory: Path) -> str:
    """Build an image, import it into the engine, and return its name."""
    client = docker.from_env()
    try:
        image = make(directory)
        options = {"repository": image.repository, "tag": image.tag, "changes": list(image.changes)}
        client.api.import_image(src=str(image.archive), **options)
    finally:
        client.close()
    return image.name


@one_engine
def test_bridge_publishes_same_records_to_testcontainers_brokers(
    engine: Containerd, nats_url: str, kafka_bootstrap: str, tmp_path: Path
) -> None:
    """Plain consumers of both brokers get the same records about a container."""
    namespace = f"tc{os.getpid()}"
    engine.import_image(namespace)
    sinks = [f"kafka://{kafka_bootstrap}/lifecycle", f"{nats_url}/lifecycle"]
    state_dir = tmp_path / "state"
    with BridgeProcess(engine.address, tmp_path, "--namespace", namespace, sinks=sinks, state_dir=state_dir) as bridge:
        bridge.wait_logged("synced")
        # Without --rm: containerd loses the exit events of some containers that are removed at their exit.
        id_ = f"tc-{os.getpid()}"
        engine.ctr("run", "--detach", "--null-io", IMAGE, id_, "sh", "-c", "sleep 1; exit 7", namespace=namespace)
        eventually(lambda: wait_exited(_kafka_values(kafka_bootstrap)), "the exit in Kafka")
        eventually(lambda: wait_exited(_nats_values(nats_url)), "the exit in NATS")
    engine.ctr("tasks", "delete", id_, namespace=namespace, check=False)  # exits with the status of the container
    engine.ctr("containers", "delete", id_, namespace=namespace)
    values = _kafka_values(kafka_bootstrap)
    assert values == _nats_values(nats_url)
    records = deduplicated_records(values)
    check_gapless(records)
    assert [(each["type"], each["exit"] and each["exit"]["status"]) for each in transitions(records)] == [
        ("started", None),
        ("exited", 7),
    ]


def wait_exited(values: Sequence[bytes]) -> bool:
    return any(record["type"] == "exited" for record in deduplicated_records(values))


def _kafka_values(bootstrap: str) -> list[bytes]:
    try:
        return without_heartbeats(record.value or b"" for record in KafkaAdmin(bootstrap).records("lifecycle"))
    except UnknownTopicOrPartitionError:  # no topic yet
        return []


def _nats_values(url: str) -> list[bytes]:
    try:
        return without_heartbeats(asyncio.run(_stream_values(url)))
    except NotFoundError:  # no stream yet
        return []


async def _stream_values(url: str) -> list[bytes]:
    client = await nats.connect(url)
    try:
        stream = client.jetstream()
        count = (await stream.stream_info("WHALEBRIDGE_LIFECYCLE")).state.messages
        messages = [await stream.get_msg("WHALEBRIDGE_LIFECYCLE", seq) for seq in range(1, count + 1)]
        return [message.data or b"" for message in messages]
    finally:
        await client.close()
