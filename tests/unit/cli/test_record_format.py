from __future__ import annotations

from typing import Any

import msgspec
import pytest

from bridge.cli.record_format import format_record
from bridge.consumer.record_decoder import DecodedRecord, decode
from tests.golden import Golden
from tests.sample_records import control_record, loss_record, record, retirement

HOSTILE = "web\x1b]0;title\x07\n\x9b2J\u202e"
AT = "2026-11-23T15:21:08.256Z  node-1"


def decoded(data: bytes, **changes: Any) -> DecodedRecord:
    plain = msgspec.json.decode(data)
    for name, change in changes.items():
        plain[name] = (plain[name] or {}) | change if isinstance(change, dict) else change
    return decode(msgspec.json.encode(plain))[0]


EXITED = record(2, "exited", id_="ab" * 32, name="ab" * 32)
POD = {"name": "web-5f", "namespace": "prod", "uid": "u", "container": "app", "labels": {}}


@pytest.mark.parametrize(
    ("document", "words"),
    [
        (decoded(record(1).data), "started shop/web-1 web-shop"),
        (
            decoded(EXITED.data, exit={"status": 137, "at": None, "oom": True}),
            "exited shop/abababababab 137 memory web-shop",
        ),
        (
            decoded(EXITED.data, exit={"status": None, "at": None, "oom": None}, origin="inferred"),
            "exited shop/abababababab unknown web-shop inferred",
        ),
        (
            decoded(record(1, "present", project="", paused=True).data, container={"pod": POD}),
            "present shop/web-1 paused prod/web-5f app",
        ),
        (decoded(control_record(1, "snapshot_started").data), "snapshot start"),
        (
            decoded(
                control_record(1, "snapshot_started").data,
                snapshot={"reason": "reconnect", "since": "2026-11-23T15:21:00Z"},
            ),
            "snapshot reconnect, 2026-11-23T15:21:00.000Z",
        ),
        (
            decoded(
                control_record(2, "snapshot_completed", failed=["shop"]).data,
                snapshot={"partial": True, "containers": 12},
            ),
            "snapshot 12 shop, partial",
        ),
        (decoded(loss_record(record(9), 5).data, timestamp="?"), "lost 5 overflow"),
        (decoded(control_record(1, "heartbeat").data, snapshot=None), "heartbeat"),
        (decoded(retirement(record(9)).data, timestamp="?"), "source_retired node deleted (by ops@bastion)"),
        (decoded(record(1).data, type="sparkled", container=None), "sparkled shop/web-1"),
    ],
)
def test_record_is_formatted_as_short_line(document: DecodedRecord, words: str, golden: Golden) -> None:
    text = format_record(document, colored=False)
    assert [word for word in words.split() if word not in text.split()] == []
    assert text.startswith((AT, "?.000Z  node-1"))
    golden.entry("tail_lines", words, text)


def test_formatted_record_escapes_control_characters() -> None:
    hostile = decoded(
        record(1, name=HOSTILE, project=HOSTILE).data,
        type=HOSTILE,
        host=HOSTILE,
        timestamp=HOSTILE,
        container={"namespace": HOSTILE, "pod": dict.fromkeys(POD, HOSTILE) | {"labels": {}}},
    )
    assert format_record(hostile, colored=True).isprintable()
    assert format_record(hostile, colored=False).isprintable()


def test_formatted_record_is_colored_on_request() -> None:
    document = decoded(record(1).data)
    assert "\x1b" not in format_record(document, colored=False)
    assert "\x1b[32mstarted" in format_record(document, colored=True)


def test_formatted_record_can_omit_host() -> None:
    assert format_record(decoded(record(1).data), colored=False, with_host=False).startswith(
        "2026-11-23T15:21:08.256Z  started"
    )
