from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from bridge.cli.chosen import Chosen
from bridge.fleet.documents import Document, decode
from tests.sample_records import frame, lost, record

WEB = decode(record(2, "exited", namespace="shop", id_="c1", name="web-1", project="web-shop").data)[0]
FRAME = decode(frame(1, "snapshot_started").data)[0]
LOST = decode(lost(record(5), 3).data)[0]
HEARTBEAT = decode(frame(1, "heartbeat").data)[0]


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"namespaces": ["x", "sh*"]},
        {"excluded": ["default"]},
        {"projects": ["web-*"]},
        {"containers": ["web-?"]},
        {"containers": ["c1"]},
        {"containers": ["shop/c1"]},
        {"hosts": ["node-[12]"]},
        {"types": ["started", "exited"]},
        {"since": datetime(2026, 11, 23, 15, 21, 8, tzinfo=UTC)},
        {"since": datetime.fromisoformat("2026-11-23T16:21:08+01:00")},
    ],
)
def test_what_fits_is_shown(filters: dict[str, Any]) -> None:
    assert Chosen(**filters)(WEB)


@pytest.mark.parametrize(
    "filters",
    [
        {"namespaces": ["shop-*"]},
        {"excluded": ["sh*"]},
        {"projects": [""]},
        {"containers": ["web"]},
        {"hosts": ["node"]},
        {"types": ["started"]},
        {"namespaces": ["shop"], "projects": ["other"]},
        {"since": datetime(2026, 11, 23, 15, 21, 9, tzinfo=UTC)},
    ],
)
def test_what_does_not_fit_is_not(filters: dict[str, Any]) -> None:
    assert not Chosen(**filters)(WEB)


@pytest.mark.parametrize(
    ("filters", "shown"),
    [
        ({}, [FRAME, LOST]),
        ({"namespaces": ["shop"]}, [LOST]),
        ({"excluded": ["shop"]}, [FRAME, LOST]),
        ({"projects": ["*"]}, [LOST]),
        ({"containers": ["*"]}, [LOST]),
        ({"types": ["snapshot_*"]}, [FRAME]),
        ({"types": ["*"]}, [FRAME, LOST, HEARTBEAT]),
        ({"hosts": ["other"]}, []),
    ],
)
def test_a_loss_is_not_filtered_with_containers_and_heartbeats_are_asked_for(
    filters: dict[str, Any], shown: list[Document]
) -> None:
    assert [each for each in (FRAME, LOST, HEARTBEAT) if Chosen(**filters)(each)] == shown
