"""From containerd to brokers that lose what was published: a snapshot follows at once, without a restart."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from aiokafka.errors import KafkaError
from nats.js.errors import NotFoundError

from tests.bridge_process import BridgeProcess, RecordDict, running_after
from tests.eventually import eventually
from tests.integration.engines import one_engine
from tests.integration.nats_reading import StreamReader
from tests.testbed.containerd import Containerd
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats

State = tuple[list[RecordDict], set[str]]
"""The stored records, and the ids of the containers in the state topic or bucket; empty if these do not exist."""


class NatsLosingStreams:
    """A NATS whose stream and bucket are deleted."""

    def __init__(self, nats: Nats) -> None:
        self._nats = nats
        servers = ",".join(url.partition("//")[2] for url in nats.urls)
        self.sink = {"TYPE": "nats", "SERVERS": servers, "SUBJECT_PREFIX": "events", "KV_BUCKET__NAME": "state"}

    def state(self) -> State:
        async def read() -> State:
            async with StreamReader(self._nats) as reader:
                try:
                    values = [each.data for each in await reader.read_stored()]
                    keys = await reader.read_bucket("state")
                except NotFoundError:
                    return [], set()
                return _decoded(values), {key.rpartition(".")[2] for key in keys if key.count(".") > 1}

        return asyncio.run(read())

    def lose(self) -> None:
        async def delete() -> None:
            async with StreamReader(self._nats) as reader:
                await reader.jetstream.delete_stream("WHALEBRIDGE_EVENTS")
                await reader.jetstream.delete_key_value("state")

        asyncio.run(delete())


class KafkaLosingDisks:
    """A Kafka that is killed and starts with empty disks."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self.sink = {"TYPE": "kafka", "BOOTSTRAP_SERVERS": kafka.bootstrap, "TOPIC": "events", "STATE_TOPIC": "state"}

    def state(self) -> State:
        try:
            values = [each.value or b"" for each in self._kafka.admin.records("events")]
            entries = {(each.key or b"").decode(): each.value for each in self._kafka.admin.records("state")}
        except (KafkaError, AssertionError, TimeoutError):  # the topics are being created
            return [], set()
        return _decoded(values), {
            key.rpartition("/")[2] for key, value in entries.items() if value and key.count("/") > 1
        }

    def lose(self) -> None:
        self._kafka.kill()
        self._kafka.erase()
        self._kafka.start()


def _decoded(values: list[bytes]) -> list[RecordDict]:
    return [msgspec.json.decode(value) for value in values]


@pytest.fixture(params=["nats", "kafka"])
def broker(request: pytest.FixtureRequest) -> NatsLosingStreams | KafkaLosingDisks:
    factory: Callable[[], Nats | Kafka] = request.getfixturevalue(f"{request.param}_factory")
    peer = factory()
    return NatsLosingStreams(peer) if isinstance(peer, Nats) else KafkaLosingDisks(peer)


@one_engine
def test_fault_44_broker_loses_records(
    engine: Containerd, broker: NatsLosingStreams | KafkaLosingDisks, tmp_path: Path
) -> None:
    namespace, ids = f"resets-{broker.sink['TYPE']}{os.getpid()}", {"c0", "c1", "c2"}
    engine.import_image(namespace)
    for id_ in ids:
        engine.run(id_, "sleep", "86400", namespace=namespace)

    def is_complete() -> bool:
        """Return whether the broker has a complete snapshot, and shows exactly these running containers."""
        records, in_state = broker.state()
        types = [each["type"] for each in records if each["type"] not in ("heartbeat", "started", "exited")]
        running = {each["id"] for each in running_after(records).values()}
        return types[-1:] == ["snapshot_completed"] and running == in_state == ids

    environment = {f"WHALEBRIDGE_SINKS__MAIN__{name}": value for name, value in broker.sink.items()}
    with BridgeProcess(engine.address, tmp_path, "--namespace", namespace, environment=environment) as bridge:
        eventually(is_complete, "the first snapshot")
        assert not bridge.log_lines("target_reset")
        engine.ctr("tasks", "kill", "--signal", "SIGKILL", "c0", namespace=namespace)
        ids.remove("c0")
        eventually(is_complete, "the removal of the exited container")
        broker.lose()
        engine.run("c3", "sleep", "86400", namespace=namespace)
        ids.add("c3")
        eventually(is_complete, "the snapshot after the loss", within=90)
        starts = [each for each in broker.state()[0] if each["type"] == "snapshot_started"]
        reasons = [each["snapshot"]["reason"] for each in starts if each["sequence"] > 1]
        assert reasons == ["on_demand"]
