"""The stream for the records and the bucket for the current state: created if missing, otherwise checked.

Existing streams are never changed: their configuration may be intentional.
"""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, NamedTuple

import structlog
from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig, StreamInfo

from config.sinks.nats import BUCKET_PREFIX
from sinks.nats.errors import ApiResponseError
from sinks.nats.messages import is_subset, overlaps
from sinks.target_memory import TargetState, describe_short_retention

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.sinks.nats import NatsSettings
    from sinks.nats.connection import NatsConnection

NOT_FOUND = 10059
NAME_IN_USE = 10058  # with another configuration: created concurrently by another client
SUBJECT_OVERLAP = 10065
_MIN_DUPLICATE_WINDOW = 120  # seconds, JetStream's default
_BUCKET_DUPLICATE_WINDOW = 3600  # seconds
_log = structlog.get_logger(__name__)


class Stream(NamedTuple):
    """The relevant properties of a stream.

    ``atomic``: whether it accepts atomic batches. ``max_message_bytes``: maximum size of a message, -1 for no limit.
    ``supports_ttl``: whether a message can have a TTL. ``state``: what it holds. ``warnings``: properties that weaken
    the guarantees.
    """

    name: str
    atomic: bool
    max_message_bytes: int
    supports_ttl: bool
    state: TargetState
    warnings: tuple[str, ...] = ()


async def ensure_stream(
    connection: NatsConnection, settings: NatsSettings, pattern: str, snapshot_interval: timedelta
) -> Stream:
    """Return the stream for the subjects of ``pattern``; create it if it does not exist.

    Raises:
        ApiResponseError: The stream does not exist, or is unsuitable.
        TransientError: The connection failed.
    """
    info = await _find_or_create(connection, settings, stream_config(settings), create=settings.stream.auto_create)
    config = info.config
    if errors := list(config_errors(config, pattern)):
        raise ApiResponseError(
            f"stream {config.name} at NATS {connection.address.server} is unsuitable: {'; '.join(errors)}; "
            f"change it (nats stream edit {config.name}), or set stream.name to another stream"
        )
    return _to_stream(info)._replace(warnings=tuple(config_warnings(config, pattern, snapshot_interval)))


async def ensure_bucket(connection: NatsConnection, settings: NatsSettings, bucket: str) -> Stream:
    """Return the stream behind the bucket; create it if it does not exist.

    Raises:
        ApiResponseError: The bucket does not exist, or its stream is not a bucket.
        TransientError: The connection failed.
    """
    info = await _find_or_create(
        connection, settings, bucket_config(settings, bucket), create=settings.kv_bucket.auto_create
    )
    config = info.config
    if not is_subset(f"$KV.{bucket}.>", config.subjects or []):
        raise ApiResponseError(
            f"stream {config.name} at NATS {connection.address.server} is not a bucket; "
            "set kv_bucket.name to another one"
        )
    return _to_stream(info)


async def list_subjects(connection: NatsConnection, settings: NatsSettings, stream: str, pattern: str) -> list[str]:
    """Return the subjects in a stream that match ``pattern``."""
    subjects_found: list[str] = []
    while True:
        body = {"subjects_filter": pattern, "offset": len(subjects_found)}
        info = await connection.api_request(
            f"list the subjects of {stream}", settings.domain, f"STREAM.INFO.{stream}", body
        )
        page = (info.get("state") or {}).get("subjects") or {}
        subjects_found += page
        if not page or len(subjects_found) >= info.get("total", 0):
            return subjects_found


async def _find_or_create(
    connection: NatsConnection, settings: NatsSettings, wanted: StreamConfig, *, create: bool
) -> StreamInfo:
    for _ in range(2):
        if existing := await _find(connection, settings, wanted):
            return existing
        if not create:
            raise ApiResponseError(
                f"NATS at {connection.address.server}: stream {wanted.name} does not exist; "
                "create it (see docs/nats.md), or set auto_create to true"
            )
        if created := await _create(connection, settings, wanted):
            return created
    raise ApiResponseError(
        f"NATS at {connection.address.server}: stream {wanted.name} was repeatedly created and deleted while connecting"
    )


async def _find(connection: NatsConnection, settings: NatsSettings, wanted: StreamConfig) -> StreamInfo | None:
    name = wanted.name or ""
    try:
        return await connection.await_request(
            f"get stream {name}", lambda: connection.jetstream(settings.domain).stream_info(name)
        )
    except ApiResponseError as error:
        if error.code == NOT_FOUND:
            return None
        raise


