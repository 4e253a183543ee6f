"""The bridge with brokers of testcontainers, which run on any machine with Docker.

WHALEBRIDGE_TEST_NATS_IMAGE and WHALEBRIDGE_TEST_KAFKA_IMAGE select the images (`nats:2`,
`confluentinc/cp-kafka:8.1.0`), if a registry can be reached. By default, the containers run this machine's programs,
which must be Docker's machine: the image is a busybox with the scripts that KafkaContainer expects in
`confluentinc/cp-kafka`, and `/host` is the root directory of the machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import docker  # type: ignore[import-untyped]
import pytest
from aiokafka.errors import UnknownTopicOrPartitionError
from testcontainers.community.kafka import KafkaContainer
from testcontainers.core.config import ConnectionMode, testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.wait_strategies import LogMessageWaitStrategy

from tests.bridge_process import BridgeProcess, transitions
from tests.eventually import eventually
from tests.integration.delivery import complete_records, deduplicated_records, read_stream, without_heartbeats
from tests.integration.engines import one_engine
from tests.testbed.components import cache_directory
from tests.testbed.containerd import Containerd, busybox_path
from tests.testbed.image import NAME as IMAGE
from tests.testbed.image import layer
from tests.testbed.install import search_path
from tests.testbed.kafka import COMPONENTS as KAFKA
from tests.testbed.kafka import fast_jvm_options
from tests.testbed.kafka_admin import KafkaAdmin

ContainerT = TypeVar("ContainerT", bound=DockerContainer)

# The clients of testcontainers leave connections to the engine open.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture(autouse=True)
def testcontainers_engine(docker_host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Configure testcontainers: no helper container from a registry, and published ports on the engine's host."""
    monkeypatch.setenv("DOCKER_HOST", docker_host)
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    monkeypatch.setattr(testcontainers_config, "connection_mode_override", ConnectionMode.docker_host)


@pytest.fixture
def nats_url(require: Callable[..., None], tmp_path: Path) -> Iterator[str]:
    # testcontainers' NatsContainer uses a deprecated wait strategy.
    if name := os.environ.get("WHALEBRIDGE_TEST_NATS_IMAGE"):
        container = DockerContainer(name).with_command("-js")
    else:
        require("nats-server")
        server = shutil.which("nats-server", path=search_path("nats-server"))
        container = with_host(DockerContainer(import_busybox(tmp_path)), tmp_path).with_command(f"/host{server} -js")
    ready = LogMessageWaitStrategy("Server is ready")
    with container.with_exposed_ports(4222).waiting_for(ready):
        yield f"nats://{container.get_container_host_ip()}:{container.get_exposed_port(4222)}"


@pytest.fixture
def kafka_bootstrap(require: Callable[..., None], tmp_path: Path) -> Iterator[str]:
    if name := os.environ.get("WHALEBRIDGE_TEST_KAFKA_IMAGE"):
        container = KafkaContainer(name).with_kraft()
    else:
        require(*KAFKA)
        scripts = tmp_path / "scripts"
        scripts.mkdir()
        java = f"{' '.join(fast_jvm_options())} -cp '{cache_directory()}/kafka/libs/*'"
        for name, content in SCRIPTS.items():
            (scripts / name).write_text(content.format(scripts=scripts, java=java))
            (scripts / name).chmod(0o755)
        container = with_host(KafkaContainer(import_busybox(tmp_path)), tmp_path).with_kraft()
        container.with_volume_mapping(str(scripts), "/etc/confluent/docker", "rw")
        container.with_env("PATH", "/bin:/etc/confluent/docker")
    try:
        container.start(timeout=120)  # the default of 30 s is too short for a loaded machine
        yield container.get_bootstrap_server()
    finally:
        container.stop()


SCRIPTS = {
    "bash-config": "",
    # KAFKA_ADVERTISED_LISTENERS=... becomes advertised.listeners=...; testcontainers appends a call of kafka-storage.
    "configure": r"""#!/bin/sh
env | grep '^KAFKA_' | while IFS='=' read -r name value; do
    echo "$(echo "${{name#KAFKA_}}" | tr 'A-Z_' 'a-z.')=$value"
done > /host{scripts}/kafka.properties
echo 'log.dirs={scripts}/data' >> /host{scripts}/kafka.properties
""",
    "kafka-storage": """#!/bin/sh
exec chroot /host java {java} kafka.tools.StorageTool "$1" "$2" "$3" "$4" "$5" {scripts}/kafka.properties
""",
    "launch": """#!/bin/sh
exec chroot /host java -Dorg.slf4j.simpleLogger.defaultLogLevel=warn \\
    -Dorg.slf4j.simpleLogger.log.kafka.server=info {java} kafka.Kafka {scripts}/kafka.properties
""",
}


def import_busybox(directory: Path) -> str:
    """Import busybox into the engine, and return its name, with a version of Kafka that supports KRaft."""
    archive = directory / "busybox.tar"
    archive.write_bytes(layer(busybox_path()))
    client = docker.from_env()
    try:
        client.api.import_image(src=str(archive), repository="whalebridge-testbed/cp-kafka", tag="8.3.1")
    finally:
        client.close()
    return "whalebridge-testbed/cp-kafka:8.3.1"


def with_host(container: ContainerT, directory: Path) -> ContainerT:
    """Mount this machine's root directory, of which only a directory can be written.

    The host name is in the machine's /etc/hosts: Java looks up its own, and a name server cannot be reached.
    """
    container.with_kwargs(hostname="localhost")
    container.with_volume_mapping("/", "/host", "ro")
    container.with_volume_mapping(str(directory), f"/host{directory}", "rw")
    return container


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
    records = complete_records(values)
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
    return [message.data for message in read_stream(url, "WHALEBRIDGE_LIFECYCLE")]
