"""A bridge behind the proxy, during outages of containerd, of the proxy and of the bridge."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.containerd.proxy.relay import SUBSCRIBER_BUFFER_BYTES
from tests.bridge_process import BridgeProcess, RecordDict, check_stream, running_after, summary, transitions
from tests.eventually import eventually
from tests.integration.engines import one_engine_factory
from tests.integration.proxy_calls import MIB, publish_bulk
from tests.integration.running import (
    assert_short_containers_published,
    exits,
    init_pid,
    run_short_containers,
    suspended,
)
from tests.proxy_process import ProxyProcess
from tests.testbed.containerd import Containerd


@pytest.fixture
def containerd(engine_factory: Callable[[], Containerd]) -> Containerd:
    return engine_factory()


@pytest.fixture
def proxy(containerd: Containerd, tmp_path: Path) -> Iterator[ProxyProcess]:
    with ProxyProcess(containerd.address, tmp_path) as proxy:
        yield proxy


@pytest.fixture
def bridge(proxy: ProxyProcess, tmp_path: Path) -> Iterator[BridgeProcess]:
    with BridgeProcess(proxy.address, tmp_path) as bridge:
        bridge.wait_synced()
        yield bridge


def snapshot_reasons(records: list[RecordDict]) -> list[str]:
    return [each["snapshot"]["reason"] for each in records if each["type"] == "snapshot_started"]


def unique_ids(*prefixes: str) -> list[str]:
    return [f"{prefix}-{os.getpid()}" for prefix in prefixes]


def start_containers(containerd: Containerd, bridge: BridgeProcess, ids: list[str]) -> None:
    for id_ in ids:
        containerd.run(id_, "sleep", "86400")
    bridge.wait(lambda records: set(ids) <= set(running_after(records)), "all starts")


@one_engine_factory
def test_exit_is_published_once_when_proxied_containerd_is_down(
    containerd: Containerd, proxy: ProxyProcess, bridge: BridgeProcess
) -> None:
    exiting, running = unique_ids("exiting", "running")
    start_containers(containerd, bridge, [exiting, running])
    pid = init_pid(containerd, exiting)
    containerd.kill()
    os.kill(pid, signal.SIGKILL)
    time.sleep(1)
    containerd.start()
    bridge.wait_synced(2)
    records = bridge.wait(lambda records: set(running_after(records)) == {running}, "the state of containerd")
    check_stream(records)
    assert len(exits(records, exiting)) == 1, list(map(summary, records))
    assert snapshot_reasons(records) == ["start", "reconnect"]
    assert {each["engine"]["pid"] for each in records[-1:]} == {containerd.pid}
    assert proxy.process.poll() is None


@one_engine_factory
def test_bridge_reconnects_when_proxy_is_restarted(
    containerd: Containerd, proxy: ProxyProcess, bridge: BridgeProcess
) -> None:
    exiting, running = unique_ids("exiting", "running")
    start_containers(containerd, bridge, [exiting, running])
    proxy.process.kill()
    proxy.process.wait()
    containerd.ctr("task", "kill", "--signal", "SIGKILL", exiting)
    proxy.start()
    bridge.wait_synced(2)
    records = bridge.wait(lambda records: set(running_after(records)) == {running}, "the state of containerd")
    check_stream(records)
    (exited,) = exits(records, exiting)
    assert exited["exit"]["status"] == 137


@one_engine_factory
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGKILL], ids=["SIGTERM", "SIGKILL"])
def test_fault_43_proxy_ends_with_unread_events(
    containerd: Containerd, proxy: ProxyProcess, bridge: BridgeProcess, signal_number: signal.Signals
) -> None:
    """When the suspended bridge resumes, its socket has the events, but the proxy and the containers are gone."""
    ids = unique_ids(*(f"short{number}" for number in range(6)))
    with suspended(bridge.process.pid):
        run_short_containers(containerd, ids)
        time.sleep(0.5)  # until the proxy has written the events
        proxy.process.send_signal(signal_number)
        proxy.process.wait(30)
    proxy.log.unlink()  # gRPC writes a traceback if it has to cancel the subscription
    proxy.start()
    records = bridge.wait_synced(2)
    check_stream(records)
    assert_short_containers_published(records, ids)


@one_engine_factory
def test_overflow_snapshot_follows_when_bridge_lags_behind_proxy(containerd: Containerd, bridge: BridgeProcess) -> None:
    start_containers(containerd, bridge, unique_ids("slow"))
    with suspended(bridge.process.pid):
        asyncio.run(publish_bulk(containerd, 3 * SUBSCRIBER_BUFFER_BYTES // MIB))
        containerd.run(*unique_ids("meanwhile"), "sleep", "86400")
    records = bridge.wait(
        lambda records: set(running_after(records)) == set(unique_ids("slow", "meanwhile")), "the state of containerd"
    )
    check_stream(records)
    assert snapshot_reasons(records) == ["start", "overflow"]
    assert len(transitions(records)) == 2


def test_bridge_waits_when_proxy_cannot_reach_containerd(tmp_path: Path) -> None:
    with ProxyProcess(f"{tmp_path}/nothing.sock", tmp_path) as proxy, BridgeProcess(proxy.address, tmp_path) as bridge:
        message = f"the proxy cannot connect to containerd at {tmp_path}/nothing.sock"
        eventually(lambda: message in bridge.log.read_text(), "the reason in the log")
        time.sleep(1)
        assert bridge.process.poll() is None
