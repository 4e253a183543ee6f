"""Single records of any type, made without a `RecordEncoder`: for the tests of sinks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from bridge.core.container_metadata import display_id
from bridge.core.containerd_model import ContainerKey
from bridge.core.record_encoder import lost_record, retirement_record
from bridge.core.records import Container, EngineInfo, EventRecord, Record, RecordType, Snapshot

EPOCH = 1795447267123
HOST = "node-1"
ENGINE = EngineInfo("c79d280c-f53d-4d5e", "containerd.io", "2.4.2", "/run/containerd/containerd.sock", 812)
TIME = "2026-11-23T15:21:08.256344486Z"
_encode = msgspec.json.encode


def record(
    sequence: int,
    type_: RecordType = "started",
    *,
    namespace: str = "shop",
    id_: str = "web-1",
    name: str | None = None,
    project: str = "web-shop",
    paused: bool | None = None,
    labels: dict[str, str] | None = None,
    host: str = HOST,
    engine: EngineInfo = ENGINE,
    epoch: int = EPOCH,
    size: int = 0,
    attributes: dict[str, str] | None = None,
) -> Record:
    """Return a record about a container; its document is padded to `size` bytes."""
    container = Container(
        id=id_,
        namespace=namespace,
        name=name or id_,
        project=project,
        service="web",
        pid=4711,
        incarnation="5f3c9a1e-4711",
        paused=type_ == "paused" if paused is None else paused,
        kind="container",
        image="docker.io/library/busybox:latest",
        runtime="io.containerd.runc.v2",
        created_at=TIME,
        labels=labels if labels is not None else {"com.docker.compose.project": project},
        labels_dropped=False,
        pod=None,
    )
    subject = display_id(ContainerKey(namespace, id_))
    document = EventRecord(
        1,
        type_,
        TIME,
        subject,
        project,
        "live",
        container,
        None,
        None,
        None,
        engine,
        host,
        epoch,
        sequence,
        attributes=attributes,
    )
    data = _encode(document)
    if len(data) < size:
        container = msgspec.structs.replace(container, image="x" * (len(container.image) + size - len(data)))
        data = _encode(msgspec.structs.replace(document, container=container))
    pairs = tuple((attributes or {}).items())
    return Record(epoch, sequence, type_, TIME, host, engine.id, namespace, subject, project, data, attributes=pairs)


def records(count: int, first_sequence: int = 1, **options: Any) -> list[Record]:
    """Return consecutive records of one source, about a hundred containers."""
    return [record(first_sequence + number, id_=f"web-{number % 100}", **options) for number in range(count)]


def control_record(
    sequence: int,
    type_: RecordType,
    snapshot: int = 1,
    *,
    failed: Sequence[str] = (),
    host: str = HOST,
    engine: EngineInfo = ENGINE,
    epoch: int = EPOCH,
) -> Record:
    """Return a control record of a snapshot."""
    body = Snapshot(f"{epoch}-{snapshot}", "start", None, None, ["shop"], list(failed), False, 1, None)
    document = EventRecord(
        1, type_, TIME, None, None, "snapshot", None, None, body, None, engine, host, epoch, sequence
    )
    return Record(epoch, sequence, type_, TIME, host, engine.id, "", "", "", _encode(document))


def loss_record(last: Record, first: int) -> Record:
    """Return the loss record for the records from `first` to `last`."""
    return lost_record(last, first, "overflow", 0)


def retirement(last: Record) -> Record:
    """Return the record that retires the source of `last`, its last record."""
    return retirement_record(last, "node deleted", "ops@bastion", 0)


def batches(all_records: Sequence[Record], size: int) -> list[Sequence[Record]]:
    """Split records into batches, as a pump does."""
    return [all_records[start : start + size] for start in range(0, len(all_records), size)]
