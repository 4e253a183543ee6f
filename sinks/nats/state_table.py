"""The current state in a key-value bucket: an entry per running container, and one per source.

At the first write of a source its keys are read from the bucket, so that its next snapshot removes obsolete entries.
The message id of an entry contains the position of its record, so a late message of an older connection cannot replace
a newer entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from bridge.telemetry.rate_limit import RateLimiter
from bridge.telemetry.safe_text import one_line
from config.sinks.nats import BUCKET_PREFIX
from sinks.nats.errors import ApiResponseError
from sinks.nats.messages import IN_PROCESS, MESSAGE_ID, TOO_LARGE, PubAck, PublishRequest, decode_token, state_key
from sinks.nats.publisher import PublishWindow
from sinks.nats.streams import ensure_bucket, list_subjects
from sinks.state_table import StateChange, StateKey, TableState, apply_records, group_by_source
from sinks.target_memory import TargetMemory

if TYPE_CHECKING:
    from bridge.core.ports import Clock
    from bridge.core.records import Record
    from config.sinks.nats import NatsSettings
    from sinks.nats.connection import NatsConnection

_log = structlog.get_logger(__name__)
DELETE_MARKER_SECONDS = 3600  # how long watchers of the bucket can see a deletion
HEADER_RESERVE_BYTES = 2048  # upper limit for the headers of an entry
_KEY_PARTS = 4  # of a container's key: host, engine, namespace, id


class StateBucket:
    """Keeps a bucket up to date. Not for concurrent use."""

    def __init__(self, settings: NatsSettings, name: str, clock: Clock) -> None:
        self._settings = settings
        self._name = name
        self._stream = f"{BUCKET_PREFIX}{name}"
        self._table_states: dict[StateKey, TableState] = {}
        self._memory = TargetMemory()
        self._supports_ttl = False
        self._rate_limiter = RateLimiter(clock, seconds=3600)

    async def ensure(self, connection: NatsConnection) -> None:
        """Create the bucket if it does not exist, and compare it with what was published.

        Raises:
            TransientError: The bucket does not exist or is unsuitable, or the connection failed.
        """
        stream = await ensure_bucket(connection, self._settings, self._name)
        self._supports_ttl = stream.supports_ttl
        self._memory.observe(stream.state)

    def take_loss(self) -> bool:
        """Return whether the bucket has lost its entries, once per loss; then forget which entries it had."""
        lost = self._memory.take_loss()
        if lost:
            self._table_states.clear()
        return lost

    async def apply(self, connection: NatsConnection, batch: Sequence[Record]) -> None:
        """Apply ``batch`` to the bucket; return when the changes are stored.

        Raises:
            ApiResponseError: The server responded with an error.
            TransientError: The connection failed and must be closed.
        """
        for source, records in group_by_source(batch):
            state = self._table_states.get(source) or await self._read_state(connection, source)
            state, changes = apply_records(state, records)
            await self._store(connection, changes)
            self._table_states[source] = state
            if any(record.type == "snapshot_completed" for record in records):
                self._memory.complete_snapshot()

    async def _read_state(self, connection: NatsConnection, source: StateKey) -> TableState:
        prefix = f"$KV.{self._name}."
        pattern = f"{prefix}{state_key(source.host, source.engine)}.>"
        subjects = await list_subjects(connection, self._settings, self._stream, pattern)
        keys = [subject.removeprefix(prefix).split(".") for subject in subjects]
        containers = [
            StateKey(source.host, source.engine, decode_token(key[2]), decode_token(key[3]))
            for key in keys
            if len(key) == _KEY_PARTS
        ]
        return TableState(keys=frozenset(containers))

    async def _store(self, connection: NatsConnection, changes: Sequence[StateChange]) -> None:
        messages = [message for change in changes if (message := self._message_if_fits(connection, change))]
        acks = await PublishWindow(connection, messages, _should_continue).run()
        if new := [ack.seq for ack in acks.values() if ack.error is None and not ack.duplicate]:
            self._memory.acknowledge(max(new))
        for position, ack in acks.items():
            if ack.error and ack.error.err_code in TOO_LARGE:
                self._log_too_large(messages[position])
            elif ack.error:
                reason = one_line(ack.error.description)
                raise ApiResponseError(
                    f"bucket {self._name} at NATS {connection.address.server} rejected an entry: {reason}"
                )

    def _message_if_fits(self, connection: NatsConnection, change: StateChange) -> PublishRequest | None:
        """Return the message for a change; None if it is so large that the server would close the connection."""
        message = self._message(change)
        if len(message.data) + HEADER_RESERVE_BYTES <= connection.max_payload:
            return message
        self._log_too_large(message)
        return None

    def _log_too_large(self, message: PublishRequest) -> None:
        """Log an entry that is too large for the bucket. Only the entry is missing: the stream has the record."""
        fields = {"bucket": self._name, "key": message.subject, "size": len(message.data)}
        self._rate_limiter.log(_log.warning, message.subject, "kv_entry_too_large", **fields)

    def _message(self, change: StateChange) -> PublishRequest:
        key = state_key(*change.key)
        epoch, sequence = change.position
        headers = {MESSAGE_ID: f"{key}/{epoch}-{sequence}"}
        if change.value is None:
            # The retirement of a source has the position of its last record, which may have written this entry.
            headers[MESSAGE_ID] += "-deleted"
            headers["KV-Operation"] = "DEL"
            if self._supports_ttl:
                headers["Nats-TTL"] = str(DELETE_MARKER_SECONDS)
        return PublishRequest(f"$KV.{self._name}.{key}", change.value or b"", headers)


def _should_continue(ack: PubAck) -> bool:
    return ack.error is None or ack.error.err_code in (IN_PROCESS, *TOO_LARGE)
