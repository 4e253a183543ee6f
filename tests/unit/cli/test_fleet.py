from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from rich.console import Console

from bridge.cli import execute
from bridge.cli.fleet_view import FleetFilter, FleetScreen
from bridge.consumer.conformance import SampleBridge as Bridge
from bridge.consumer.record_decoder import decode
from bridge.core.record_encoder import parse_record
from bridge.core.records import Record
from sinks.state_table import TableState, apply_records
from tests.conformance.vectors import edited, flat
from tests.golden import Golden

EVERYTHING = FleetFilter([], [], [], [], [], [])
POD = {"name": "web-0", "namespace": "shop", "uid": "u", "container": "nginx", "labels": None}

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def fleet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Return a function that runs the command for the lines of a topic."""

    def run(lines: Sequence[bytes], *options: str) -> tuple[int, str, str]:
        (path := tmp_path / "topic.jsonl").write_bytes(b"".join(line + b"\n" for line in lines))
        status = execute(["fleet", f"file:{path}", *options])
        return status, *capsys.readouterr()

    return run


def in_pod(record: Record) -> bytes:
    return edited(record, container=msgspec.json.decode(record.data)["container"] | {"project": "", "pod": POD})


def topic() -> list[bytes]:
    """Return a topic of three nodes: one is stale, one has lost records, one is retired."""
    nodes = [Bridge(host=f"node-{number}") for number in (1, 2, 3)]
    first, second = nodes[0].snapshot(("b", 102), ("a", 101)), nodes[1].snapshot(("shop/c", 103), failed=["dev"])
    return [
        *flat(first, nodes[0].pause("a", 101)),
        in_pod(nodes[0].start("k8s.io/d", 104)),
        *flat(second, nodes[1].heartbeat(), nodes[2].snapshot(("e", 105))),
        edited(nodes[2].retire(), timestamp="2026-11-25T19:50:00Z"),
        *flat(nodes[0].exit("b", 102), nodes[0].lost(nodes[0].start("f", 106))),
    ]


@pytest.mark.real_time
def test_fleet_prints_table_and_what_is_unknown(fleet: Run, golden: Golden) -> None:
    status, out, error = fleet(topic(), "--once")
    assert status == 0
    golden.entry("fleet_views", "now", f"{out}{error}")
    assert [line.split()[:5] for line in out.splitlines()[1:]] == [
        ["demo", "a", "paused", "node-1", "a"],
        ["demo", "c", "unknown", "node-2", "shop/c"],
        ["shop/web-0", "nginx", "running", "node-1", "k8s.io/d"],
    ]


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("options", "ids"),
    [
        ((), ["a", "shop/c", "k8s.io/d"]),
        (("--host", "node-1,node-3"), ["a", "k8s.io/d"]),
        (("--namespace", "shop"), ["shop/c"]),
        (("--project", "de*"), ["a", "shop/c"]),
        (("--pod", "shop/*"), ["k8s.io/d"]),
        (("--image", "alpine"), []),
        (("--status", "unknown", "--status", "running"), ["shop/c", "k8s.io/d"]),
    ],
)
def test_fleet_filters_containers(options: tuple[str, ...], ids: list[str], fleet: Run) -> None:
    status, out, error = fleet(topic(), "--json", *options)
    document = json.loads(out)
    assert (status, error, [each["id"] for each in document["containers"]]) == (0, "", ids)
    hosts = {"node-1", "node-3"} if "--host" in options else {"node-1", "node-2", "node-3"}
    assert {each["host"] for each in document["sources"]} == hosts


def by_host(documents: list[dict[str, Any]], field: str) -> dict[str, Any]:
    return {each["host"]: each[field] for each in documents}


@pytest.mark.real_time
def test_fleet_shows_past_moment(fleet: Run, golden: Golden) -> None:
    assert fleet(topic(), "--at", "2026-11-25T19:46:43.5Z")[0] == 0
    status, out, _ = fleet(topic(), "--at", "2026-11-25T19:46:43.5Z", "--json")
    document = json.loads(out)
    assert (status, document["at"]) == (0, "2026-11-25T19:46:43.500Z")
    assert [(each["host"], each["id"], each["status"]) for each in document["containers"]] == [
        ("node-1", "a", "running"),
        ("node-1", "b", "running"),
        ("node-2", "shop/c", "running"),
        ("node-3", "e", "running"),
    ]
    assert by_host(document["sources"], "stale") == {"node-1": None, "node-2": False, "node-3": None}
    assert by_host(document["sources"], "complete") == {"node-1": True, "node-2": True, "node-3": True}
    status, out, error = fleet(topic(), "--at", "2026-11-25T19:46:46.5Z")
    golden.entry("fleet_views", "at a moment", f"{out}{error}")


@pytest.mark.real_time
def test_fleet_shows_what_started_and_ended(fleet: Run, golden: Golden) -> None:
    options = ("--diff", "2026-11-25T19:46:40Z", "2026-11-25T20:00:00Z")
    status, out, error = fleet(topic(), *options)
    golden.entry("fleet_views", "between two moments", f"{out}{error}")
    assert [line.split()[:4] for line in out.splitlines()[1:]] == [
        ["shop/web-0", "nginx", "started", "2026-11-25T19:46:45Z"],
        ["demo", "e", "ended", "-"],
        ["demo", "b", "ended", "2026-11-25T19:46:46Z"],
    ]
    document = json.loads(fleet(topic(), *options, "--json")[1])
    assert (status, document["since"], document["until"]) == (0, "2026-11-25T19:46:40.000Z", "2026-11-25T20:00:00.000Z")
    assert [(each["id"], each["at"]) for each in document["started"]] == [("k8s.io/d", "2026-11-25T19:46:45Z")]
    assert [(each["id"], each["at"], each["exit"] and each["exit"]["status"]) for each in document["ended"]] == [
        ("e", None, None),
        ("b", "2026-11-25T19:46:46Z", 0),
    ]


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--at", "2026-11-25T19:46:39Z"), "the records begin at 2026-11-25T19:46:40Z: nothing is known of 2026-11-25"),
        (("--diff", "2026-11-20T00:00:00Z", "2026-11-26T00:00:00Z"), "nothing is known of 2026-11-20T00:00:00Z"),
    ],
)
def test_fleet_before_topic_begins_fails(options: tuple[str, ...], message: str, fleet: Run) -> None:
    status, out, error = fleet(topic(), *options)
    assert (status, out) == (1, "")
    assert message in error


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--at", ""), "--at: invalid value ''"),
        (("--diff", "", "1h"), "--diff: invalid value ''"),
        (("--diff", "1h", "2h"), "the first moment must be before the second one"),
        (("--at", "9000-01-01"), "--at: a moment is in the future"),
        (("--at", "1h", "--diff", "2h", "1h"), "--diff cannot be combined with --at"),
    ],
)
def test_fleet_fails_at_impossible_moment(options: tuple[str, ...], message: str, fleet: Run) -> None:
    status, out, error = fleet(topic(), "--json", *options)
    assert (status, out) == (2, "")
    assert message in error


@pytest.mark.real_time
@pytest.mark.parametrize("options", [("--once",), ("--json",), ("--at", "1h")])
def test_fleet_of_empty_topic_fails(options: tuple[str, ...], fleet: Run) -> None:
    assert fleet([], *options) == (1, "", "whalebridge: there are no records: nothing is known\n")


@pytest.mark.parametrize("command", [["fleet", "-", "--once"], ["audit", "-"], ["tail", "-"]])
def test_closed_standard_input_is_no_empty_topic(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", None)  # as Python sets it
    assert execute(command) == 1
    assert capsys.readouterr().err == "whalebridge: standard input is closed; redirect a file or a pipe to it\n"


@pytest.mark.real_time
def test_fleet_counts_foreign_messages(fleet: Run) -> None:
    node = Bridge()
    snapshot = node.snapshot(("a", 101))
    status, out, error = fleet([b"hello", *flat(snapshot), edited(node.start("b", 102), version=2)], "--once")
    assert (status, len(out.splitlines())) == (0, 2)
    assert "whalebridge: 1 invalid message was skipped; the last one, number 1 of " in error
    assert "whalebridge: 2 invalid messages were skipped\n" in error


@pytest.mark.real_time
def test_fleet_of_state_topic_fails(fleet: Run) -> None:
    entries = apply_records(TableState(), [parse_record(each) for each in flat(Bridge().snapshot(("a", 101)))])[1]
    status, out, error = fleet([each.value for each in entries if each.value], "--once")
    assert (status, out) == (1, "")
    assert "is an entry of a state topic or bucket; use the topic or stream of the records" in error


@pytest.mark.real_time
def test_fleet_of_compacted_topic_names_missing_records(fleet: Run) -> None:
    node = Bridge()
    lines = flat(node.snapshot(("a", 101)), node.start("b", 102), node.pause("b", 102), node.start("c", 103))
    _, _, error = fleet([lines[0], *lines[2:3], lines[-1]], "--once")
    assert "records are missing: epoch 1795636000000 sequence 4 to 5, and 1 range before\n" in error


def page(screen: FleetScreen, width: int = 140, height: int = 30) -> list[str]:
    output = io.StringIO()
    Console(file=output, width=width, height=height, highlight=False).print(screen.page(width, height))
    return [line.rstrip() for line in output.getvalue().splitlines()]


def screen_of(lines: Sequence[bytes]) -> FleetScreen:
    screen = FleetScreen("main", EVERYTHING)
    for line in lines:
        screen.state.apply(decode(line)[0])
    return screen


def test_fleet_screen_names_each_group_once(golden: Golden) -> None:
    lines = page(screen_of(topic()))
    golden.entry("fleet_views", "screen", "\n".join(lines))
    assert lines[0] == "3 containers of 3 sources at main, 1 stale"
    assert [line.split()[0] for line in lines if "busybox" in line] == ["demo", "c", "shop/web-0"]


def test_fleet_screen_shows_interruption_until_it_ends() -> None:
    screen = FleetScreen("main", EVERYTHING)
    assert page(screen) == ["0 containers of 0 sources at main", "no records yet", "", page(screen)[3]]
    screen.notify("no response\x1b[1m; retrying")
    assert page(screen)[1] == r"no response\x1b[1m; retrying"
    screen.notify("reading resumed")
    assert page(screen)[1] == "no records yet"


@pytest.mark.parametrize("height", [8, 20, 100])
@pytest.mark.parametrize("width", [40, 200])
@pytest.mark.parametrize("count", [0, 3, 60])
def test_fleet_screen_fits_terminal_size(height: int, width: int, count: int) -> None:
    lines = [
        line
        for number in range(count)
        for line in flat(Bridge(host=f"node-{number}").snapshot((f"c{number:02}", 100), failed=["shop"]))
    ]
    shown = page(screen_of(lines), width, height)
    assert max(map(len, shown)) <= width
    assert len(shown) <= height
    *_, heading = (number for number, line in enumerate(shown) if line.startswith("PROJECT"))
    table = shown[heading + 1 :]
    more = int(table.pop().split()[1]) if table and table[-1].startswith("and ") else 0
    assert len(table) + more == count
