"""What the tests of delivery share: where records go, what plain consumers find there, and a churn of containers."""

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

from tests.bridge_process import BridgeProcess, RecordDict, check_runs, running_after, summary
from tests.eventually import eventually
from tests.integration.nats_reading import StoredMessage, StreamReader
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE
from tests.testbed.kafka import Kafka
from tests.testbed.kafka_admin import Record
from tests.testbed.nats import Nats

Position = tuple[int, int]
_numbers = itertools.count()


class BrokerTargets:
    """A topic and a stream of their own, on both brokers."""

    def __init__(self, kafka: Kafka, nats: Nats) -> None:
        self.topic = f"e2e{os.getpid()}x{next(_numbers)}"
        self.stream = f"WHALEBRIDGE_{self.topic.upper()}"
        self._kafka = kafka
        self._nats = nats

    @property
    def urls(self) -> list[str]:
        """What `--sink` is told."""
        servers = ",".join(url.partition("//")[2] for url in self._nats.urls)
        return [f"kafka://{self._kafka.bootstrap_for('plaintext')}/{self.topic}", f"nats://{servers}/{self.topic}"]

    def bridge(
        self, engine: Containerd, directory: Path, *flags: str, environment: dict[str, str] | None = None
    ) -> BridgeProcess:
        """The program with both sinks and a state_dir, for the namespaces that the flags name."""
        state_dir = directory / "state"
        return BridgeProcess(
            engine.address, directory, *flags, sinks=self.urls, state_dir=state_dir, environment=environment
        )

    def kafka_records(self) -> list[Record]:
        """All that a plain consumer finds in the topic, but for heartbeats: each broker has its own."""
        return [each for each in self._kafka.admin.records(self.topic) if not _is_heartbeat(each.value or b"")]

    def nats_records(self) -> list[StoredMessage]:
        """The same of the stream."""

        async def read() -> list[StoredMessage]:
            async with StreamReader(self._nats) as reader:
                return await reader.read_stored(self.stream)

        return [each for each in asyncio.run(read()) if not _is_heartbeat(each.data)]

    def kafka_values(self) -> list[bytes]:
        """The values alone; none where there is no topic yet."""
        try:
            return [record.value or b"" for record in self.kafka_records()]
        except (UnknownTopicOrPartitionError, KafkaError, AssertionError):
            return []

    def nats_values(self) -> list[bytes]:
        """The values alone; none where there is no stream yet."""
        try:
            return [message.data for message in self.nats_records()]
        except NotFoundError:
            return []


def _is_heartbeat(value: bytes) -> bool:
    return value.startswith(b'{"version":1,"type":"heartbeat"')


def without_heartbeats(values: Iterable[bytes]) -> list[bytes]:
    """The values of records alone: a heartbeat, which may come at any time, has the position of one."""
    return [value for value in values if not _is_heartbeat(value)]


def deduplicated_records(values: Sequence[bytes]) -> list[RecordDict]:
    """What a consumer makes of values: in order, each once. Those that came twice have to be identical."""
    found: dict[Position, bytes] = {}
    decoded = {value: msgspec.json.decode(value) for value in dict.fromkeys(values)}
    for value, document in decoded.items():
        position = (document["epoch"], document["sequence"])
        assert found.setdefault(position, value) == value, (found[position], value)
    return [decoded[found[position]] for position in sorted(found)]


def is_in_order(values: Sequence[bytes]) -> bool:
    """Whether first occurrences stand in the order of their positions (P5)."""
    decoded = map(msgspec.json.decode, dict.fromkeys(values))
    positions = [(document["epoch"], document["sequence"]) for document in decoded]
    return positions == sorted(positions)


def check_gapless(records: Sequence[RecordDict]) -> None:
    """Every sequence of every epoch is there, the epochs are linked, and lives are well formed across them."""
    last: Position | None = None
    for epoch, group in itertools.groupby(records, key=lambda record: int(record["epoch"])):
        told = list(group)
        assert [record["sequence"] for record in told] == list(range(1, len(told) + 1)), epoch
        assert told[0]["type"] == "snapshot_started"
        previous = told[0]["snapshot"]["previous"]
        assert previous == (last and {"epoch": last[0], "sequence": last[1]}), (epoch, last)
        last = (epoch, len(told))
    assert "lost" not in {record["type"] for record in records}
    check_runs(list(records))


