from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from bridge.cli.commands.tail import RecordFilter
from bridge.consumer.record_decoder import DecodedRecord, decode
from tests.sample_records import control_record, loss_record, record

WEB = decode(record(2, "exited", namespace="shop", id_="c1", name="web-1", project="web-shop").data)[0]
CONTROL_RECORD = decode(control_record(1, "snapshot_started").data)[0]
LOST = decode(loss_record(record(5), 3).data)[0]
HEARTBEAT = decode(control_record(1, "heartbeat").data)[0]


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"namespaces": ["x", "sh*"]},
        {"excluded_namespaces": ["default"]},
        {"projects": ["web-*"]},
        {"containers": ["web-?"]},
        {"containers": ["c1"]},
        {"containers": ["shop/c1"]},
        {"hosts": ["node-[12]"]},
        {"types": ["started", "exited"]},
        {"since": datetime(2026, 11, 23, 15, 21, 8, tzinfo=UTC)},
        {"since": datetime.fromisoformat("2026-11-23T16:21:08+01:00")},
        {"since": datetime(301, 1, 1, tzinfo=UTC)},
    ],
)
def test_record_filter_accepts_matching_record(filters: dict[str, Any]) -> None:
    assert RecordFilter(**filters)(WEB)


@pytest.mark.parametrize(
    "filters",
    [
        {"namespaces": ["shop-*"]},
        {"excluded_namespaces": ["sh*"]},
        {"projects": [""]},
        {"containers": ["web"]},
        {"hosts": ["node"]},
        {"types": ["started"]},
        {"namespaces": ["shop"], "projects": ["other"]},
        {"since": datetime(2026, 11, 23, 15, 21, 9, tzinfo=UTC)},
    ],
)
def test_record_filter_rejects_other_record(filters: dict[str, Any]) -> None:
    assert not RecordFilter(**filters)(WEB)


@pytest.mark.parametrize(
    ("filters", "accepted"),
    [
        ({}, [CONTROL_RECORD, LOST]),
        ({"namespaces": ["shop"]}, [LOST]),
        ({"excluded_namespaces": ["shop"]}, [CONTROL_RECORD, LOST]),
        ({"projects": ["*"]}, [LOST]),
        ({"containers": ["*"]}, [LOST]),
        ({"types": ["snapshot_*"]}, [CONTROL_RECORD]),
        ({"types": ["*"]}, [CONTROL_RECORD, LOST, HEARTBEAT]),
        ({"hosts": ["other"]}, []),
    ],
)
def test_record_filter_keeps_losses_and_hides_heartbeats(
    filters: dict[str, Any], accepted: list[DecodedRecord]
) -> None:
    assert [item for item in (CONTROL_RECORD, LOST, HEARTBEAT) if RecordFilter(**filters)(item)] == accepted
