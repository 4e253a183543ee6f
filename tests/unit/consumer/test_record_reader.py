from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

import pytest

from bridge.consumer.record_reader import BACKOFF, Message, Reader, read, read_records
from bridge.core.errors import BridgeError, NotFoundError, TransientError
from tests.golden import Golden
from tests.sample_records import record
from tests.virtual_time import VirtualClock

ONE, TWO = Message(b"1", "here", 1), Message(b"2", "here", 2)
UNREACHABLE = TransientError("connection lost")


class ScriptedReader:
    """A reader whose ``batches`` continues with the next part after each error."""

    def __init__(self, *parts: Sequence[Message] | BridgeError, follow: bool = True) -> None:
        self.follow = follow
        self.total: int | None = None
        self.position: dict[str, int] = {}
        self._parts = list(parts)

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        while self._parts:
            part = self._parts.pop(0)
            if isinstance(part, BridgeError):
                raise part
            yield part


async def read_all(reader: Reader, clock: VirtualClock, notices: list[str]) -> list[Message]:
    return [message async for batch in read(reader, clock, notices.append) for message in batch]


async def test_reader_retries_and_reports_interruption_once(golden: Golden) -> None:
    clock, notices = VirtualClock(), list[str]()
    reader = ScriptedReader([ONE], UNREACHABLE, UNREACHABLE, UNREACHABLE, [TWO], UNREACHABLE, [ONE])
    assert await read_all(reader, clock, notices) == [ONE, TWO, ONE]
    assert notices[:2] == notices[2:]
    assert notices[0].startswith("connection lost; ")
    golden.entry("tail_errors", "connection lost and restored", "\n".join(notices[:2]))
    assert clock.slept == [BACKOFF.delay(failures, 0.5) for failures in (1, 2, 3, 1)]


@pytest.mark.parametrize(
    "reader",
    [
        ScriptedReader(UNREACHABLE, [ONE]),
        ScriptedReader([ONE], UNREACHABLE, follow=False),
        ScriptedReader([ONE], UNREACHABLE, NotFoundError("connection lost")),
    ],
    ids=["never connected", "not following", "not found later"],
)
async def test_reader_raises_when_retrying_cannot_help(reader: ScriptedReader) -> None:
    with pytest.raises(BridgeError, match="connection lost"):
        await read_all(reader, VirtualClock(), [])


async def test_invalid_messages_are_skipped_and_reported_rate_limited(golden: Golden) -> None:
    valid, invalid = Message(record(1).data, "here", 1), Message(b"no", "partition 3", 17)
    clock, notices = VirtualClock(), list[str]()
    batches = read_records(ScriptedReader([invalid, valid], [invalid] * 3, [invalid], [valid]), clock, notices.append)
    assert [message.data for message in await anext(batches)] == [valid.data]
    (first,) = notices
    golden.entry("tail_errors", "invalid message", first)
    assert await anext(batches) == []
    clock.advance(61)
    assert await anext(batches) == []
    (_, later) = notices
    golden.entry("tail_errors", "several invalid messages", later)
    for text, count in ((first, "1 "), (later, "5 ")):
        assert text.startswith(count)
        assert "17 of partition 3" in text
    assert len(await anext(batches)) == 1
    with pytest.raises(StopAsyncIteration):
        await anext(batches)
    assert notices[2:] == []


async def test_invalid_messages_are_reported_at_end(golden: Golden) -> None:
    invalid = Message(b"no", "here", 1)
    notices = list[str]()
    assert [batch async for batch in read_records(ScriptedReader([invalid] * 3), VirtualClock(), notices.append)] == [
        []
    ]
    (_, total) = notices
    assert total.startswith("3 ")
    golden.entry("tail_errors", "invalid messages at the end", total)
