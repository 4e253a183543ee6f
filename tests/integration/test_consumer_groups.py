"""Readers of a consumer group share a Kafka topic, as real processes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import msgspec

from bridge import consumer
from bridge.clock import SystemClock
from bridge.consumer import Source, State
from bridge.consumer.kafka_group import KafkaGroupReader
from bridge.consumer.record_decoder import DecodedRecord, Position
from bridge.core.errors import TransientError
from bridge.core.records import Record
from examples import shared_topic
from sinks.kafka.sink import KafkaSink
from tests.documentation import ROOT
from tests.eventually import eventually_async
from tests.integration.group_member import Held, held
from tests.integration.kafka_sinks import KafkaFactory, settings
from tests.integration.test_consumer_kafka import kafka_url, publish
from tests.naming import raises_naming
from tests.sample_records import control_record, record
from tests.scale import scaled
from tests.testbed.kafka import USERS, Kafka

HOSTS = [f"node-{number}" for number in range(12)]
PARTITIONS = 6


class Member:
    """A reader process and what it has written."""

    def __init__(self, url: str, group: str, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        command = [sys.executable, "-m", "tests.integration.group_member", url, group, str(directory)]
        self._process = subprocess.Popen(command, cwd=ROOT)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait()

    @property
    def held(self) -> Held:
        try:
            return msgspec.json.decode((self._directory / "state.json").read_bytes(), type=Held)
        except FileNotFoundError:
            return {}

    @property
    def changes(self) -> list[DecodedRecord]:
        """The changes that it has received; the last line of a killed process may be incomplete."""
        try:
            data = (self._directory / "changes").read_bytes()
        except FileNotFoundError:
            return []
        decoder = msgspec.json.Decoder(DecodedRecord)
        return [decoder.decode(line) for line in data.splitlines(keepends=True) if line.endswith(b"\n")]


class Members:
    """The processes of a group."""

    def __init__(self, url: str, directory: Path) -> None:
        self._url = url
        self._directory = directory
        self.all: list[Member] = []

    def start(self) -> Member:
        member = Member(self._url, "billing", self._directory / f"{len(self.all)}")
        self.all.append(member)
        return member

    async def wait_shared(self, members: Sequence[Member], expected: Held, *, within: float = 60) -> None:
        """Wait until the members hold all sources, each of them once, as one reader does."""

        def is_shared() -> bool:
            shares = [member.held for member in members]
            hosts = [host for share in shares for host in share]
            union = {host: known for share in shares for host, known in share.items()}
            return len(hosts) == len(set(hosts)) and union == expected and all(shares)

        await eventually_async(is_shared, "a shared state that equals that of one reader", within=within)


@contextlib.contextmanager
def members(url: str, directory: Path) -> Iterator[Members]:
    group = Members(url, directory)
    try:
        yield group
    finally:
        for each in group.all:
            each.signal(signal.SIGKILL)


def histories(chance: Random, runs: int) -> list[list[Record]]:
    """Return a history of each host: a snapshot, and containers that start, are paused and exit."""
    result = []
    for host in HOSTS:
        history = [control_record(1, "snapshot_started", host=host), record(2, "present", id_="first", host=host)]
        history.append(control_record(3, "snapshot_completed", host=host))
        running = ["first"]
        for sequence in range(4, 4 + runs):
            if running and chance.random() < 0.4:
                id_ = running.pop(chance.randrange(len(running)))
                history.append(record(sequence, "exited", id_=id_, host=host))
            else:
                running.append(f"web-{sequence}")
                history.append(record(sequence, id_=running[-1], host=host))
        result.append(history)
    return result


async def publish_all(kafka: Kafka, topic: str, all_histories: Sequence[Sequence[Record]]) -> None:
    """Publish in small batches, so that the load lasts for a while; repeat some records as a lost reply does."""
    sink = KafkaSink(settings(kafka, topic), SystemClock())
    await sink.start()
    for start in range(0, max(map(len, all_histories)), 25):
        for history in all_histories:
            await sink.publish(history[max(0, start - 2) : start + 25])
        await asyncio.sleep(0.05)
    await sink.close()


async def read_alone(url: str) -> tuple[State, list[tuple[Source, Position]]]:
    """Return the state and changes of one reader without a group."""
    state = State()
    changes = [each async for each in consumer.follow(url, state, wait=False)]
    return state, [(each.source, each.record.position) for each in changes]


async def test_group_shares_topic_while_reader_is_killed(kafka: Kafka, tmp_path: Path) -> None:
    topic, chance = "group.killed", Random(5)  # noqa: S311
    kafka.admin.create_topic(topic, partitions=PARTITIONS)
    url = kafka_url(kafka, topic)
    published = histories(chance, scaled(reduced=600, full=3000))
    await publish_all(kafka, topic, [each[:150] for each in published])
    with members(url, tmp_path) as group:
        first, killed, third = (group.start() for _ in range(3))
        await group.wait_shared(group.all, held((await read_alone(url))[0]))
        stored = sum(kafka.admin.end_offset(topic, each) for each in range(PARTITIONS))
        await eventually_async(lambda: kafka.admin.committed("billing") == stored, "the first records to be committed")
        load = asyncio.create_task(publish_all(kafka, topic, [each[150:] for each in published]))
        before = len(killed.changes)
        await eventually_async(lambda: len(killed.changes) > before + 100)
        assert not load.done()
        killed.signal(signal.SIGKILL)
        await load
        alone, expected = await read_alone(url)
        await group.wait_shared([first, third], held(alone))
        fourth = group.start()  # gains partitions, whose earlier records are no changes for it
        await group.wait_shared([first, third, fourth], held(alone))
        delivered = [each for member in group.all for each in member.changes]
        assert {(each.source, each.position) for each in delivered} == set(expected)
        assert fourth.changes == []
        repeated = len(delivered) - len(expected)
        print(f"{len(expected)} changes, {repeated} delivered twice")
        assert repeated <= len(killed.changes) - before  # only what it had not committed
        combined = State()
        for each in delivered:
            combined.apply(each)
        assert held(combined) == held(alone)
        assert sorted(combined.containers()) == sorted(alone.containers())


async def test_example_reads_its_share_as_program(kafka: Kafka) -> None:
    await publish_all(kafka, "group.example", [each[:3] for each in histories(Random(1), 0)])  # noqa: S311
    command = [sys.executable, shared_topic.__file__, kafka_url(kafka, "group.example"), "example"]
    process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    async with asyncio.timeout(60):
        lines = [(await process.stdout.readline()).decode() for _ in range(len(HOSTS) * 4)]
    process.kill()
    await process.wait()
    assert lines[-1] == "12 containers are running on 12 nodes\n"
    assert sum(line.startswith("node-3 present first") for line in lines) == 1


async def test_group_reader_needs_permission_to_read_group(kafka_factory: KafkaFactory) -> None:
    kafka = kafka_factory(listeners=("sasl_plaintext",), acls=True)
    await publish(kafka, "events", 1, 10)
    kafka.admin.allow("User:reader", "read", "events")
    options = settings(
        kafka.bootstrap_for("sasl_plaintext"), "events", auth={"username": "reader", "password": USERS["reader"]}
    )
    reader = KafkaGroupReader(options, SystemClock(), group="billing", forget=lambda _: None)
    with raises_naming(TransientError, "user reader", "group billing", "allow Read"):
        async with asyncio.timeout(60):
            async for _ in reader.batches():
                pass
