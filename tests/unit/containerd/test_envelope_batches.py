"""Test that batching and unbatching preserve envelopes and limit message sizes."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from bridge.containerd import envelope_batches


@given(st.lists(st.binary(max_size=200), max_size=50))
def test_batched_envelopes_round_trip(envelopes: list[bytes]) -> None:
    assert [
        envelope for message in envelope_batches.batch(envelopes) for envelope in envelope_batches.unbatch(message)
    ] == envelopes


def test_batched_messages_are_bounded_and_filled() -> None:
    envelopes = [bytes(envelope_batches.MAX_MESSAGE_BYTES // 4)] * 9
    assert [len(envelope_batches.unbatch(message)) for message in envelope_batches.batch(envelopes)] == [4, 4, 1]


def test_oversized_envelope_is_sent_alone() -> None:
    envelopes = [b"a", bytes(2 * envelope_batches.MAX_MESSAGE_BYTES), b"b"]
    assert [len(envelope_batches.unbatch(message)) for message in envelope_batches.batch(envelopes)] == [1, 1, 1]


def test_empty_batch_has_no_message() -> None:
    assert list(envelope_batches.batch([])) == []


def test_invalid_batched_message_is_rejected() -> None:
    with pytest.raises(DecodeError):
        envelope_batches.unbatch(b"\x0a\x7f")


def test_batching_is_detected_from_metadata() -> None:
    assert envelope_batches.supports_batches([("x", "y"), envelope_batches.HEADER])
    assert not envelope_batches.supports_batches([("whalebridge-envelopes", "other")])
    assert not envelope_batches.supports_batches(None)
