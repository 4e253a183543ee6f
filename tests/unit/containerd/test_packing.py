"""Events, many in a message, come out as they went in."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from bridge.containerd import packing


@given(st.lists(st.binary(max_size=200), max_size=50))
def test_what_was_packed_is_unpacked(envelopes: list[bytes]) -> None:
    assert [each for message in packing.pack(envelopes) for each in packing.unpack(message)] == envelopes


def test_messages_are_bounded_and_full() -> None:
    envelopes = [bytes(packing.MESSAGE_BYTES // 4)] * 9
    assert [len(packing.unpack(message)) for message in packing.pack(envelopes)] == [4, 4, 1]


def test_one_that_is_too_large_travels_alone() -> None:
    envelopes = [b"a", bytes(2 * packing.MESSAGE_BYTES), b"b"]
    assert [len(packing.unpack(message)) for message in packing.pack(envelopes)] == [1, 1, 1]


def test_nothing_is_no_message() -> None:
    assert list(packing.pack([])) == []


def test_what_is_none_of_ours() -> None:
    with pytest.raises(DecodeError):
        packing.unpack(b"\x0a\x7f")


def test_who_packs_says_so() -> None:
    assert packing.is_packed([("x", "y"), packing.HEADER])
    assert not packing.is_packed([("whalebridge-envelopes", "other")])
    assert not packing.is_packed(None)
