from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bridge.cli.line import line
from bridge.fleet.documents import Document, decode
from tests.golden import Golden
from tests.sample_records import frame, lost, record

HOSTILE = "web\x1b]0;title\x07\n\x9b2J\u202e"
AT = "2026-11-23T15:21:08.256Z  node-1"


def made(data: bytes, **changes: Any) -> Document:
    plain = msgspec.json.decode(data)
    for name, change in changes.items():
        plain[name] = (plain[name] or {}) | change if isinstance(change, dict) else change
    return decode(msgspec.json.encode(plain))[0]


EXITED = record(2, "exited", id_="ab" * 32, name="ab" * 32)
POD = {"name": "web-5f", "namespace": "prod", "uid": "u", "container": "app", "labels": {}}


@pytest.mark.parametrize(
    ("document", "told"),
    [
        (made(record(1).data), "started shop/web-1 web-shop"),
        (
            made(EXITED.data, exit={"status": 137, "at": None, "oom": True}),
            "exited shop/abababababab 137 memory web-shop",
        ),
        (
            made(EXITED.data, exit={"status": None, "at": None, "oom": None}, origin="inferred"),
            "exited shop/abababababab unknown web-shop inferred",
        ),
        (
            made(record(1, "present", project="", paused=True).data, container={"pod": POD}),
            "present shop/web-1 paused prod/web-5f app",
        ),
        (made(frame(1, "snapshot_started").data), "snapshot start"),
        (
            made(frame(1, "snapshot_started").data, snapshot={"reason": "reconnect", "since": "2026-11-23T15:21:00Z"}),
            "snapshot reconnect, 2026-11-23T15:21:00.000Z",
        ),
        (
            made(frame(2, "snapshot_completed", failed=["shop"]).data, snapshot={"partial": True, "containers": 12}),
            "snapshot 12 shop, partial",
        ),
        (made(lost(record(9), 5).data, timestamp="?"), "lost 5 overflow"),
        (made(frame(1, "heartbeat").data, snapshot=None), "heartbeat"),
        (made(record(1).data, type="sparkled", container=None), "sparkled shop/web-1"),
    ],
)
def test_records_in_short(document: Document, told: str, golden: Golden) -> None:
    text = line(document, coloured=False)
    assert [word for word in told.split() if word not in text.split()] == []
    assert text.startswith((AT, "?.000Z  node-1"))
    golden.entry("tail_lines", told, text)


def test_nothing_that_a_terminal_would_obey_gets_through() -> None:
    hostile = made(
        record(1, name=HOSTILE, project=HOSTILE).data,
        type=HOSTILE,
        host=HOSTILE,
        timestamp=HOSTILE,
        container={"namespace": HOSTILE, "pod": dict.fromkeys(POD, HOSTILE) | {"labels": {}}},
    )
    assert line(hostile, coloured=True).isprintable()
    assert line(hostile, coloured=False).isprintable()


def test_colours_are_for_terminals() -> None:
    document = made(record(1).data)
    assert "\x1b" not in line(document, coloured=False)
    assert "\x1b[32mstarted" in line(document, coloured=True)


def test_the_host_can_be_left_out() -> None:
    assert line(made(record(1).data), coloured=False, host=False).startswith("2026-11-23T15:21:08.256Z  started")
