from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence

import pytest

from bridge.core.errors import BridgeError, NotFoundError, TransientError
from bridge.fleet.messages import BACKOFF, Message, Reader, read
from bridge.fleet.records import records
from tests.clocks import ManualClock
from tests.golden import Golden
from tests.sample_records import record

ONE, TWO = Message(b"1", "here", 1), Message(b"2", "here", 2)
AWAY = TransientError("it is away")


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


async def everything(reader: Reader, clock: ManualClock, told: list[str]) -> list[Message]:
    async def found() -> list[Message]:
        return [message async for batch in read(reader, clock, told.append) for message in batch]

    task = asyncio.ensure_future(found())
    while not task.done():
        await asyncio.sleep(0)
        clock.pass_time(60)
    return task.result()


async def test_a_follower_goes_on_after_trouble_and_tells_of_it_once(golden: Golden) -> None:
    clock, told = ManualClock(), list[str]()
    script = Script([ONE], AWAY, AWAY, AWAY, [TWO], AWAY, [ONE])
    assert await everything(script, clock, told) == [ONE, TWO, ONE]
    assert told[:2] == told[2:]
    assert told[0].startswith("it is away; ")
    golden.entry("tail_errors", "connection lost and back", "\n".join(told[:2]))
    assert clock.slept == [BACKOFF.delay(failures, 0.5) for failures in (1, 2, 3, 1)]


@pytest.mark.parametrize(
    "reader",
    [
        Script(AWAY, [ONE]),
        Script([ONE], AWAY, follow=False),
        Script([ONE], AWAY, NotFoundError("it is away")),
    ],
    ids=["never reached", "not followed", "gone for good"],
)
async def test_trouble_that_waiting_does_not_mend_is_raised(reader: Script) -> None:
    with pytest.raises(BridgeError, match="it is away"):
        await everything(reader, ManualClock(), [])


async def test_what_is_no_record_is_left_out_and_told_once_in_a_while(golden: Golden) -> None:
    good, bad = Message(record(1).data, "here", 1), Message(b"no", "partition 3", 17)
    clock, told = ManualClock(), list[str]()
    batches = records(Script([bad, good], [bad] * 3, [bad], [good]), clock, told.append)
    assert [each.data for each in await anext(batches)] == [good.data]
    (first,) = told
    golden.entry("tail_errors", "a message that is no record", first)
    assert await anext(batches) == []
    clock.pass_time(61)
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


async def test_what_is_no_record_is_told_of_at_the_end(golden: Golden) -> None:
    bad = Message(b"no", "here", 1)
    told = list[str]()
    assert [each async for each in records(Script([bad] * 3), ManualClock(), told.append)] == [[]]
    (_, total) = told
    assert total.startswith("3 ")
    golden.entry("tail_errors", "messages that are no records, at the end", total)
