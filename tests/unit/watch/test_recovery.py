"""Test the recovery from checkpoints that cannot be decoded."""

from __future__ import annotations

import msgspec
import pytest
from structlog.testing import capture_logs

from bridge.core.ports import StoredCheckpoint
from bridge.watch.recovery import recover

NESTED = b"\x81\xa1x" + b"\x91" * 100_000  # an unknown field, nested so deep that msgspec raises RecursionError


@pytest.mark.parametrize("value", [b"", b"\xc1", msgspec.msgpack.encode(1), b"\x81\xa1\xff\x01", NESTED])
def test_undecodable_checkpoint_counts_as_lost(value: bytes) -> None:
    with capture_logs() as logs:
        recovered = recover(StoredCheckpoint({"header": value}))
    assert [entry["event"] for entry in logs] == ["checkpoint_unreadable"]
    assert (recovered.reason, recovered.header, recovered.obsolete_keys) == ("outbox_reset", None, ["header"])