def listed_containers(engine: Containerd, *namespaces: str) -> dict[str, bool]:
    """containerd's own word: who lives, by display id, and whether it is paused."""
    return {
        f"{namespace}/{id_}": status == "PAUSED"
        for namespace in namespaces
        for id_, status in engine.tasks(namespace).items()
        if status in ("RUNNING", "PAUSED", "PAUSING")
    }


def published_containers(records: list[RecordDict]) -> dict[str, bool]:
    """The same, as a consumer knows it."""
    return {id_: container["paused"] for id_, container in running_after(records).items()}


def wait_consistent(
    read_values: Callable[[], list[bytes]], engine: Containerd, *namespaces: str, seconds: float = 90
) -> None:
    """Wait until what a consumer folds is what containerd says."""
    said = listed_containers(engine, *namespaces)
    try:
        eventually(
            lambda: published_containers(deduplicated_records(read_values())) == said,
            "agreement with containerd",
            within=seconds,
        )
    except TimeoutError:
        records = deduplicated_records(read_values())
        told = published_containers(records)
        wrong = {id_ for id_ in said.keys() | told.keys() if said.get(id_) != told.get(id_)}
        about = [summary(record) for record in records if record["id"] in wrong]
        raise AssertionError(f"{wrong=}; told of them: {about[-30:]}") from None


class ContainerChurn:
    """Containers that are born, paused, killed and reborn, for as long as the context lasts; some are left over."""

    def __init__(self, engine: Containerd, namespace: str, seed: str = "7") -> None:
        self.namespace = namespace
        self.runs: Counter[str] = Counter()
        """How often each was started, by display id."""
        self._engine = engine
        self._chance = random.Random(os.environ.get("WHALEBRIDGE_TEST_SEED", seed))  # noqa: S311 (to be repeated)
        self._states: dict[str, str] = {}
        self._deadline = Event()
        self._thread = ThreadPoolExecutor(1)
        self._done: Future[None]
        engine.import_image(namespace)

    def __enter__(self) -> Self:
        self._done = self._thread.submit(self._run)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._deadline.set()
        self._thread.shutdown()
        if kind is None:
            self._done.result()

    def remove_all(self) -> None:
        """Remove all that is left."""
        for id_ in self._states:
            self._ctr("tasks", "delete", "--force", id_, check=False)
            self._ctr("containers", "delete", id_, check=False)

    def step(self) -> None:
        """Do one thing."""
        living = [id_ for id_, state in self._states.items() if state != "dead"]
        dead = [id_ for id_, state in self._states.items() if state == "dead"]
        if len(living) < 2 or (len(living) < 5 and self._chance.random() < 0.4):
            if dead and self._chance.random() < 0.4:
                self._restart(self._chance.choice(dead))
            else:
                self._create()
        else:
            self._toggle_pause(self._chance.choice(living))

    def _run(self) -> None:
        while not self._deadline.is_set():
            self.step()

    def _create(self) -> None:
        id_ = f"c{len(self._states)}-{os.getpid()}-{self.namespace}"
        self._count_start(id_)
        if self._chance.random() < 0.3:
            self._states[id_] = "dead"
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
        if self._chance.random() < 0.3:
            self._kill(id_)

    def _toggle_pause(self, id_: str) -> None:
        if self._states[id_] == "paused":
            self._ctr("tasks", "resume", id_)
            self._states[id_] = "running"
        elif self._chance.random() < 0.5:
            self._ctr("tasks", "pause", id_)
            self._states[id_] = "paused"
        else:
            self._kill(id_)

    def _kill(self, id_: str) -> None:
        self._ctr("tasks", "kill", "--signal", "SIGKILL", id_)
        eventually(lambda: self._engine.tasks(self.namespace).get(id_) in ("STOPPED", None), f"the end of {id_}")
        if self._chance.random() < 0.7:  # else it stays listed
            self._ctr("tasks", "delete", id_, check=False)
        self._states[id_] = "dead"

    def _count_start(self, id_: str) -> None:
        self.runs[f"{self.namespace}/{id_}"] += 1

    def _ctr(self, *args: str, check: bool = True) -> None:
        self._engine.ctr(*args, namespace=self.namespace, check=check)
