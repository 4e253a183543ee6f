from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from bridge.consumer.reading import BACKOFF, Message, Reader, read, read_records
from bridge.core.errors import BridgeError, NotFoundError, TransientError
from tests.clocks import ManualClock
from tests.golden import Golden
from tests.sample_records import record

ONE, TWO = Message(b"1", "here", 1), Message(b"2", "here", 2)
UNREACHABLE = TransientError("it is away")


class Script:
    """A reader that goes on with the next part each time: messages, and an error at the end of each but the last."""

    def __init__(self, *parts: Sequence[Message] | BridgeError, follow: bool = True) -> None:
        self.follow = follow
        self._parts = list(parts)

    async def batches(self) -> AsyncGenerator[Sequence[Message], None]:
        while self._parts:
            part = self._parts.pop(0)
            if isinstance(part, BridgeError):
                raise part
            yield part


async def read_all(reader: Reader, clock: ManualClock, notices: list[str]) -> list[Message]:
    async def found() -> list[Message]:
        return [message async for batch in read(reader, clock, notices.append) for message in batch]

    task = asyncio.ensure_future(found())
    while not task.done():
        await asyncio.sleep(0)
        clock.advance(60)
    return task.result()


async def test_reader_retries_and_reports_interruption_once(golden: Golden) -> None:
    clock, told = ManualClock(), list[str]()
    script = Script([ONE], UNREACHABLE, UNREACHABLE, UNREACHABLE, [TWO], UNREACHABLE, [ONE])
    assert await read_all(script, clock, told) == [ONE, TWO, ONE]
    assert told[:2] == told[2:]
    assert told[0].startswith("it is away; ")
    golden.entry("tail_errors", "connection lost and back", "\n".join(told[:2]))
    assert clock.slept == [BACKOFF.delay(failures, 0.5) for failures in (1, 2, 3, 1)]


@pytest.mark.parametrize(
    "reader",
    [
        Script(UNREACHABLE, [ONE]),
        Script([ONE], UNREACHABLE, follow=False),
        Script([ONE], UNREACHABLE, NotFoundError("it is away")),
    ],
    ids=["never reached", "not followed", "gone for good"],
)
async def test_reader_raises_when_retrying_cannot_help(reader: Script) -> None:
    with pytest.raises(BridgeError, match="it is away"):
        await read_all(reader, ManualClock(), [])


async def test_invalid_messages_are_skipped_and_reported_rate_limited(golden: Golden) -> None:
    good, bad = Message(record(1).data, "here", 1), Message(b"no", "partition 3", 17)
    clock, told = ManualClock(), list[str]()
    batches = read_records(Script([bad, good], [bad] * 3, [bad], [good]), clock, told.append)
    assert [each.data for each in await anext(batches)] == [good.data]
    (first,) = told
    golden.entry("tail_errors", "a message that is no record", first)
    assert await anext(batches) == []
    clock.advance(61)
    assert await anext(batches) == []
    (_, later) = told
    golden.entry("tail_errors", "several messages that are no records", later)
    for text, count in ((first, "1 "), (later, "5 ")):
        assert text.startswith(count)
        assert "17 of partition 3" in text
    assert len(await anext(batches)) == 1
    with pytest.raises(StopAsyncIteration):
        await anext(batches)
    assert told[2:] == []


async def test_invalid_messages_are_reported_at_end(golden: Golden) -> None:
    bad = Message(b"no", "here", 1)
    told = list[str]()
    assert [each async for each in read_records(Script([bad] * 3), ManualClock(), told.append)] == [[]]
    (_, total) = told
    assert total.startswith("3 ")
    golden.entry("tail_errors", "messages that are no records, at the end", total)