async def _create(connection: NatsConnection, settings: NatsSettings, wanted: StreamConfig) -> StreamInfo | None:
    try:
        info = await connection.await_request(
            f"create stream {wanted.name}", lambda: connection.jetstream(settings.domain).add_stream(wanted)
        )
    except ApiResponseError as error:
        if error.code == SUBJECT_OVERLAP:
            raise ApiResponseError(
                f"NATS at {connection.address.server}: cannot create stream {wanted.name}, "
                f"because the subjects of another stream overlap {', '.join(wanted.subjects or [])}; "
                "set stream.name to that stream, or use another subject_prefix"
            ) from error
        if error.code == NAME_IN_USE:
            return None
        raise
    _log.info("stream_created", stream=wanted.name, server=connection.address.server)
    return info


def _to_stream(info: StreamInfo) -> Stream:
    config, limit = info.config, info.config.max_msg_size
    # Consumers of a work queue delete records: they are not lost.
    first = 0 if config.retention == RetentionPolicy.WORK_QUEUE else info.state.first_seq
    return Stream(
        config.name or "",
        bool(config.allow_atomic),
        -1 if limit is None else limit,
        bool(config.allow_msg_ttl),
        TargetState(str(info.created), first, info.state.last_seq),
    )


# --- configurations. Pure. ---


def stream_config(settings: NatsSettings) -> StreamConfig:
    """Return the configuration of the stream for records."""
    stream = settings.stream
    return StreamConfig(
        name=settings.stream_name,
        description="whalebridge: container lifecycle events",
        subjects=[f"{settings.subject_prefix}.>"],
        storage=StorageType.FILE,
        num_replicas=stream.replicas,
        duplicate_window=stream.limited_duplicate_window.total_seconds(),
        max_age=stream.max_age.total_seconds() if stream.max_age else 0,
        max_bytes=stream.max_bytes or -1,
        allow_atomic=True,  # ignored by servers before 2.12
    )


def bucket_config(settings: NatsSettings, name: str) -> StreamConfig:
    """Return the configuration of the stream behind a bucket, with one value per key."""
    return StreamConfig(
        name=f"{BUCKET_PREFIX}{name}",
        description="whalebridge: running containers",
        subjects=[f"$KV.{name}.>"],
        storage=StorageType.FILE,
        num_replicas=settings.kv_bucket.replicas,
        duplicate_window=_BUCKET_DUPLICATE_WINDOW,
        max_msgs_per_subject=1,
        discard=DiscardPolicy.NEW,
        allow_rollup_hdrs=True,
        allow_direct=True,
        deny_delete=True,
        allow_msg_ttl=True,  # ignored by servers before 2.11
    )


def config_errors(config: StreamConfig, pattern: str) -> Iterator[str]:
    """Yield the properties of a stream that would lose or reject records with subjects in ``pattern``."""
    stream_subjects = config.subjects or []
    if config.mirror:
        yield "it mirrors another stream and accepts no messages"
    elif not any(overlaps(each, pattern) for each in stream_subjects):
        yield f"its subjects ({', '.join(stream_subjects)}) do not match {pattern}"
    if config.sealed:
        yield "it is sealed"
    if config.no_ack:
        yield "it sends no acknowledgments (no_ack)"
    if config.max_msgs_per_subject > 0:
        yield f"it keeps at most {config.max_msgs_per_subject} records per subject (max_msgs_per_subject)"
    if config.retention == RetentionPolicy.INTEREST:
        yield "it keeps no records without consumers (retention interest)"


def config_warnings(config: StreamConfig, pattern: str, snapshot_interval: timedelta) -> Iterator[str]:
    """Yield the properties of a stream that weaken the guarantees."""
    if 0 < (config.max_age or 0) < snapshot_interval.total_seconds():
        yield describe_short_retention("max_age", timedelta(seconds=config.max_age or 0), snapshot_interval)
    if not is_subset(pattern, config.subjects or []):
        yield f"the stream accepts only a part of {pattern}"
    if config.storage == StorageType.MEMORY:
        yield "storage is memory: acknowledged records are lost when the servers stop"
    if config.retention == RetentionPolicy.WORK_QUEUE:
        yield "retention is workqueue: a record is deleted after one consumer has read it"
    if config.duplicate_window < _MIN_DUPLICATE_WINDOW:
        yield f"duplicate_window is {config.duplicate_window:g} s: a record that is resent later is stored twice"
    if not config.allow_atomic:
        yield "atomic batches are disabled: after a failure, records may be stored out of order"
