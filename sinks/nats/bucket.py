"""The current state in a key-value bucket: a row for each living container, and one for each source.

What is in the bucket when the process starts is read once for each source, so that its next snapshot removes what has
gone meanwhile. Rows carry the message id of the record that they come from, so that one that was under way on an older
connection cannot come after a newer one.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import structlog

from bridge.clock import SystemClock
from bridge.telemetry.sparingly import Sparingly
from sinks.current import Change, Row, State, fold, runs
from sinks.nats.exchange import TOO_LARGE, Answer, Exchange, Message
from sinks.nats.failures import AnsweredError, one_line
from sinks.nats.messages import MESSAGE_ID
from sinks.nats.streams import ensure_bucket, subjects_in
from sinks.nats.subjects import read_token, state_key

if TYPE_CHECKING:
    from bridge.core.events import Record
    from config.sinks.nats import NatsSettings
    from sinks.nats.link import Link

_log = structlog.get_logger(__name__)
MARKER_SECONDS = 3600  # how long a deleted key leaves a trace for those who watch the bucket
HEADERS_BYTES = 2048  # more than those of a row
_PARTS = 4  # of a container's key: host, engine, namespace, id


class Bucket:
    """Keeps a bucket up to date; used by one at a time."""

    def __init__(self, settings: NatsSettings, name: str) -> None:
        self._settings = settings
        self._name = name
        self._stream = f"KV_{name}"
        self._states: dict[Row, State] = {}
        self._expiring = False
        self._sparingly = Sparingly(SystemClock(), seconds=3600)

    async def check(self, link: Link) -> None:
        """Make sure that it is there.

        Raises:
            TransientError: It is not.
        """
        self._expiring = (await ensure_bucket(link, self._settings, self._name)).expiring

    async def write(self, link: Link, batch: Sequence[Record]) -> None:
        """Write what ``batch`` changes; return when that is stored.

        Raises:
            AnsweredError: The server said no.
            TransientError: The connection failed; it is to be given up.
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
        rows = [
            Row(source.host, source.engine, read_token(key[2]), read_token(key[3]))
            for key in keys
            if len(key) == _PARTS
        ]
        return State(rows=frozenset(rows))

    async def _store(self, link: Link, changes: Sequence[Change]) -> None:
        messages = [message for change in changes if (message := self._fitting(link, change))]
        answers = await Exchange(link, messages, _goes_on).run()
        for position, answer in answers.items():
            if answer.error and answer.error.err_code in TOO_LARGE:
                self._leave_out(messages[position])
            elif answer.error:
                said = one_line(answer.error.description)
                raise AnsweredError(f"bucket {self._name} at NATS {link.place.server} did not take a row: {said}")

    def _fitting(self, link: Link, change: Change) -> Message | None:
        """Return the message for a change; None where it would end the connection, because it is too large."""
        message = self._message(change)
        if len(message.data) + HEADERS_BYTES <= link.max_payload:
            return message
        self._leave_out(message)
        return None

    def _leave_out(self, message: Message) -> None:
        """The record itself is in the stream, so nothing is lost but its row."""
        told = {"bucket": self._name, "key": message.subject, "size": len(message.data)}
        self._sparingly.say(_log.warning, message.subject, "kv_entry_too_large", **told)

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
