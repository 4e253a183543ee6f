"""What the bridge on a node has told NATS, and what Kubernetes says of the same containers."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import msgspec
import nats.aio.client
from nats.js.api import AckPolicy, ConsumerConfig

from tests.eventually import eventually

RecordDict = dict[str, Any]

STREAM = "WHALEBRIDGE_CONTAINERS"


class StreamReader:
    """Reads a stream again and again: each call has all that is in it by then."""

    def __init__(self, url: str) -> None:
        self.url = url

    def all(self) -> list[RecordDict]:
        """Every record but heartbeats, in the stream's order, each once."""
        documents = asyncio.run(self._read())
        unique = {(each["epoch"], each["sequence"]): each for each in documents if each["type"] != "heartbeat"}
        return list(unique.values())

    def of_pod(self, pod: str) -> list[RecordDict]:
        """The records about a pod's containers."""
        return [each for each in self.all() if pod_of(each).get("name") == pod]

    def wait(self, predicate: Callable[[list[RecordDict]], object], what: str, timeout: float = 60) -> list[RecordDict]:
        """Wait until the records fulfil a condition; return them."""
        found: list[RecordDict] = []

        def holds() -> object:
            found[:] = self.all()
            return predicate(found)

        eventually(holds, what, within=timeout)
        return found

    async def _read(self) -> list[RecordDict]:
        client = nats.aio.client.Client()
        await client.connect([self.url])
        try:
            stream = client.jetstream(timeout=10)
            count = (await stream.stream_info(STREAM)).state.messages
            # By default a server forgets a consumer of which it has heard nothing for 5 s.
            config = ConsumerConfig(ack_policy=AckPolicy.NONE, inactive_threshold=60)
            subscription = await stream.pull_subscribe(">", stream=STREAM, config=config)
            found: list[RecordDict] = []
            while len(found) < count:
                page = await subscription.fetch(min(1000, count - len(found)), timeout=10)
                found += [msgspec.json.decode(each.data) for each in page]
            await subscription.unsubscribe()
            return found
        finally:
            await client.close()


def pod_of(record: RecordDict) -> RecordDict:
    """What a record says of its pod."""
    return (record["container"] or {}).get("pod") or {}


def transitions(records: Iterable[RecordDict]) -> Counter[tuple[str, str, str]]:
    """How often what was told, by pod, container and type, leaving out rows and frames."""
    return Counter(
        (pod_of(each)["name"], pod_of(each)["container"], each["type"])
        for each in records
        if each["type"] in ("started", "exited") and pod_of(each)
    )


def find_gaps(records: Iterable[RecordDict]) -> list[str]:
    """Holes in the sequences, and epochs that do not follow on the one before."""
    found = []
    epochs: dict[int, list[RecordDict]] = {}
    for each in records:
        epochs.setdefault(each["epoch"], []).append(each)
    last = None
    for epoch in sorted(epochs):
        sequences = sorted(each["sequence"] for each in epochs[epoch])
        if sequences != list(range(1, len(sequences) + 1)):
            found.append(f"epoch {epoch}: {sequences}")
        first = min(epochs[epoch], key=lambda each: int(each["sequence"]))
        if last is not None and first["snapshot"]["previous"] != last:
            found.append(f"epoch {epoch} follows {first['snapshot']['previous']}, not {last}")
        last = {"epoch": epoch, "sequence": sequences[-1]}
    return found


def running_containers(records: Iterable[RecordDict]) -> set[str]:
    """Fold the records: the ids of the containers that live."""
    living: set[str] = set()
    for each in records:
        match each["type"]:
            case "started" | "present" | "paused" | "unpaused":
                living.add(each["id"])
            case "exited":
                living.discard(each["id"])
    return living
