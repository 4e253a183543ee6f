"""Test the HTTP endpoint on real sockets, with correct and faulty clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from structlog.testing import capture_logs

from bridge.clock import SystemClock
from bridge.telemetry.http import bounded_server, json_documents, routes
from bridge.telemetry.http.server import HttpEndpoint
from tests.golden import Golden
from tests.unit.telemetry.http.fake_bridge import FakeBridge, bridge_status, running_container

pytestmark = pytest.mark.real_time


class Response(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def document(self) -> Any:
        return json.loads(self.body)


class ServedEndpoint:
    """An endpoint on TCP and on a unix socket."""

    def __init__(self, directory: Path, *, containers: bool = True) -> None:
        self.bridge = FakeBridge()
        self.socket = directory / "control.sock"
        self.endpoint = HttpEndpoint(self.bridge, SystemClock(), containers=containers)
        self.port = 0

    async def open(self) -> None:
        (address,) = await self.endpoint.listen("127.0.0.1", 0)
        self.port = int(address.rpartition(":")[2])
        await self.endpoint.listen_unix(self.socket)

    async def connect(self, *, local: bool = False) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if local:
            return await asyncio.open_unix_connection(self.socket)
        return await asyncio.open_connection("127.0.0.1", self.port)

    async def request(self, path: str, method: str = "GET", *, local: bool = False, **headers: str) -> Response:
        reader, writer = await self.connect(local=local)
        lines = {"Host": f"127.0.0.1:{self.port}"} | {name.replace("_", "-"): value for name, value in headers.items()}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode())
        data = await reader.read()
        writer.close()
        head, _, body = data.decode().partition("\r\n\r\n")
        first, *rest = head.split("\r\n")
        response_headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
        if response_headers.get("transfer-encoding") == "chunked":
            body = "".join(body.split("\r\n")[1::2])
        return Response(int(first.split()[1]), response_headers, body.encode())


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[ServedEndpoint]:
    served = ServedEndpoint(tmp_path)
    await served.open()
    yield served
    await served.endpoint.close()


async def test_livez_returns_ok(served: ServedEndpoint) -> None:
    response = await served.request("/livez")
    assert (response.status, response.body) == (200, b"ok\n")
    assert (await served.request("/livez", "HEAD")).body == b""


async def test_readyz_returns_status_and_degraded_reasons(served: ServedEndpoint, golden: Golden) -> None:
    assert (await served.request("/readyz")).status == 200
    served.bridge.current_status = bridge_status(
        synced=False, containerd_error="no such socket", outbox_error="disk full"
    )
    response = await served.request("/readyz")
    assert response.status == 503
    outbox, containerd = response.document["reasons"]
    assert containerd.endswith(": no such socket")
    assert outbox.endswith(": disk full")
    golden.entry("http_errors", "GET /readyz, 503", f"{outbox}\n{containerd}")


async def test_metrics_format_is_negotiated(served: ServedEndpoint) -> None:
    plain = await served.request("/metrics")
    assert plain.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"whalebridge_ready 1.0\n" in plain.body
    modern = await served.request("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert modern.headers["content-type"].startswith("application/openmetrics-text; version=1.0.0")
    assert modern.body.endswith(b"# EOF\n")


async def test_containers_endpoint_groups_by_project(served: ServedEndpoint) -> None:
    served.bridge.containers = [
        running_container("a", project="shop"),
        running_container("b", tier="front"),
        running_container("c", project="shop", paused=True),
    ]
    document = (await served.request("/containers")).document
    assert document["containers"] == 3
    assert {
        project: [container["id"] for container in containers] for project, containers in document["projects"].items()
    } == {
        "": ["b"],
        "shop": ["a", "c"],
    }
    assert document["projects"][""][0]["labels"] == {"tier": "front"}
    assert [container["paused"] for container in document["projects"]["shop"]] == [False, True]


async def test_containers_endpoint_yields_to_event_loop(
    served: ServedEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    served.bridge.containers = [running_container(f"c{number}") for number in range(10_000)]
    turns, containers_document = 0, json_documents.containers_document
    turn_of_chunk: list[int] = []  # the event loop turn of each chunk

    async def take_turns() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def chunks(*args: Any) -> Iterator[bytes]:
        for chunk in containers_document(*args):
            turn_of_chunk.append(turns)
            yield chunk

    monkeypatch.setattr(json_documents, "containers_document", chunks)
    others = asyncio.create_task(take_turns())
    await served.request("/containers")
    others.cancel()
    assert len(turn_of_chunk) > 10_000 / json_documents.CONTAINERS_PER_CHUNK
    assert len(set(turn_of_chunk)) == len(turn_of_chunk), "several chunks were written in one turn"


async def test_status_page_forbids_scripts_and_escapes_names(served: ServedEndpoint) -> None:
    served.bridge.containers = [running_container(name="<script>alert(1)</script>")]
    response = await served.request("/")
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert response.headers["content-security-policy"].startswith("default-src 'none'; style-src 'sha256-")
    assert response.headers["x-content-type-options"] == "nosniff"
    assert b"<script" not in response.body
    assert b"&lt;script&gt;alert(1)&lt;/script&gt;" in response.body


async def test_containers_are_served_only_on_control_socket(tmp_path: Path) -> None:
    served = ServedEndpoint(tmp_path, containers=False)
    served.bridge.containers = [running_container("canary")]
    await served.open()
    try:
        for path in ("/", "/containers"):
            for method in ("GET", "HEAD", "POST"):
                response = await served.request(path, method)
                assert response.status == 403
                assert method == "HEAD" or response.body == (
                    b"http.containers is false; use control.sock in state_dir, or whalebridge list\n"
                )
            assert b"canary" in (await served.request(path, local=True)).body
        for path in ("/livez", "/readyz", "/metrics"):
            response = await served.request(path)
            assert response.status == 200
            assert b"canary" not in response.body
    finally:
        await served.endpoint.close()


async def test_snapshot_is_not_served_over_tcp(served: ServedEndpoint) -> None:
    response = await served.request("/snapshot", "POST")
    assert (response.status, b"/snapshot" in response.body) == (404, False)


async def test_snapshot_response_is_sent_after_snapshot(served: ServedEndpoint) -> None:
    request = asyncio.create_task(served.request("/snapshot", "POST", local=True))
    served.bridge.snapshot_result.set_result(("7-5", 2))
    response = await request
    assert (response.status, response.document) == (200, {"id": "7-5", "containers": 2})


async def test_snapshot_returns_503_when_containerd_is_disconnected(served: ServedEndpoint, golden: Golden) -> None:
    served.bridge.current_status = bridge_status(synced=False)
    response = await served.request("/snapshot", "POST", local=True)
    assert response.status == 503
    assert "first snapshot" in response.document["error"]
    golden.entry("http_errors", "POST /snapshot, 503", response.body.decode())


async def test_snapshot_returns_504_when_timeout_expires(
    served: ServedEndpoint, monkeypatch: pytest.MonkeyPatch, golden: Golden
) -> None:
    monkeypatch.setattr(routes, "SNAPSHOT_SECONDS", 0.01)
    response = await served.request("/snapshot", "POST", local=True)
    assert response.status == 504
    golden.entry("http_errors", "POST /snapshot, 504", response.body.decode())


async def test_unknown_path_or_method_lists_available_paths(served: ServedEndpoint, golden: Golden) -> None:
    response = await served.request("/nothing")
    assert (response.status, b"/readyz" in response.body) == (404, True)
    golden.entry("http_errors", "404", response.body.decode())
    response = await served.request("/snapshot", local=True)
    assert (response.status, response.headers["allow"]) == (405, "POST")
    golden.entry("http_errors", "405", response.body.decode())
    assert (await served.request("/readyz", "DELETE")).status == 405


@pytest.mark.parametrize("host", ["evil.example", "evil.example:9469", "localhost.evil.example", "127.0.0.1.evil"])
async def test_foreign_host_header_returns_421(served: ServedEndpoint, host: str, golden: Golden) -> None:
    served.bridge.containers = [running_container("private")]
    response = await served.request("/containers", Host=host)
    assert (response.status, b"private" in response.body) == (421, False)
    golden.entry("http_errors", f"Host {host}, 421", response.body.decode())


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9469", "127.0.0.1", "[::1]:9469", "[::1]"])
async def test_local_host_header_is_accepted(served: ServedEndpoint, host: str) -> None:
    assert (await served.request("/containers", Host=host)).status == 200


@pytest.mark.parametrize("sent", [b"", b"GET /livez HTTP/1.1\r\n", b"POST /snapshot HTTP/1.1\r\nHost: a\r\n\r\n"])
async def test_close_does_not_wait_for_clients(served: ServedEndpoint, sent: bytes) -> None:
    reader, writer = await served.connect(local=True)
    writer.write(sent)
    await asyncio.sleep(0.1)
    began = time.monotonic()
    await served.endpoint.close()
    assert time.monotonic() - began < 5
    with contextlib.suppress(ConnectionError):
        assert await reader.read() == b""
    writer.close()


async def test_failed_import_is_logged_and_repeated(served: ServedEndpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setitem(sys.modules, routes.__name__, None)
        reader, writer = await served.connect()
        assert await reader.read() == b""
        writer.close()
    assert [each["event"] for each in logs] == ["http_connection_failed"]
    assert (await served.request("/livez")).status == 200


async def test_control_socket_is_private_and_replaces_stale_file(tmp_path: Path) -> None:
    (tmp_path / "control.sock").write_text("stale")
    served = ServedEndpoint(tmp_path)
    await served.open()
    assert os.stat(served.socket).st_mode & 0o777 == 0o600
    assert (await served.request("/livez", local=True)).status == 200
    assert os.listdir(tmp_path) == ["control.sock"]
    await served.endpoint.close()


async def test_control_socket_works_in_directory_with_long_path(tmp_path: Path) -> None:
    directory = tmp_path / ("long" * 30)
    directory.mkdir()
    endpoint = HttpEndpoint(FakeBridge(), SystemClock())
    await endpoint.listen_unix(directory / "control.sock")
    assert (directory / "control.sock").is_socket()
    await endpoint.close()


# --- limits ---


@pytest.mark.parametrize(
    "head", [b"GET /" + b"a" * 9000, b"GET / HTTP/1.1\r\nX: " + b"a" * 9000, b"\x16\x03\x01\r\n\r\n"]
)
async def test_malformed_request_returns_400_without_log_output(
    served: ServedEndpoint, head: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    reader, writer = await served.connect()
    writer.write(head + b"\r\n\r\n")
    assert b" 400 " in (await reader.read()).partition(b"\r\n")[0]
    writer.close()
    assert capfd.readouterr().err == ""


async def test_request_body_is_not_read(served: ServedEndpoint) -> None:
    reader, writer = await served.connect()
    writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9999999999\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
    writer.close()


async def test_oldest_connection_is_closed_when_limit_is_reached(
    served: ServedEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_server, "MAX_CONNECTIONS", 3)
    idle = [await served.connect() for _ in range(5)]
    assert await idle[0][0].read() == b""
    assert (await served.request("/livez")).status == 200
    for _, writer in idle:
        writer.close()


async def test_idle_connection_is_closed_after_lifetime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_server, "MAX_LIFETIME_SECONDS", 0.01)
    served = ServedEndpoint(tmp_path)
    await served.open()
    reader, writer = await served.connect()
    assert await reader.read() == b""
    writer.close()
    await served.endpoint.close()


async def test_connection_is_closed_when_client_stops_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    served = ServedEndpoint(tmp_path)
    served.bridge.containers = [running_container(f"c{number}", filler="x" * 1000) for number in range(10_000)]
    await served.open()
    reader, writer = await served.connect()
    writer.write(b"GET /containers HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.readuntil(b"projects")
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    connections = served.endpoint._servers[0][1]._server
    assert connections is not None
    monkeypatch.setattr(
        loop, "time", lambda: time.monotonic() + bounded_server.MAX_LIFETIME_SECONDS
    )  # after the response has started
    async with asyncio.timeout(60):
        while connections.connections:  # noqa: ASYNC110 (aiohttp signals no change)
            await asyncio.sleep(0)
    writer.close()
    await served.endpoint.close()
