"""Measure the consumer library: the work `consumer` of `make bench`, or alone `python -m tests.bench.consumer`.

A fleet is simulated, with 100 containers on each node: a snapshot of each node, and changes of all containers. Measured
are the projection of records from memory, the memory of the state, and the time to the whole state from a compacted
state topic on a real Kafka.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import sys
import time
import tracemalloc
from collections.abc import Iterator
from random import Random

from aiokafka import AIOKafkaProducer

from bridge.consumer import State, load_table
from bridge.consumer.record_decoder import decode
from bridge.core.records import EngineInfo, Record, RecordType
from tests.bench.pipelines import ROOT, Values
from tests.bench.usage import resident_bytes
from tests.sample_records import control_record, record
from tests.testbed.kafka import Kafka
from tests.testbed.process import run

CONTAINERS = 100
CHANGES = 4  # of each container, after the snapshot
CHUNK = 100  # nodes whose records are in memory at a time
KAFKA_NODES = 1000  # the entries of all nodes would take minutes to publish


def node_records(number: int, changes: int = CHANGES) -> Iterator[Record]:
    """Yield the records of a node: its snapshot, and changes of its containers, in random order."""
    host = f"ip-10-{number // 256}-{number % 256}-17.eu-central-1.compute.internal"
    chance = Random(number)  # noqa: S311
    engine = EngineInfo(f"{number:08x}-41f6-4b1c-8a0a-b99f8290adba", "containerd.io", "2.4.2", "/run/c.sock", 812)
    ids = [f"{chance.getrandbits(256):064x}" for _ in range(CONTAINERS)]
    sequence = 1

    def about(type_: RecordType, container: int) -> Record:
        service, project = f"service-{container % 20}", f"project-{container % 7}"
        labels = {"com.docker.compose.project": project, "com.docker.compose.service": service, "tier": "backend"}
        name = f"{project}-{service}-{container}"
        return record(
            sequence, type_, id_=ids[container], name=name, project=project, labels=labels, host=host, engine=engine
        )

    yield control_record(sequence, "snapshot_started", host=host, engine=engine)
    for container in range(CONTAINERS):
        sequence += 1
        yield about("present", container)
    sequence += 1
    yield control_record(sequence, "snapshot_completed", host=host, engine=engine)
    for round_ in range(changes):
        for container in chance.sample(range(CONTAINERS), CONTAINERS):
            sequence += 1
            yield about("unpaused" if round_ % 2 else "paused", container)


def apply(state: State, messages: list[bytes]) -> float:
    """Apply messages as a reader does; return the CPU time."""
    started = time.process_time()
    for message in messages:
        state.apply(*decode(message))
    return time.process_time() - started


def project(nodes: int) -> Values:
    """Return the records per second, and the memory of a container."""
    gc.collect()
    before = resident_bytes([os.getpid()])
    state, seconds, count = State(), 0.0, 0
    for first in range(0, nodes, CHUNK):
        numbers = range(first, min(first + CHUNK, nodes))
        messages = [each.data for number in numbers for each in node_records(number)]
        seconds += apply(state, messages)
        count += len(messages)
        del messages
    gc.collect()
    containers = len(state.containers())
    assert containers == nodes * CONTAINERS
    assert all(each.complete for each in state.sources())
    resident = resident_bytes([os.getpid()]) - before
    return {"records per second of CPU": count / seconds, "resident memory/container (bytes)": resident / containers}


def allocate(nodes: int) -> Values:
    """Return the memory of a container without what the allocator holds."""
    messages = [each.data for number in range(nodes) for each in node_records(number)]
    tracemalloc.start()
    state = State()
    apply(state, messages)
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return {"allocated memory/container (bytes)": size / nodes / CONTAINERS}


def entries(number: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a node's state after its snapshot, as a sink writes them."""
    for each in node_records(number, changes=0):
        if each.type != "snapshot_started":
            key = f"{each.host}/{each.engine}/{each.subject}"
            yield key.encode(), each.data[:-1] + f',"snapshot_id":"{each.epoch}-1"}}'.encode()


async def load(kafka: str, topic: str, nodes: int) -> Values:
    """Return the time to the whole state from a compacted state topic, scaled to 10,000 containers."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=20)
    await producer.start()
    for number in range(nodes):
        for key, value in entries(number):
            await producer.send(topic, key=key, value=value)
    await producer.stop()
    started, cpu = time.perf_counter(), time.process_time()
    state = await load_table(f"kafka://{kafka}/{topic}")
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    assert len(state.containers()) == nodes * CONTAINERS
    share = nodes * CONTAINERS / 10_000
    return {"state topic, 10,000 entries (s)": seconds / share, "CPU of that (s)": cpu / share}


def measure_consumer(kafka: Kafka, name: str) -> Values:
    """Return what the library costs in a process of its own."""
    kafka.admin.create_topic(name, settings={"cleanup.policy": "compact"})
    command = [sys.executable, "-m", "tests.bench.consumer", "--kafka", kafka.bootstrap, "--topic", name]
    values: Values = json.loads(run(command, directory=ROOT, timeout=900).stdout)
    return values


def main() -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, default=5000, help="simulated nodes (default: 5,000)")
    parser.add_argument("--kafka", metavar="HOST:PORT", help="also load a state topic of this Kafka")
    parser.add_argument("--topic", default="state", help="the state topic, empty and compacted")
    options = parser.parse_args()
    values = allocate(min(options.nodes, CHUNK)) | project(options.nodes)
    if options.kafka:
        values |= asyncio.run(load(options.kafka, options.topic, min(options.nodes, KAFKA_NODES)))
    print(json.dumps(values))


if __name__ == "__main__":
    main()
