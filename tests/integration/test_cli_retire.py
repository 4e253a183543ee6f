"""`whalebridge retire` on real brokers: the record, the state of consumers, and the state topic and bucket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from bridge.clock import SystemClock
from bridge.consumer import State, follow, load_table
from bridge.core.ports import Sink
from bridge.core.record_encoder import heartbeat_record
from bridge.core.records import Record
from sinks.kafka.sink import KafkaSink
from sinks.nats.sink import NatsSink
from sinks.otlp import decode_bodies
from tests.integration import kafka_sinks, nats_reading
from tests.integration.commands import assert_one_line, whalebridge
from tests.sample_records import ENGINE, EPOCH, control_record, record
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats


class Target:
    """A topic or stream with a state table, by the id `main` in a configuration file, or without it by its URL."""

    def __init__(self, config: Path, url: str, create_sink: Callable[[], Sink]) -> None:
        self.config = str(config)
        self.url = url
        self._create_sink = create_sink

    def publish(self, records: Sequence[Record]) -> None:
        async def publish() -> None:
            sink = self._create_sink()
            await sink.start()
            await sink.publish(records)
            await sink.close()

        asyncio.run(publish())

    def hosts(self) -> tuple[set[str], set[str]]:
        """Return the hosts of the containers in a consumer's state, and in the state table."""

        async def read() -> tuple[State, State]:
            state = State()
            async for _ in follow("main", state, wait=False, config=self.config):
                pass
            return state, await load_table("main", config=self.config)

        consumer, table = asyncio.run(read())
        return {each.source.host for each in consumer.containers()}, {each.source.host for each in table.containers()}


@pytest.fixture(params=["kafka", "nats"])
def target(request: pytest.FixtureRequest, kafka: Kafka, nats: Nats, tmp_path: Path) -> Target:
    config, name = tmp_path / "config.yaml", tmp_path.name.replace("[", "_")
    if request.param == "kafka":
        kafka_settings = kafka_sinks.settings(kafka, name, state_topic=f"{name}.state")
        servers = kafka_settings.bootstrap_servers
        options = f"bootstrap_servers: [{', '.join(servers)}], topic: {name}, state_topic: {name}.state"
        config.write_text(f"sinks: {{main: {{type: kafka, {options}}}}}\n")
        return Target(config, f"kafka://{','.join(servers)}/{name}", lambda: KafkaSink(kafka_settings, SystemClock()))
    nats_settings = nats_reading.settings(nats, name, kv_bucket={"name": name})
    servers = nats_settings.servers
    options = f"servers: [{', '.join(servers)}], subject_prefix: {name}, kv_bucket: {{name: {name}}}"
    config.write_text(f"sinks: {{main: {{type: nats, {options}}}}}\n")
    return Target(config, f"nats://{','.join(servers)}/{name}", lambda: NatsSink(nats_settings, SystemClock()))


def snapshot(host: str, *ids: str, epoch: int = EPOCH) -> list[Record]:
    presents = [record(2 + number, "present", id_=id_, host=host, epoch=epoch) for number, id_ in enumerate(ids)]
    ends = [
        control_record(1, "snapshot_started", host=host, epoch=epoch),
        control_record(2 + len(ids), "snapshot_completed", host=host, epoch=epoch),
    ]
    return [ends[0], *presents, ends[1]]


def test_retired_source_is_removed_until_its_node_comes_back(target: Target) -> None:
    alive = snapshot("node-2", "a")
    target.publish([*snapshot("node-1", "a"), *alive, *snapshot("node-3", "a"), record(4, "sparkled", host="node-3")])  # type: ignore[arg-type] # of a later version
    target.publish([heartbeat_record(alive[-1], time.time_ns(), 1, 60.0)])
    retire = ("retire", "--sink", "main", "--config", target.config)

    assert_one_line(whalebridge(*retire, "node-9"), 1, "node-9")
    assert_one_line(whalebridge(*retire, "node-2"), 1, f"node-2/{ENGINE.id}, last seen at 2", "it may be alive")
    process = whalebridge(*retire, "node-1", "--dry-run")
    assert (process.returncode, process.stdout) == (
        0,
        f"node-1/{ENGINE.id}, last seen at 2026-11-23T15:21:08Z: would be retired\n",
    )
    assert target.hosts() == ({"node-1", "node-2", "node-3"},) * 2

    process = whalebridge(*retire, f"node-1/{ENGINE.id}", "--reason", "scaled down", "--by", "autoscaler")
    assert (process.returncode, process.stdout.endswith(": retired\n"), process.stderr) == (0, True, "")
    assert target.hosts() == ({"node-2", "node-3"},) * 2
    process = whalebridge(*retire, "node-1")
    assert (process.returncode, process.stdout.endswith(": is retired already\n")) == (0, True)
    process = whalebridge("tail", "main", "--config", target.config, "--no-follow", "--type", "source_retired")
    assert process.stdout.endswith("node-1  source_retired  scaled down (by autoscaler)\n")

    process = whalebridge(*retire, "--stale-for", "100d")
    assert (process.returncode, process.stdout) == (0, "")
    process = whalebridge(*retire, "--stale-for", "1d")
    assert (process.returncode, process.stdout) == (
        0,
        f"node-3/{ENGINE.id}, last seen at 2026-11-23T15:21:08Z: retired\n",
    )
    assert target.hosts() == ({"node-2"},) * 2

    target.publish(snapshot("node-1", "b", epoch=EPOCH + 1))
    target.publish([record(4, host="node-1", epoch=EPOCH + 1, attributes={"cluster": "prod-1"})])
    assert target.hosts() == ({"node-1", "node-2"},) * 2
    report = msgspec.json.decode(whalebridge("audit", "main", "--config", target.config, "--json").stdout)
    assert report["findings"] == []

    assert whalebridge(*retire, "node-1").returncode == 0
    process = whalebridge(
        "tail", "main", "--config", target.config, "--no-follow", "--type", "source_retired", "--json"
    )
    records = [msgspec.json.decode(line) for line in process.stdout.splitlines()]
    assert [each.get("attributes") for each in records] == [None, None, {"cluster": "prod-1"}]


