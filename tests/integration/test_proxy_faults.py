"""A bridge behind the proxy, when containerd, the proxy or the bridge itself is away for a while."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bridge.containerd.proxy.relay import SUBSCRIBER_BYTES
from tests.bridge_process import BridgeProcess, Document, check_stream, fold, summary, transitions
from tests.eventually import eventually
from tests.integration.proxying import MIB, publish
from tests.proxy_process import ProxyProcess
from tests.testbed.containerd import Containerd


@pytest.fixture
def containerd(fresh_engine: Callable[[], Containerd]) -> Containerd:
    return fresh_engine()


@pytest.fixture
def proxy(containerd: Containerd, tmp_path: Path) -> Iterator[ProxyProcess]:
    with ProxyProcess(containerd.address, tmp_path) as proxy:
        yield proxy


@pytest.fixture
def bridge(proxy: ProxyProcess, tmp_path: Path) -> Iterator[BridgeProcess]:
    with BridgeProcess(proxy.address, tmp_path) as bridge:
        bridge.wait_live()
        yield bridge


def reasons(records: list[Document]) -> list[str]:
    return [each["snapshot"]["reason"] for each in records if each["type"] == "snapshot_started"]


def exits(records: list[Document], id_: str) -> list[Document]:
    return [each for each in records if each["id"] == id_ and each["type"] == "exited"]


def named(*stems: str) -> list[str]:
    return [f"{stem}-{os.getpid()}" for stem in stems]


def started(containerd: Containerd, bridge: BridgeProcess, ids: list[str]) -> None:
    for id_ in ids:
        containerd.run(id_, "sleep", "86400")
    bridge.wait(lambda records: set(ids) <= set(fold(records)), "all starts")


def init_pid(containerd: Containerd, id_: str) -> int:
    lines = containerd.ctr("tasks", "ls").stdout.splitlines()[1:]
    return next(int(pid) for container, pid, _ in map(str.split, lines) if container == id_)


@contextmanager
def suspended(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_death_while_containerd_is_down_is_told_once(
    containerd: Containerd, proxy: ProxyProcess, bridge: BridgeProcess
) -> None:
    dies, stays = named("dies", "stays")
    started(containerd, bridge, [dies, stays])
    pid = init_pid(containerd, dies)
    containerd.kill()
    os.kill(pid, signal.SIGKILL)
    time.sleep(1)
    containerd.start()
    bridge.wait_live(2)
    records = bridge.wait(lambda records: set(fold(records)) == {stays}, "agreement with containerd")
    check_stream(records)
    assert len(exits(records, dies)) == 1, list(map(summary, records))
    assert reasons(records) == ["start", "reconnect"]
    assert {each["engine"]["pid"] for each in records[-1:]} == {containerd.pid}
    assert proxy.process.poll() is None


def test_a_proxy_that_is_replaced_is_found_again(
    containerd: Containerd, proxy: ProxyProcess, bridge: BridgeProcess
) -> None:
    dies, stays = named("quits", "lasts")
    started(containerd, bridge, [dies, stays])
    proxy.process.kill()
    proxy.process.wait()
    containerd.ctr("task", "kill", "--signal", "SIGKILL", dies)
    proxy.start()
    bridge.wait_live(2)
    records = bridge.wait(lambda records: set(fold(records)) == {stays}, "agreement with containerd")
    check_stream(records)
    (exited,) = exits(records, dies)
    assert exited["exit"]["status"] == 137


def test_a_bridge_that_is_too_slow_starts_over_with_an_overflow(containerd: Containerd, bridge: BridgeProcess) -> None:
    started(containerd, bridge, named("slow"))
    with suspended(bridge.process.pid):
        asyncio.run(publish(containerd, 3 * SUBSCRIBER_BYTES // MIB))
        containerd.run(*named("meanwhile"), "sleep", "86400")
    records = bridge.wait(lambda records: set(fold(records)) == set(named("slow", "meanwhile")), "agreement")
    check_stream(records)
    assert reasons(records) == ["start", "overflow"]
    assert len(transitions(records)) == 2


def test_the_bridge_waits_for_a_containerd_that_is_not_there_yet(tmp_path: Path) -> None:
    with ProxyProcess(f"{tmp_path}/nothing.sock", tmp_path) as proxy, BridgeProcess(proxy.address, tmp_path) as bridge:
        told = f"the proxy cannot reach containerd at {tmp_path}/nothing.sock"
        eventually(lambda: told in bridge.log.read_text(), "the bridge to tell what it waits for")
        time.sleep(1)
        assert bridge.process.poll() is None
