"""Test the content of the status page and the escaping of foreign text."""

from __future__ import annotations

from html.parser import HTMLParser

import msgspec

from bridge.core.containerd_model import Engine, PodReference
from bridge.core.ports import Lag
from bridge.core.record_encoder import SnapshotCoverage
from bridge.telemetry.http import status_page
from tests.golden import Golden
from tests.unit.telemetry.http.fake_bridge import bridge_status, running_container, sink_status, snapshot_summary

HOSTILE = "\"'><img src=x onerror=alert(1)>&amp;\u202e\x1b[31m\u0000</style></td>"


class PageParser(HTMLParser):
    """Collect the text, elements and attributes of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: set[str] = set()
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


def test_status_page_shows_bridge_sinks_and_containers() -> None:
    status = bridge_status(sinks=[sink_status(lag=Lag(12, 34567, 90.0, 3), rejected=1)], exclude=("test-*",))
    status.counters.count_snapshot(snapshot_summary(reason="reconnect", since=0, inferred=4))
    text = PageParser(
        status_page.render(
            status, [running_container(name="web-1", project="shop", paused=True), running_container("c2")], 0
        )
    ).text
    for expected in ("node-1", "containerd 2.4", "test-*", "main", "12", "33.8 KiB", "2 min", "reconnect", "web-1"):
        assert expected in text
    for expected in ("shop", "no project", "paused", "1970-01-01 00:00:02Z", "ready"):
        assert expected in text


def test_status_page_shows_errors_first(golden: Golden) -> None:
    status = bridge_status(
        synced=False, containerd_error="no such socket", sinks=[sink_status(state="failing", last_error="away")]
    )
    text = PageParser(status_page.render(status, [], 0)).text
    assert text.index("ready") < text.index("no such socket") < text.index("main") < text.index("containerd 2.4")
    assert "away" in text
    degraded = PageParser(status_page.render(bridge_status(sinks=[sink_status(state="failing")]), [], 0)).text
    assert "ready" in degraded
    assert "main" in degraded
    golden("status_page", f"{plain(text)}\n\n{plain(degraded)}")


def plain(text: str) -> str:
    """Return the text lines of the body, without the style sheet."""
    lines = [line.strip() for line in text.splitlines()]
    return "\n".join(line for line in lines if line and not line.endswith(("}", "{", ";")))


def test_status_page_escapes_foreign_text() -> None:
    status = bridge_status(
        host=HOSTILE,
        engine=Engine(HOSTILE, HOSTILE, HOSTILE, 1),
        include=(HOSTILE,),
        exclude=(HOSTILE,),
        containerd_error=HOSTILE,
        synced=False,
        outbox_error=HOSTILE,
        sinks=[sink_status(HOSTILE, state="failing", last_error=HOSTILE)],
    )
    status.counters.count_snapshot(
        msgspec.structs.replace(snapshot_summary(), coverage=SnapshotCoverage([], [HOSTILE], True))
    )
    container = running_container(HOSTILE, name=HOSTILE, project=HOSTILE)
    assert container.metadata is not None
    foreign = msgspec.structs.replace(container.metadata, image=HOSTILE, service=HOSTILE)
    in_pod = msgspec.structs.replace(foreign, pod=PodReference(HOSTILE, HOSTILE, "", ""))
    containers = [msgspec.structs.replace(container, metadata=metadata) for metadata in (foreign, in_pod)]
    harmless = PageParser(
        status_page.render(bridge_status(synced=False), [running_container(project="p", paused=True)], 0)
    )
    hostile = PageParser(status_page.render(status, containers, 0))
    assert hostile.elements == harmless.elements
    assert hostile.attributes == harmless.attributes
    # Two of the host, three of the engine, two globs, two errors, four of the sink,
    # one project, nine of the containers, one of the snapshot.
    assert hostile.text.count(HOSTILE.encode("unicode_escape").decode()) == 24
    assert not {"\u202e", "\x1b", "\x00"} & set("".join(hostile.words))


def test_html_escapes_all_text() -> None:
    cell = status_page._Html("<td>")
    for combined in (cell + "<b>", cell.join(["", "<b>"]), status_page._Html("{}{}").format(cell, "<b>")):
        assert str(combined) == "<td>&lt;b&gt;"
    assert str("<b>" + cell) == "&lt;b&gt;<td>"


def test_status_page_limits_number_of_containers() -> None:
    text = status_page.render(
        bridge_status(), [running_container(f"c{number}") for number in range(status_page.MAX_CONTAINERS + 5)], 0
    )
    assert text.count("<code>shop/c") == status_page.MAX_CONTAINERS
    assert "5 more" in text


def test_status_page_shortens_long_names() -> None:
    assert len(status_page.render(bridge_status(), [running_container(name="x" * 100_000)], 0)) < 20_000
