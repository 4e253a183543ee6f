from __future__ import annotations

from typing import Any

import pytest

from config.settings import SettingsError, load
from config.sinks import HttpSinkSettings, parse_url
from tests.naming import raises_naming

MINIMUM: dict[str, Any] = {"type": "http", "url": "http://h:1/events"}


def http(**settings: Any) -> HttpSinkSettings:
    sink = load({"sinks": {"main": MINIMUM | settings}}).sinks["main"]
    assert isinstance(sink, HttpSinkSettings)
    return sink


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:1/events", "http://h:1/events"),
        ("HTTPS://h", "https://h"),
        ("https://[::1]:8443/a/b%20c?x=y&z=1", "https://[::1]:8443/a/b%20c?x=y&z=1"),
    ],
)
def test_http_url_is_kept_as_written(url: str, expected: str) -> None:
    assert parse_url(url) == {"type": "http", "url": expected}
    (sink,) = load({"sinks": [url]}).sinks.items()
    assert sink == ("http", HttpSinkSettings(type="http", url=expected))


def test_http_endpoint_for_messages_has_no_query() -> None:
    assert http(url="https://h/p?code=x").endpoint == "https://h/p"


@pytest.mark.parametrize(
    ("mode", "single"), [("none", False), ("batched", False), ("binary", True), ("structured", True)]
)
def test_http_mode_decides_records_per_request(mode: str, single: bool) -> None:
    assert http(cloudevents=mode).sends_single_records is single


@pytest.mark.parametrize(("settings", "expected"), [({}, 100), ({"max_batch_records": 7}, 7)])
def test_http_batch_limit_is_that_of_the_pump(settings: dict[str, Any], expected: int) -> None:
    assert http(**settings).batch_records == expected
    assert load().sinks["stdout"].batch_records is None


def test_http_accepts_headers_and_credentials() -> None:
    sink = http(
        url="https://h/",
        headers={"X-Scope-OrgID": "shop", "Accept": "*/*"},
        auth={"user": "bridge", "password_file": "/p"},
        tls={"ca_file": "/ca.pem"},
    )
    assert sink.headers == {"X-Scope-OrgID": "shop", "Accept": "*/*"}
    assert sink.auth.methods == ["user"]


@pytest.mark.parametrize("name", ["", "a b", "a:", "größe", "x" * 101])
def test_http_header_names_are_checked(name: str) -> None:
    with raises_naming(SettingsError, "sinks.main.headers.", "name of a header"):
        http(headers={name: "x"})
