"""How streams and buckets are to be set up, and what is wrong with one that is there. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nats.js.api import DiscardPolicy, RetentionPolicy, StorageType, StreamConfig

from sinks.nats import subjects

if TYPE_CHECKING:
    from collections.abc import Iterator

    from config.sinks.nats import NatsSettings

_SHORT_WINDOW = 120  # seconds, JetStream's own default
_BUCKET_WINDOW = 3600  # seconds


def stream(settings: NatsSettings) -> StreamConfig:
    """Return the configuration of a stream for records."""
    wanted = settings.stream
    return StreamConfig(
        name=settings.stream_name,
        description="whalebridge: container lifecycle events",
        subjects=[f"{settings.subject_prefix}.>"],
        storage=StorageType.FILE,
        num_replicas=wanted.replicas,
        duplicate_window=wanted.duplicate_window.total_seconds(),
        max_age=wanted.max_age.total_seconds() if wanted.max_age else 0,
        max_bytes=wanted.max_bytes or -1,
        allow_atomic=True,  # a server before 2.12 drops it
    )


def bucket(settings: NatsSettings, name: str) -> StreamConfig:
    """Return the configuration of the stream that is a bucket with one value a key."""
    return StreamConfig(
        name=f"KV_{name}",
        description="whalebridge: the containers that live now",
        subjects=[f"$KV.{name}.>"],
        storage=StorageType.FILE,
        num_replicas=settings.kv_bucket.replicas,
        duplicate_window=_BUCKET_WINDOW,
        max_msgs_per_subject=1,
        discard=DiscardPolicy.NEW,
        allow_rollup_hdrs=True,
        allow_direct=True,
        deny_delete=True,
        allow_msg_ttl=True,  # a server before 2.11 drops it
    )


def mistakes(config: StreamConfig, pattern: str) -> Iterator[str]:
    """Find what of a stream would lose records of the subjects in ``pattern``, or refuse them all."""
    own = config.subjects or []
    if config.mirror:
        yield "it mirrors another stream, and takes no messages itself"
    elif not any(subjects.collide(each, pattern) for each in own):
        yield f"its subjects are {', '.join(own)}, and ours {pattern}"
    if config.sealed:
        yield "it is sealed"
    if config.no_ack:
        yield "it acknowledges nothing (no_ack)"
    if config.max_msgs_per_subject > 0:
        yield f"it keeps no more than {config.max_msgs_per_subject} records of a subject (max_msgs_per_subject)"
    if config.retention == RetentionPolicy.INTEREST:
        yield "it drops what nobody waits for (retention interest)"


def weaknesses(config: StreamConfig, pattern: str) -> Iterator[str]:
    """Find what of a stream works, but less well."""
    if not subjects.covered(pattern, config.subjects or []):
        yield f"the stream accepts only a part of {pattern}"
    if config.storage == StorageType.MEMORY:
        yield "storage is memory: acknowledged records are lost when the servers stop"
    if config.retention == RetentionPolicy.WORK_QUEUE:
        yield "retention is workqueue: a record is deleted after one consumer has read it"
    if config.duplicate_window < _SHORT_WINDOW:
        yield f"duplicate_window is {config.duplicate_window:g} s: a record that is resent later is stored twice"
    if not config.allow_atomic:
        yield "atomic batches are disabled: after a failure, records may be stored out of order"
