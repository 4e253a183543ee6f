"""Test that a proxy whose event loop hangs exits, and that one whose event loop runs does not."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.containerd.proxy.server import event_loop_watchdog
from tests.eventually import eventually
from tests.virtual_time import VirtualClock

HANGING_PROXY = """
import asyncio, signal, sys, time
from bridge.containerd.proxy import server

def hang(*_):
    while True:
        time.sleep(3600)

server.HANG_SECONDS = 5  # longer than a busy machine lets the event loop wait
signal.signal(signal.SIGUSR1, hang)  # runs in the thread of the event loop
asyncio.run(server.serve(sys.argv[1], sys.argv[2], mode=0o600, group=None))
"""


def test_proxy_exits_when_event_loop_hangs(tmp_path: Path) -> None:
    listening = tmp_path / "proxy.sock"
    command = [sys.executable, "-c", HANGING_PROXY, str(tmp_path / "containerd.sock"), str(listening)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as proxy:
        try:
            eventually(listening.is_socket, "the proxy to listen", within=60)
            proxy.send_signal(signal.SIGUSR1)
            _, stderr = proxy.communicate(timeout=60)
        finally:
            proxy.kill()
    assert proxy.returncode == 1
    assert "Timeout (0:00:05)!" in stderr
    assert "in hang" in stderr


async def test_watchdog_timer_restarts_while_event_loop_runs(
    monkeypatch: pytest.MonkeyPatch, clock: VirtualClock
) -> None:
    calls: list[tuple[float, bool]] = []
    canceled: list[bool] = []
    third = asyncio.Event()

    def start(seconds: float, *, exit: bool, file: int) -> None:
        assert file == 2
        calls.append((seconds, exit))
        if len(calls) == 3:
            third.set()

    monkeypatch.setattr(faulthandler, "dump_traceback_later", start)
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: canceled.append(True))
    async with event_loop_watchdog(0.12, clock):
        await asyncio.wait_for(third.wait(), 30)
        assert not canceled
    assert set(calls) == {(0.12, True)}
    assert canceled
