"""Contract of the port ``Sink``, which every sink must fulfill; brokers are real."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from bridge.core.errors import RejectedRecordError, TransientError
from bridge.core.ports import Sink
from bridge.core.records import Record
from config.fields import MAX_ATTRIBUTE_LENGTH, MAX_ATTRIBUTES, Attributes
from tests.contract.sink_targets import ServerTarget, Target, make_target
from tests.integration.target_checks import publish_until_accepted
from tests.naming import raises_naming
from tests.sample_records import batches, record, records

BOUND = 15.0  # seconds; above the timeouts of the sinks, for a slow machine
SERVERS = [
    "http-binary",
    "http-batched",
    "http-otlp",
    *(pytest.param(kind, marks=pytest.mark.integration) for kind in ("kafka", "nats")),
]
KINDS = ["stdout", "file", "example", *SERVERS]


@pytest.fixture
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Target]:
    with contextlib.ExitStack() as stack:
        yield make_target(request.param, request, tmp_path, stack)


def every(*kinds: object) -> pytest.MarkDecorator:
    """Run a test with these kinds of sinks."""
    return pytest.mark.parametrize("target", kinds, indirect=True)


@contextlib.asynccontextmanager
async def started(sink: Sink) -> AsyncIterator[Sink]:
    try:
        await sink.start()
        yield sink
    finally:
        await sink.close()


def documents(published: Sequence[Record]) -> list[bytes]:
    return [each.data for each in published]


def first_occurrences(stored: Sequence[bytes]) -> list[bytes]:
    return list(dict.fromkeys(stored))


@every(*KINDS)
async def test_acknowledged_records_are_stored_in_order(target: Target) -> None:
    published = records(2500, size=800)
    async with started(target.make()) as sink:
        for start, end in pairwise((0, 1, 1001, 2500)):
            await sink.publish(published[start:end])
            await sink.publish([])
            assert await target.stored() == documents(published[:end])


@every(*KINDS)
async def test_records_with_largest_attributes_are_stored(target: Target) -> None:
    """In the headers of NATS, each character takes twelve bytes; its limit is 64 KiB for all headers."""
    values = {f"attribute{number:011}": "\U0001f433" * MAX_ATTRIBUTE_LENGTH for number in range(MAX_ATTRIBUTES)}
    assert TypeAdapter(Attributes).validate_python(values) == values
    published = records(300, attributes=values)
    async with started(target.make()) as sink:
        await sink.publish(published)
    assert await target.stored() == documents(published)


@every(*KINDS)
async def test_same_batch_may_be_published_again(target: Target) -> None:
    """A new sink does not know what the first one has published, as after a restart."""
    published = records(300)
    async with started(target.make()) as sink:
        for _ in range(2):
            await sink.publish(published[:200])
    async with started(target.make()) as sink:
        for batch in batches(published, 150):
            await sink.publish(batch)
    assert first_occurrences(await target.stored()) == documents(published)


@every("example", *SERVERS)
async def test_fault_29_records_are_rejected(target: Target) -> None:
    large = [record(11, size=2_000_000), record(21, size=2_000_000)]
    published = [*records(10), large[0], *records(9, 12), large[1], *records(10, 22)]
    async with started(target.make()) as sink:
        with pytest.raises(RejectedRecordError) as caught:
            await sink.publish(published)
        assert caught.value.positions == {(each.epoch, each.sequence) for each in large}
        accepted = [each for each in published if each not in large]
        await sink.publish(accepted)
    assert first_occurrences(await target.stored()) == documents(accepted)


@every("file", *SERVERS)
async def test_start_raises_transient_error_until_peer_is_reachable(target: Target) -> None:
    with target.unreachable() as (sink, make_reachable):
        for attempt in (sink.start, lambda: sink.publish(records(1))):
            began = time.monotonic()
            with pytest.raises(TransientError):
                await attempt()
            assert time.monotonic() - began < BOUND
        make_reachable()
        async with started(sink):
            await sink.publish(records(5))
    assert await target.stored() == documents(records(5))


@every(*KINDS)
async def test_start_classifies_error_when_target_is_unusable(target: Target) -> None:
    sink = await target.make_unusable()
    with pytest.raises(target.unusable_error):
        await sink.start()
    await sink.close()


@every(*SERVERS)
async def test_fault_27_peer_hangs_while_publishing(target: ServerTarget) -> None:
    published = records(3000, size=5000)  # more than the kernel buffers for a server that does not read
    async with target.hanging() as (sink, resume):
        for _ in range(2):  # the second time, the sink has to connect
            began = time.monotonic()
            with raises_naming(TransientError, target.address):
                await sink.publish(published[:1000])
            assert time.monotonic() - began < BOUND
        resume()
        for batch in batches(published, 1000):
            await publish_until_accepted(sink, batch)
    assert first_occurrences(await target.stored()) == documents(published)


@every("stdout", *SERVERS)
@pytest.mark.parametrize("busy", [False, True])
async def test_fault_27_peer_hangs_while_closing(target: Target, busy: bool) -> None:
    before = asyncio.all_tasks()
    async with target.hanging() as (sink, resume):
        publishing = asyncio.ensure_future(sink.publish(records(100, size=500_000))) if busy else None
        await asyncio.sleep(0.5 if busy else 0)
        began = time.monotonic()
        if publishing:
            publishing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await publishing
        await sink.close()
        await sink.close()
        assert time.monotonic() - began < BOUND
        resume()
    if left := asyncio.all_tasks() - before:
        await asyncio.wait(left, timeout=BOUND)
    assert asyncio.all_tasks() <= before
