"""The endpoint on real sockets, with clients that behave and clients that do not."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bridge.telemetry.http import connections, documents, server
from bridge.telemetry.http.server import Endpoint
from tests.unit.telemetry.http.bridges import FakeBridge, note, row, status


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class Served:
    """An endpoint on TCP and on a unix socket."""

    def __init__(self, folder: Path) -> None:
        self.bridge = FakeBridge()
        self.socket = folder / "control.sock"
        self.endpoint = Endpoint(self.bridge)
        self.port = 0

    async def open(self) -> None:
        (address,) = await self.endpoint.listen("127.0.0.1", 0)
        self.port = int(address.rpartition(":")[2])
        await self.endpoint.listen_locally(self.socket)

    async def connect(self, *, local: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if local:
            return await asyncio.open_unix_connection(self.socket)
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def ask(self, path: str, method: str = "GET", *, local: bool = False, **headers: str) -> Answer:
        reader, writer = await self.connect(local=local)
        lines = {"Host": f"127.0.0.1:{self.port}"} | {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())
        data = await reader.read()
        writer.close()
        head, _, body = data.decode().partition("\r\n\r\n")
        first, *rest = head.split("\r\n")
        told = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        if told.get("transfer-encoding") == "chunked":
            body = "".join(body.split("\r\n")[1::2])
        return Answer(int(first.split()[1]), told, body.encode())


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    served = Served(tmp_path)
    await served.open()
    yield served
    await served.endpoint.close()


async def test_livez_answers(served: Served) -> None:
    answer = await served.ask("/livez")
    assert (answer.status, answer.body) == (200, b"ok\n")
    assert (await served.ask("/livez", "HEAD")).body == b""


async def test_readyz_tells_status_and_reasons(served: Served) -> None:
    assert (await served.ask("/readyz")).status == 200
    served.bridge.how = status(live=False, failure="no such socket", trouble="disk full")
    answer = await served.ask("/readyz")
    assert answer.status == 503
    assert answer.document["reasons"] == [
        "containerd is unavailable: no such socket",
        "the outbox cannot be written: disk full",
    ]


async def test_metrics_are_negotiated(served: Served) -> None:
    plain = await served.ask("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"whalebridge_ready 1.0\n" in plain.body
    modern = await served.ask("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert modern.body.endswith(b"# EOF\n")


async def test_the_portfolio_is_by_project(served: Served) -> None:
    served.bridge.rows = [row("a", project="shop"), row("b", tier="front"), row("c", project="shop", paused=True)]
    told = (await served.ask("/containers")).document
    assert told["containers"] == 3
    assert {project: [each["id"] for each in here] for project, here in told["projects"].items()} == {
        "": ["b"],
        "shop": ["a", "c"],
    }
    assert told["projects"][""][0]["labels"] == {"tier": "front"}
    assert [each["paused"] for each in told["projects"]["shop"]] == [False, True]


async def test_a_large_portfolio_leaves_time_for_others(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    served.bridge.rows = [row(f"c{number}") for number in range(10_000)]
    turns, portfolio = 0, documents.portfolio
    turns_before: list[int] = []  # each of its pieces

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def pieces(*args: Any) -> Iterator[bytes]:
        for piece in portfolio(*args):
            turns_before.append(turns)
            yield piece

    monkeypatch.setattr(documents, "portfolio", pieces)
    others = asyncio.create_task(take_turns())
    await served.ask("/containers")
    others.cancel()
    assert len(turns_before) > 10_000 / documents.AT_ONCE
    assert len(set(turns_before)) == len(turns_before), "some were written in one go"


async def test_the_page_may_load_and_run_nothing(served: Served) -> None:
    served.bridge.rows = [row(name="<script>alert(1)</script>")]
    answer = await served.ask("/")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert b"<script" not in answer.body
    assert b"&lt;script&gt;alert(1)&lt;/script&gt;" in answer.body


async def test_snapshot_is_not_served_over_tcp(served: Served) -> None:
    answer = await served.ask("/snapshot", "POST")
    assert (answer.status, b"/snapshot" in answer.body) == (404, False)


async def test_a_snapshot_answers_when_it_is_taken(served: Served) -> None:
    asking = asyncio.create_task(served.ask("/snapshot", "POST", local=True))
    served.bridge.taken.set_result(note(5))
    answer = await asking
    assert (answer.status, answer.document) == (200, {"id": "7-5", "containers": 2})


async def test_a_snapshot_is_refused_while_nothing_is_watched(served: Served) -> None:
    served.bridge.how = status(live=False)
    answer = await served.ask("/snapshot", "POST", local=True)
    assert answer.status == 503
    assert "/readyz" in answer.document["error"]


async def test_a_snapshot_that_does_not_come_is_not_waited_for_for_ever(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "SNAPSHOT_SECONDS", 0.01)
    assert (await served.ask("/snapshot", "POST", local=True)).status == 504


async def test_other_paths_and_methods_are_told_what_there_is(served: Served) -> None:
    answer = await served.ask("/nothing")
    assert (answer.status, b"/readyz" in answer.body) == (404, True)
    answer = await served.ask("/snapshot", local=True)
    assert (answer.status, answer.headers["allow"]) == (405, "POST")
    assert (await served.ask("/readyz", "DELETE")).status == 405


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9469", "localhost.evil.example", "127.0.0.1.evil"])
async def test_no_web_site_has_a_browser_ask_for_it(served: Served, host: str) -> None:
    served.bridge.rows = [row("private")]
    answer = await served.ask("/containers", Host=host)
    assert (answer.status, b"private" in answer.body) == (421, False)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9469", "127.0.0.1", "[::1]:9469", "[::1]"])
async def test_the_node_itself_may_ask(served: Served, host: str) -> None:
    assert (await served.ask("/containers", Host=host)).status == 200


async def test_the_socket_is_its_owners_and_replaces_one_that_is_left(tmp_path: Path) -> None:
    (tmp_path / "control.sock").write_text("left behind")
    served = Served(tmp_path)
    await served.open()
    assert os.stat(served.socket).st_mode & 0o777 == 0o600
    assert (await served.ask("/livez", local=True)).status == 200
    assert os.listdir(tmp_path) == ["control.sock"]
    await served.endpoint.close()


async def test_a_folder_with_a_long_path_has_a_socket_as_well(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    endpoint = Endpoint(FakeBridge())
    await endpoint.listen_locally(folder / "control.sock")
    assert (folder / "control.sock").is_socket()
    await endpoint.close()


# --- bounds ---


@pytest.mark.parametrize(
    "head", [b"GET /" + b"a" * 9000, b"GET / HTTP/1.1\r\nX: " + b"a" * 9000, b"\x16\x03\x01\r\n\r\n"]
)
async def test_what_is_no_decent_request_is_refused_without_a_word_in_the_log(
    served: Served, head: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = await served.connect()
    writer.write(head + b"\r\n\r\n")
    assert b" 400 " in (await reader.read()).partition(b"\r\n")[0]
    writer.close()
    assert capfd.readouterr().err == ""


async def test_a_body_is_not_read(served: Served) -> None:
    reader, writer = await served.connect()
    writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_the_oldest_of_too_many_connections_goes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MOST", 3)
    idle = [await served.connect() for _ in range(5)]
    assert await idle[0][0].read() == b""
    assert (await served.ask("/livez")).status == 200
    for _, writer in idle:
        writer.close()


async def test_idle_connections_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LIFETIME", 0.01)
    served = Served(tmp_path)
    await served.open()
    reader, writer = await served.connect()
    assert await reader.read() == b""
    writer.close()
    await served.endpoint.close()


async def test_one_that_reads_nothing_ends_as_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    served = Served(tmp_path)
    served.bridge.rows = [row(f"c{number}", filler="x" * 1000) for number in range(10_000)]
    await served.open()
    reader, writer = await served.connect()
    writer.write(b"GET /containers HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"projects")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    (bounded,) = [each for _, each in served.endpoint._servers[:1]]
    monkeypatch.setattr(loop, "time", lambda: time.monotonic() + connections.LIFETIME)  # now that the answer has begun
    async with asyncio.timeout(60):
        while bounded.connections:  # noqa: ASYNC110 (it is aiohttp's, and tells nobody)
            await asyncio.sleep(0)
    writer.close()
    await served.endpoint.close()
