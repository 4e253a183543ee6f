"""Events, many in a message, come out as they went in."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from bridge.containerd import packing


@given(st.lists(st.binary(max_size=200), max_size=50))
def test_batched_envelopes_round_trip(envelopes: list[bytes]) -> None:
    assert [each for message in packing.batch(envelopes) for each in packing.unbatch(message)] == envelopes


def test_batched_messages_are_bounded_and_filled() -> None:
    envelopes = [bytes(packing.MAX_MESSAGE_BYTES // 4)] * 9
    assert [len(packing.unbatch(message)) for message in packing.batch(envelopes)] == [4, 4, 1]


def test_oversized_envelope_is_sent_alone() -> None:
    envelopes = [b"a", bytes(2 * packing.MAX_MESSAGE_BYTES), b"b"]
    assert [len(packing.unbatch(message)) for message in packing.batch(envelopes)] == [1, 1, 1]


def test_empty_batch_has_no_message() -> None:
    assert list(packing.batch([])) == []


def test_invalid_batched_message_is_rejected() -> None:
    with pytest.raises(DecodeError):
        packing.unbatch(b"\x0a\x7f")


def test_batching_is_detected_from_metadata() -> None:
    assert packing.supports_batches([("x", "y"), packing.HEADER])
    assert not packing.supports_batches([("whalebridge-envelopes", "other")])
    assert not packing.supports_batches(None)
