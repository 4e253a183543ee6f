"""The current state in a key-value bucket: an entry per running container, and one per source.

At the first write of a source its keys are read from the bucket, so that its next snapshot removes obsolete entries.
The message id of an entry contains the position of its record, so a late message of an older connection cannot replace
a newer entry.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from bridge.clock import SystemClock
from bridge.telemetry.rate_limit import RateLimiter
from bridge.telemetry.text import one_line
from sinks.current import Change, Row, State, fold, runs
from sinks.nats.exchange import TOO_LARGE, Answer, Exchange, Message
from sinks.nats.failures import AnsweredError
from sinks.nats.messages import MESSAGE_ID
from sinks.nats.streams import ensure_bucket, subjects_in
from sinks.nats.subjects import read_token, state_key

if TYPE_CHECKING:
    from bridge.core.events import Record
    from config.sinks.nats import NatsSettings
    from sinks.nats.connection import Link

_log = structlog.get_logger(__name__)
MARKER_SECONDS = 3600  # how long watchers of the bucket can see a deletion
HEADERS_BYTES = 2048  # upper limit for the headers of an entry
_PARTS = 4  # of a container's key: host, engine, namespace, id


class Bucket:
    """Keeps a bucket up to date. Not for concurrent use."""

    def __init__(self, settings: NatsSettings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._stream = f"KV_{name}"
        self._states: dict[Row, State] = {}
        self._expiring = False
        self._limiter = RateLimiter(SystemClock(), seconds=3600)

    async def check(self, link: Link) -> None:
        """Create the bucket if it does not exist.

        Raises:
            TransientError: The bucket does not exist or is unsuitable, or the connection failed.
        """
        self._expiring = (await ensure_bucket(link, self._settings, self._name)).expiring

    async def write(self, link: Link, batch: Sequence[Record]) -> None:
        """Apply ``batch`` to the bucket; return when the changes are stored.

        Raises:
            ApiResponseError: The server responded with an error.
            TransientError: The connection failed and must be closed.
        """
        for source, records in runs(batch):
            state = self._states.get(source) or await self._read(link, source)
            state, changes = fold(state, records)
            await self._store(link, changes)
            self._states[source] = state

    async def _read(self, link: Link, source: Row) -> State:
        prefix = f"$KV.{self._name}."
        pattern = f"{prefix}{state_key(source.host, source.engine)}.>"
        found = await subjects_in(link, self._settings, self._stream, pattern)
        keys = [subject.removeprefix(prefix).split(".") for subject in found]
        containers = [
            Row(source.host, source.engine, read_token(key[2]), read_token(key[3]))
            for key in keys
            if len(key) == _PARTS
        ]
        return State(rows=frozenset(containers))

    async def _store(self, link: Link, changes: Sequence[Change]) -> None:
        messages = [message for change in changes if (message := self._fitting(link, change))]
        acks = await Exchange(link, messages, _goes_on).run()
        for position, ack in acks.items():
            if ack.error and ack.error.err_code in TOO_LARGE:
                self._leave_out(messages[position])
            elif ack.error:
                reason = one_line(ack.error.description)
                raise AnsweredError(f"bucket {self._name} at NATS {link.place.server} rejected an entry: {reason}")

    def _fitting(self, link: Link, change: Change) -> Message | None:
        """Return the message for a change; None if it is so large that the server would close the connection."""
        message = self._message(change)
        if len(message.data) + HEADERS_BYTES <= link.max_payload:
            return message
        self._leave_out(message)
        return None

    def _leave_out(self, message: Message) -> None:
        """Log an entry that is too large for the bucket. Only the entry is missing: the stream has the record."""
        fields = {"bucket": self._name, "key": message.subject, "size": len(message.data)}
        self._limiter.log(_log.warning, message.subject, "kv_entry_too_large", **fields)

    def _message(self, change: Change) -> Message:
        key = state_key(*change.row)
        epoch, sequence = change.position
        headers = {MESSAGE_ID: f"{key}/{epoch}-{sequence}"}
        if change.value is None:
            headers["KV-Operation"] = "DEL"
            if self._expiring:
                headers["Nats-TTL"] = str(MARKER_SECONDS)
        return Message(f"$KV.{self._name}.{key}", change.value or b"", headers)


def _goes_on(answer: Answer) -> bool:
    return answer.error is None or answer.error.err_code in TOO_LARGE
