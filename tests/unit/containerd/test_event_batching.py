"""Test that batching and unbatching preserve envelopes and limit message sizes."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from bridge.containerd import batching


@given(st.lists(st.binary(max_size=200), max_size=50))
def test_batched_envelopes_round_trip(envelopes: list[bytes]) -> None:
    assert [envelope for message in batching.batch(envelopes) for envelope in batching.unbatch(message)] == envelopes


def test_batched_messages_are_bounded_and_filled() -> None:
    envelopes = [bytes(batching.MAX_MESSAGE_BYTES // 4)] * 9
    assert [len(batching.unbatch(message)) for message in batching.batch(envelopes)] == [4, 4, 1]


def test_oversized_envelope_is_sent_alone() -> None:
    envelopes = [b"a", bytes(2 * batching.MAX_MESSAGE_BYTES), b"b"]
    assert [len(batching.unbatch(message)) for message in batching.batch(envelopes)] == [1, 1, 1]


def test_empty_batch_has_no_message() -> None:
    assert list(batching.batch([])) == []


def test_invalid_batched_message_is_rejected() -> None:
    with pytest.raises(DecodeError):
        batching.unbatch(b"\x0a\x7f")


def test_batching_is_detected_from_metadata() -> None:
    assert batching.supports_batches([("x", "y"), batching.HEADER])
    assert not batching.supports_batches([("whalebridge-envelopes", "other")])
    assert not batching.supports_batches(None)
