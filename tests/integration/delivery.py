"""Shared helpers of the delivery tests: targets on both brokers, plain consumers, and container churn."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Self

import msgspec
from aiokafka.errors import KafkaError, UnknownTopicOrPartitionError
from nats.js.errors import NotFoundError

from tests.bridge_process import BridgeProcess, RecordDict, check_runs, summary
from tests.eventually import eventually
from tests.integration.nats_reading import StoredMessage, StreamReader
from tests.integration.running import listed_containers, published_containers
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE
from tests.testbed.kafka import Kafka
from tests.testbed.kafka_admin import Record
from tests.testbed.nats import Nats

Position = tuple[int, int]
_numbers = itertools.count()


class BrokerTargets:
    """A Kafka topic and a NATS stream with unique names."""

    def __init__(self, kafka: Kafka, nats: Nats) -> None:
        self.topic = f"e2e{os.getpid()}x{next(_numbers)}"
        self.stream = f"WHALEBRIDGE_{self.topic.upper()}"
        self._kafka = kafka
        self._nats = nats

    @property
    def urls(self) -> list[str]:
        """The values for `--sink`."""
        servers = ",".join(url.partition("//")[2] for url in self._nats.urls)
        return [f"kafka://{self._kafka.bootstrap_for('plaintext')}/{self.topic}", f"nats://{servers}/{self.topic}"]

    def environment(self, **settings: str) -> dict[str, str]:
        """Return the environment of a bridge with the sinks `kafka` and `nats`, which have more settings than a URL."""
        values = dict(zip(("KAFKA", "NATS"), self.urls, strict=True)) | settings
        return {f"WHALEBRIDGE_SINKS__{name}": value for name, value in values.items()}

    def bridge(
        self, engine: Containerd, directory: Path, *flags: str, environment: dict[str, str] | None = None
    ) -> BridgeProcess:
        """Create a bridge with both sinks and a state directory; the flags select the namespaces."""
        state_dir = directory / "state"
        return BridgeProcess(
            engine.address, directory, *flags, sinks=self.urls, state_dir=state_dir, environment=environment
        )

    def kafka_records(self) -> list[Record]:
        """Read the topic with a plain consumer, without heartbeats, which differ between the brokers."""
        return [each for each in self._kafka.admin.records(self.topic) if not _is_heartbeat(each.value or b"")]

    def nats_records(self) -> list[StoredMessage]:
        """Read the stream with a plain consumer, without heartbeats; none if the stream does not exist yet."""
        return read_stream(self._nats, self.stream)

    def kafka_values(self) -> list[bytes]:
        """Read the values of the topic; none if the topic does not exist yet."""
        try:
            return [record.value or b"" for record in self.kafka_records()]
        except (UnknownTopicOrPartitionError, KafkaError, AssertionError):
            return []

    def nats_values(self) -> list[bytes]:
        """Read the values of the stream; none if the stream does not exist yet."""
        return [message.data for message in self.nats_records()]

    def complete_records(self) -> list[RecordDict]:
        """Return the distinct records; fail if the brokers have different ones, or see `complete_records`."""
        in_kafka, in_nats = map(complete_records, (self.kafka_values(), self.nats_values()))
        assert in_kafka == in_nats
        return in_kafka


def read_stream(peer: Nats | str, stream: str) -> list[StoredMessage]:
    """Read a stream with a plain consumer, without heartbeats; none if the stream does not exist yet."""

    async def read() -> list[StoredMessage]:
        async with StreamReader(peer) as reader:
            return await reader.read_stored(stream)

    try:
        return [each for each in asyncio.run(read()) if not _is_heartbeat(each.data)]
    except NotFoundError:
        return []


def _is_heartbeat(value: bytes) -> bool:
    return value.startswith(b'{"version":1,"type":"heartbeat"')


def without_heartbeats(values: Iterable[bytes]) -> list[bytes]:
    """Remove heartbeats: they arrive at any time and repeat the position of a record."""
    return [value for value in values if not _is_heartbeat(value)]


def deduplicated_records(values: Sequence[bytes]) -> list[RecordDict]:
    """Decode values, ordered by position and without duplicates. Fail if duplicates differ."""
    by_position: dict[Position, bytes] = {}
    decoded = {value: msgspec.json.decode(value) for value in dict.fromkeys(values)}
    for value, document in decoded.items():
        position = (document["epoch"], document["sequence"])
        assert by_position.setdefault(position, value) == value, (by_position[position], value)
    return [decoded[by_position[position]] for position in sorted(by_position)]


def complete_records(values: Sequence[bytes]) -> list[RecordDict]:
    """Decode values without duplicates. Fail if first occurrences are not in order (P5), or see `check_gapless`."""
    decoded = [msgspec.json.decode(value) for value in dict.fromkeys(values)]
    records = deduplicated_records(values)
    assert decoded == records
    check_gapless(records)
    return records


def check_gapless(records: Sequence[RecordDict]) -> None:
    """Check that no sequence is missing, that epochs are linked, and that the runs of each container are valid."""
    last: Position | None = None
    for epoch, group in itertools.groupby(records, key=lambda record: int(record["epoch"])):
        in_epoch = list(group)
        assert [record["sequence"] for record in in_epoch] == list(range(1, len(in_epoch) + 1)), epoch
        assert in_epoch[0]["type"] == "snapshot_started"
        previous = in_epoch[0]["snapshot"]["previous"]
        assert previous == (last and {"epoch": last[0], "sequence": last[1]}), (epoch, last)
        last = (epoch, len(in_epoch))
    assert "lost" not in {record["type"] for record in records}
    check_runs(list(records))


def wait_consistent(
    read_values: Callable[[], list[bytes]], engine: Containerd, *namespaces: str, seconds: float = 90
) -> None:
    """Wait until the state computed from the records matches containerd's listing."""
    listed = listed_containers(engine, *namespaces)
    try:
        eventually(
            lambda: published_containers(deduplicated_records(read_values())) == listed,
            "agreement with containerd",
            within=seconds,
        )
    except TimeoutError:
        records = deduplicated_records(read_values())
        published = published_containers(records)
        wrong = {id_ for id_ in listed.keys() | published.keys() if listed.get(id_) != published.get(id_)}
        summaries = [summary(record) for record in records if record["id"] in wrong]
        raise AssertionError(f"{wrong=}; their records: {summaries[-30:]}") from None


