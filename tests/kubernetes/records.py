"""Read the records that the bridge on a node has published to NATS."""

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
    """Reads a stream; each call returns all records that it has at that time."""

    def __init__(self, url: str) -> None:
        self.url = url

    def all(self) -> list[RecordDict]:
        """Return all records except heartbeats, in the order of the stream, without duplicates."""
        records = asyncio.run(self._read())
        unique = {(each["epoch"], each["sequence"]): each for each in records if each["type"] != "heartbeat"}
        return list(unique.values())

    def of_pod(self, pod: str) -> list[RecordDict]:
        """Return the records about a pod's containers."""
        return [each for each in self.all() if pod_of(each).get("name") == pod]

    def wait(self, predicate: Callable[[list[RecordDict]], object], what: str, timeout: float = 60) -> list[RecordDict]:
        """Wait until the predicate holds for the records; return them."""
        records: list[RecordDict] = []

        def holds() -> object:
            records[:] = self.all()
            return predicate(records)

        eventually(holds, what, within=timeout)
        return records

    async def _read(self) -> list[RecordDict]:
        client = nats.aio.client.Client()
        await client.connect([self.url])
        try:
            stream = client.jetstream(timeout=10)
            count = (await stream.stream_info(STREAM)).state.messages
            # By default, a server deletes a consumer after 5 s without activity.
            config = ConsumerConfig(ack_policy=AckPolicy.NONE, inactive_threshold=60)
            subscription = await stream.pull_subscribe(">", stream=STREAM, config=config)
            records: list[RecordDict] = []
            while len(records) < count:
                page = await subscription.fetch(min(1000, count - len(records)), timeout=10)
                records += [msgspec.json.decode(each.data) for each in page]
            await subscription.unsubscribe()
            return records
        finally:
            await client.close()


def pod_of(record: RecordDict) -> RecordDict:
    """Return the pod in a record, empty if it has none."""
    return (record["container"] or {}).get("pod") or {}


def transitions(records: Iterable[RecordDict]) -> Counter[tuple[str, str, str]]:
    """Count starts and exits by pod, container and type."""
    return Counter(
        (pod_of(each)["name"], pod_of(each)["container"], each["type"])
        for each in records
        if each["type"] in ("started", "exited") and pod_of(each)
    )


def find_gaps(records: Iterable[RecordDict]) -> list[str]:
    """Describe missing sequences, and epochs that do not continue the previous one."""
    gaps = []
    epochs: dict[int, list[RecordDict]] = {}
    for each in records:
        epochs.setdefault(each["epoch"], []).append(each)
    last = None
    for epoch in sorted(epochs):
        sequences = sorted(each["sequence"] for each in epochs[epoch])
        if sequences != list(range(1, len(sequences) + 1)):
            gaps.append(f"epoch {epoch}: {sequences}")
        first = min(epochs[epoch], key=lambda each: int(each["sequence"]))
        if last is not None and first["snapshot"]["previous"] != last:
            gaps.append(f"epoch {epoch} follows {first['snapshot']['previous']}, not {last}")
        last = {"epoch": epoch, "sequence": sequences[-1]}
    return gaps