def test_retired_source_is_removed_from_table_when_repeated(target: Target) -> None:
    """The first command had the URL only, so that the entries have stayed; it could have been interrupted, too."""
    target.publish([*snapshot("node-4", "a"), *snapshot("node-5", "a"), *snapshot("node-6", "a")])
    for host in ("node-4", "node-5", "node-6"):
        assert whalebridge("retire", host, "--sink", target.url).returncode == 0
    assert target.hosts() == (set(), {"node-4", "node-5", "node-6"})
    target.publish(snapshot("node-6", "b", epoch=EPOCH + 1))

    retire = ("retire", "--sink", "main", "--config", target.config)
    process = whalebridge(*retire, "node-4", "--dry-run")
    assert process.stdout.endswith(": is retired already, entries would be removed\n")
    process = whalebridge(*retire, "node-4")
    assert (process.returncode, process.stdout.endswith(": is retired already, entries removed\n")) == (0, True)
    assert whalebridge(*retire, "node-4").stdout.endswith(": is retired already\n")
    process = whalebridge(*retire, "--stale-for", "100d")
    assert (process.returncode, process.stdout.count("\n")) == (0, 1), process.stdout
    assert target.hosts() == ({"node-6"}, {"node-6"})


def test_retirement_ignores_content_of_foreign_records(target: Target) -> None:
    source = '"engine": {"id": "e"}, "host": "foreign", "epoch": 1, "sequence": 1'
    data = f'{{"version": 1, "type": "sparkled", "timestamp": "soon", {source}}}'.encode()
    target.publish([msgspec.structs.replace(record(1, "created", host="foreign"), data=data)])
    process = whalebridge("retire", "--stale-for", "1d", "--sink", target.url)
    assert (process.returncode, process.stdout) == (0, "foreign/e, last seen at 1-01-01T00:00:00Z: retired\n"), (
        process.stderr
    )


@pytest.mark.parametrize("target", ["kafka"], indirect=True)  # a bucket has other subjects than a stream
def test_retirement_in_state_topic_fails(target: Target) -> None:
    """A record there would replace the entry of the source, and the source would not be retired."""
    target.publish(snapshot("node-7", "a"))
    process = whalebridge("retire", "node-7", "--sink", f"{target.url}.state")
    assert_one_line(process, 1, "is an entry of a state topic or bucket", "use the topic or stream of the records")


def test_source_with_otlp_records_is_retired_by_id_only(kafka: Kafka, tmp_path: Path) -> None:
    """By URL, the record would have another encoding than the others, which the readers of the topic do not expect."""
    config, url = tmp_path / "config.yaml", f"kafka://{kafka.bootstrap}/retire.otlp"
    settings = kafka_sinks.settings(kafka, "retire.otlp", encoding="otlp")
    options = f"bootstrap_servers: [{kafka.bootstrap}], topic: retire.otlp, encoding: otlp"
    config.write_text(f"sinks: {{main: {{type: kafka, {options}}}}}\n")
    target = Target(config, url, lambda: KafkaSink(settings, SystemClock()))
    target.publish(snapshot("node-1", "a"))
    assert_one_line(whalebridge("retire", "node-1", "--sink", url), 1, "encoding otlp")
    assert whalebridge("retire", "node-1", "--sink", "main", "--config", str(config)).returncode == 0
    bodies = [body for each in kafka.admin.records("retire.otlp") for body in decode_bodies(each.value or b"")]
    assert [msgspec.json.decode(body)["type"] for body in bodies][-2:] == ["snapshot_completed", "source_retired"]