class ContainerChurn:
    """Start, pause, kill and restart containers while the context is active; some remain afterwards."""

    def __init__(self, engine: Containerd, namespace: str, seed: str = "7") -> None:
        self.namespace = namespace
        self.runs: Counter[str] = Counter()
        """Number of starts by display id."""
        self._engine = engine
        self._random = random.Random(os.environ.get("WHALEBRIDGE_TEST_SEED", seed))  # noqa: S311 (reproducible)
        self._states: dict[str, str] = {}
        self._stopped = Event()
        self._thread = ThreadPoolExecutor(1)
        self._done: Future[None]
        engine.import_image(namespace)

    def __enter__(self) -> Self:
        self._done = self._thread.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.shutdown()
        if kind is None:
            self._done.result()

    def remove_all(self) -> None:
        """Remove the remaining containers."""
        if self._states:
            self._ctr("tasks", "delete", "--force", *self._states, check=False)
            self._ctr("containers", "delete", *self._states, check=False)

    def step(self) -> None:
        """Change the state of one container."""
        running = [id_ for id_, state in self._states.items() if state != "exited"]
        exited = [id_ for id_, state in self._states.items() if state == "exited"]
        if len(running) < 2 or (len(running) < 5 and self._random.random() < 0.4):
            if exited and self._random.random() < 0.4:
                self._restart(self._random.choice(exited))
            else:
                self._create()
        else:
            self._toggle_pause(self._random.choice(running))

    def _run(self) -> None:
        while not self._stopped.is_set():
            self.step()

    def _create(self) -> None:
        id_ = f"c{len(self._states)}-{os.getpid()}-{self.namespace}"
        self._count_start(id_)
        if self._random.random() < 0.3:
            self._states[id_] = "exited"
            self._ctr("run", "--null-io", IMAGE, id_, "sh", "-c", "test -e /again && exec sleep 600; touch /again")
            self._ctr("tasks", "delete", id_, check=False)
        else:
            self._states[id_] = "running"
            self._ctr("run", "--detach", "--null-io", "--label", "team=e2e", IMAGE, id_, "sleep", "86400")

    def _restart(self, id_: str) -> None:
        self._count_start(id_)
        if self._engine.tasks(self.namespace).get(id_):
            self._ctr("tasks", "delete", id_)
        self._ctr("tasks", "start", "--detach", "--null-io", id_)
        self._states[id_] = "running"
        if self._random.random() < 0.3:
            self._kill(id_)

    def _toggle_pause(self, id_: str) -> None:
        if self._states[id_] == "paused":
            self._ctr("tasks", "resume", id_)
            self._states[id_] = "running"
        elif self._random.random() < 0.5:
            self._ctr("tasks", "pause", id_)
            self._states[id_] = "paused"
        else:
            self._kill(id_)

    def _kill(self, id_: str) -> None:
        self._ctr("tasks", "kill", "--signal", "SIGKILL", id_)
        eventually(lambda: self._engine.tasks(self.namespace).get(id_) in ("STOPPED", None), f"the exit of {id_}")
        if self._random.random() < 0.7:  # otherwise the stopped task stays listed
            self._ctr("tasks", "delete", id_, check=False)
        self._states[id_] = "exited"

    def _count_start(self, id_: str) -> None:
        self.runs[f"{self.namespace}/{id_}"] += 1

    def _ctr(self, *args: str, check: bool = True) -> None:
        self._engine.ctr(*args, namespace=self.namespace, check=check)
