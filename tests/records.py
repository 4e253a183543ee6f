"""Records made by a `RecordEncoder`, for tests of the outbox and the sinks."""

from __future__ import annotations

from bridge.core.container_state import Transition
from bridge.core.containerd_model import ContainerKey, Engine, Metadata
from bridge.core.record_encoder import Gap, RecordEncoder, SnapshotCoverage
from bridge.core.records import Record, SourcePosition

ENGINE = Engine("c79d280c-f53d-4f0e-9d3e-0a1b2c3d4e5f", "2.4.2", "/run/containerd/containerd.sock", 812)


class RecordFactory:
    """Factory of the records of one source in one epoch."""

    def __init__(
        self,
        epoch: int = 1_795_447_267_123,
        host: str = "node-1",
        engine: Engine = ENGINE,
        previous: SourcePosition | None = None,
    ) -> None:
        self.encoder = RecordEncoder(host, engine, epoch, previous=previous)

    def started_records(self, count: int, size: int = 0) -> list[Record]:
        """Return ``count`` records of started containers, each with ``size`` bytes of labels."""
        return [self.started_record(size) for _ in range(count)]

    def started_record(self, size: int = 0) -> Record:
        number = self.encoder.sequence + 1
        key = ContainerKey("default", f"c{number}")
        metadata = Metadata(key, key.id, "shop", "web", "busybox", "runc", 1, 1, {"filler": "x" * size} if size else {})
        at = 1_795_447_268_000_000_000 + number
        return self.encoder.encode_transition(
            Transition("started", "live", at, key, metadata, None, number, f"5f3c9a1e-{number}", paused=False)
        )

    def snapshot_records(self) -> list[Record]:
        return self.encoder.encode_snapshot(
            Gap("start", None, None), SnapshotCoverage(["default"], [], False), [], [], 1
        )


def ids(records: list[Record]) -> list[str]:
    return [record.id for record in records]


def sequences(records: list[Record]) -> list[int]:
    return [record.sequence for record in records]
