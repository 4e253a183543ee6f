"""The HTTP endpoint of the real program on a real containerd: correct, safe for browsers, and quick to update."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.bridge_process import BridgeProcess, transitions
from tests.eventually import eventually
from tests.integration.commands import ContainerFactory, assert_one_line, whalebridge
from tests.integration.engines import one_engine, one_engine_factory
from tests.integration.http_client import LOCAL, HttpClient
from tests.proxy_process import ProxyProcess
from tests.testbed import browser
from tests.testbed.containerd import Containerd
from tests.testbed.install import search_path
from tests.testbed.process import run
from tests.testbed.server import free_port

ROOT = Path(__file__).parents[2]
HOSTILE = "<script>document.title='owned'</script>\"><img src=x onerror=\"document.title='owned'\">\u202e"


def label(name: str, project: str = "") -> dict[str, str]:
    return {"nerdctl/name": name, **({"com.docker.compose.project": project} if project else {})}


# --- status page ---


@one_engine
def test_status_page_runs_no_injected_script_in_browser(
    container_factory: ContainerFactory, tmp_path: Path, require: Callable[..., None]
) -> None:
    require(*browser.COMPONENTS)
    container_factory.run(labels=label(HOSTILE, project=HOSTILE))
    container_factory.run(labels=label("web-shop-web-1", project="web-shop"))
    with BridgeProcess(container_factory.address, tmp_path, environment=LOCAL) as bridge:
        client = HttpClient(bridge)
        bridge.wait_synced()
        document = browser.render_dom(f"{client.url}/", tmp_path / "profile")
        for dark in (False, True):
            picture = tmp_path / f"{dark}.png"
            browser.screenshot(f"{client.url}/", tmp_path / "profile", picture, dark=dark)
            assert picture.read_bytes().startswith(b"\x89PNG")
    assert "<title>whalebridge: node-1</title>" in document
    assert 'id="status">ready</b>' in document
    assert "web-shop-web-1" in document
    assert "&lt;script&gt;document.title='owned'&lt;/script&gt;" in document
    assert "<script" not in document
    assert "<img" not in document
    assert (tmp_path / "True.png").read_bytes() != (tmp_path / "False.png").read_bytes()


# --- readiness ---


@one_engine_factory
def test_fault_15_readiness_follows_hang_within_30_s(engine_factory: Callable[[], Containerd], tmp_path: Path) -> None:
    containerd = engine_factory()
    with BridgeProcess(containerd.address, tmp_path, environment=LOCAL) as bridge:
        client = HttpClient(bridge)
        bridge.wait_synced()
        assert client.ready()
        containerd.suspend()
        try:
            eventually(lambda: not client.ready(), within=30)
            assert len(client.get("/readyz").document["reasons"]) == 1
            assert client.metrics()["whalebridge_ready"] == 0
            assert client.get("/livez").status == http.client.OK
        finally:
            containerd.resume()
        eventually(client.ready, within=30)


def test_readiness_is_false_before_first_snapshot(tmp_path: Path) -> None:
    with BridgeProcess(str(tmp_path / "c.sock"), tmp_path, environment=LOCAL) as bridge:
        client = HttpClient(bridge)
        bridge.wait_logged("containerd_unavailable")
        page = client.get("/readyz")
        assert (page.status, page.document["ready"]) == (503, False)
        assert "c.sock" in page.document["reasons"][0]
        assert "not ready" in client.get("/").text
        assert client.get("/containers").document["projects"] == {}


@one_engine
def test_readiness_is_degraded_when_sink_is_down(container_factory: ContainerFactory, tmp_path: Path) -> None:
    with socket.socket() as unreachable:
        unreachable.bind(("127.0.0.1", 0))
        sinks = ["stdout:", f"nats://127.0.0.1:{unreachable.getsockname()[1]}/bridge"]
        with BridgeProcess(container_factory.address, tmp_path, sinks=sinks, environment=LOCAL) as bridge:
            client = HttpClient(bridge)
            bridge.wait_synced()
            bridge.wait_logged("sink_publish_failed")
            page = client.get("/readyz")
            assert (page.status, page.document["degraded"]) == (200, True)
            working, failing = page.document["sinks"]
            assert (working["state"], failing["state"]) == ("ok", "failing")
            assert failing["backlog_records"] >= 2
            time.sleep(1)
            metrics = client.metrics()
            assert metrics["whalebridge_outbox_oldest_record_age_seconds nats"] >= 1
            assert metrics["whalebridge_sink_publish_failures_total nats"] >= 1
            assert metrics["whalebridge_sink_up stdout"] == 1


# --- metrics ---


@one_engine_factory
def test_metrics_match_known_history(engine_factory: Callable[[], Containerd], tmp_path: Path) -> None:
    containerd = engine_factory()
    first, second, third = (f"known{number}-{os.getpid()}" for number in range(3))
    with BridgeProcess(containerd.address, tmp_path, environment=LOCAL) as bridge:
        client = HttpClient(bridge)
        bridge.wait_synced()
        for id_ in (first, second, third):
            containerd.run(id_, "sleep", "86400")
        containerd.ctr("task", "exec", "--exec-id", "probe", first, "true")
        containerd.ctr("task", "pause", second)
        containerd.ctr("task", "kill", "--signal", "SIGKILL", third)
        bridge.wait(lambda records: len(transitions(records)) == 5, "starts, pause and exit")
        # Events of different containers arrive in any order.
        eventually(lambda: client.metrics()["whalebridge_ignored_events_total exec_exit"])
        eventually(lambda: client.metrics()["whalebridge_sink_published_records_total stdout"] == len(bridge.records()))
        metrics = client.metrics()
    history = {
        "whalebridge_records_total live started": 3,
        "whalebridge_records_total live exited": 1,
        "whalebridge_records_total live paused": 1,
        "whalebridge_records_total live unpaused": 0,
        "whalebridge_records_total inferred exited": 0,
        "whalebridge_records_total snapshot present": 0,
        "whalebridge_ignored_events_total exec_exit": 1,
        "whalebridge_ignored_events_total undecodable": 0,
        "whalebridge_snapshots_total start": 1,
        "whalebridge_containers running": 1,
        "whalebridge_containers paused": 1,
        "whalebridge_outbox_backlog_records stdout": 0,
        "whalebridge_sink_dropped_records_total stdout": 0,
        "whalebridge_ready": 1,
    }
    assert {name: metrics[name] for name in history} == history
    assert metrics["whalebridge_sink_publish_duration_seconds_count stdout"] >= 1
    assert metrics["whalebridge_outbox_commit_duration_seconds_count"] >= 1


@pytest.fixture
def promtool(require: Callable[..., None]) -> Callable[..., subprocess.CompletedProcess[str]]:
    require("prometheus")
    return partial(run, env={**os.environ, "PATH": search_path("prometheus")})


@one_engine
def test_promtool_accepts_exposed_metrics(
    container_factory: ContainerFactory,
    tmp_path: Path,
    promtool: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    with BridgeProcess(container_factory.address, tmp_path, environment=LOCAL) as bridge:
        client = HttpClient(bridge)
        bridge.wait_synced()
        text = client.get("/metrics").text
    assert promtool(["promtool", "check", "metrics"], text=text).stderr == ""


@one_engine
def test_metrics_count_calls_that_proxy_denied(engine: Containerd, tmp_path: Path) -> None:
    name = "whalebridge_proxy_denied_calls_total"
    with (
        ProxyProcess(engine.address, tmp_path) as proxy,
        BridgeProcess(proxy.address, tmp_path, environment=LOCAL) as bridge,
    ):
        client = HttpClient(bridge)
        bridge.wait_synced()
        assert client.metrics()[name] == 0
        command = ["ctr", "--address", proxy.address, "namespaces", "create", "new"]
        assert run(command, env=engine.env, check=False).returncode
        eventually(lambda: client.metrics()[name] == 1, "the next marker", within=60)
        proxy.stop()
        proxy.log.unlink()  # gRPC writes a traceback if it has to cancel the subscription
        proxy.start()
        eventually(lambda: client.metrics()[name] == 0, "a marker through the new proxy", within=60)


@one_engine
def test_metrics_lack_denied_calls_without_proxy(container_factory: ContainerFactory, tmp_path: Path) -> None:
    with BridgeProcess(container_factory.address, tmp_path, environment=LOCAL) as bridge:
        client = HttpClient(bridge)
        bridge.wait_synced()
        assert "whalebridge_proxy_denied_calls_total" not in client.metrics()


# --- listen address ---


def test_run_exits_1_when_configured_http_address_is_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with BridgeProcess("/nowhere.sock", tmp_path, environment={"WHALEBRIDGE_HTTP__LISTEN": address}) as bridge:
            assert bridge.process.wait(60) == 1
            last = bridge.log.read_text().splitlines()[-1]
            bridge.process.returncode = 0  # expected
    assert last.startswith(f"whalebridge: http.listen {address}: Address already in use")


def test_run_continues_when_default_http_address_is_in_use(tmp_path: Path) -> None:
    environment = {"PATH": "/usr/bin:/bin"}
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # ignore connections in TIME_WAIT
        with contextlib.suppress(TimeoutError):  # another process has the port, which is sufficient
            eventually(lambda: occupy_port(other, 9469), within=30)
        bridge = BridgeProcess("/nowhere.sock", tmp_path, state_dir=tmp_path / "state", environment=environment)
        del bridge._environment["WHALEBRIDGE_HTTP__LISTEN"]
        with bridge:
            (line,) = bridge.wait_logged("http_listen_failed")
            assert (line["level"], "127.0.0.1:9469" in line["error"]) == ("warning", True)
            eventually((tmp_path / "state" / "control.sock").is_socket)


def test_run_listens_on_all_addresses_of_both_families(tmp_path: Path) -> None:
    environment = {"WHALEBRIDGE_HTTP__LISTEN": f"*:{free_port()}", "WHALEBRIDGE_HTTP__CONTAINERS": "false"}
    with BridgeProcess("/nowhere.sock", tmp_path, state_dir=tmp_path / "state", environment=environment) as bridge:
        (line,) = bridge.wait_logged("http_listening")
        port = line["listen"][0].rpartition(":")[2]
        assert set(line["listen"]) == {f"0.0.0.0:{port}", f"[::]:{port}"}
        for host in ("127.0.0.1", "::1"):
            client = http.client.HTTPConnection(host, int(port), timeout=20)
            assert get_status(client, "/livez") == http.client.OK
            assert get_status(client, "/containers") == http.client.FORBIDDEN


def get_status(client: http.client.HTTPConnection, path: str) -> int:
    client.request("GET", path)
    with client.getresponse() as response:
        return response.status


def occupy_port(server: socket.socket, port: int) -> bool:
    """Listen on a port; return false while another process, such as a bridge of another test, uses it."""
    try:
        server.bind(("127.0.0.1", port))
        server.listen()
    except OSError:
        return False
    return True


# --- whalebridge snapshot ---


@one_engine
def test_snapshot_command_triggers_snapshot_of_running_bridge(
    container_factory: ContainerFactory, tmp_path: Path
) -> None:
    container_factory.run()
    state = tmp_path / "state"
    with BridgeProcess(container_factory.address, tmp_path, state_dir=state) as bridge:
        bridge.wait_synced()
        done = whalebridge("snapshot", "--state-dir", str(state), "--json")
        assert (done.returncode, done.stderr) == (0, "")
        taken = json.loads(done.stdout)
        records = bridge.wait_synced(2)
        control_record = next(each["snapshot"] for each in reversed(records) if each["snapshot"])
        assert control_record["reason"] == "on_demand"
        assert taken == {"id": control_record["id"], "containers": control_record["containers"]}
        plain = whalebridge("snapshot", "--state-dir", str(state))
        assert plain.stdout.startswith("snapshot ")
        assert plain.stdout.endswith(("container\n", "containers\n"))
    assert_one_line(whalebridge("snapshot", "--state-dir", str(state)), 3, str(state))


def test_snapshot_command_explains_unusable_state_dir(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "control.sock"))
    assert_one_line(whalebridge("snapshot", "--state-dir", str(tmp_path)), 3, str(tmp_path))
    if os.geteuid() == 0:
        os.chmod(tmp_path, 0o700)
        unprivileged = ["setpriv", "--reuid=65534", "--clear-groups"]
        done = whalebridge("snapshot", "--state-dir", str(tmp_path), prefix=unprivileged)
        assert_one_line(done, 3, "permission denied", "root")


def test_snapshot_command_fails_when_containerd_is_unavailable(tmp_path: Path) -> None:
    state = tmp_path / "state"
    with BridgeProcess("/nowhere.sock", tmp_path, state_dir=state) as bridge:
        bridge.wait_logged("containerd_unavailable")
        assert_one_line(whalebridge("snapshot", "--state-dir", str(state)), 3, "/readyz")
