"""Test the notifications to the service manager on a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.telemetry.systemd import SystemdNotifier
from tests.virtual_time import VirtualClock


class FakeSystemd:
    """Receive notifications as systemd does."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": address}

    def received(self) -> list[str]:
        messages = []
        while True:
            try:
                messages.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return messages


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FakeSystemd]:
    systemd = FakeSystemd(str(tmp_path / "n") if request.param == "path" else f"@whalebridge-test-{os.getpid()}")
    yield systemd
    systemd.socket.close()


def test_systemd_receives_service_states(systemd: FakeSystemd) -> None:
    manager = SystemdNotifier(systemd.environ, VirtualClock())
    manager.started()
    manager.status("synced")
    manager.status("synced")
    manager.status("two\nlines")
    manager.started()
    manager.reloading()
    manager.reloaded()
    manager.stopping()
    ready, synced, lines, reloading, again, stopping = systemd.received()
    assert (ready, synced, lines, again) == ("READY=1", "STATUS=synced", "STATUS=two lines", "READY=1")
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert stopping.startswith("STOPPING=1\nSTATUS=shutting down")


@pytest.mark.parametrize(
    ("watchdog", "notification_count"),
    [
        ({"WATCHDOG_USEC": "1000000"}, 6),  # every half second
        (
            {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())},
            3,
        ),  # every second, with each status update
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, 0),  # another process
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({}, 0),
    ],
)
async def test_watchdog_is_notified_from_event_loop(
    systemd: FakeSystemd, watchdog: dict[str, str], notification_count: int
) -> None:
    clock = VirtualClock()
    manager = SystemdNotifier(systemd.environ | watchdog, clock)
    manager.started()
    running = asyncio.create_task(manager.run(lambda: "synced"))
    await clock.sleep(2.9)
    running.cancel()
    messages = systemd.received()
    assert (messages.count("STATUS=synced"), messages.count("WATCHDOG=1")) == (1, notification_count)


async def test_start_timeout_is_extended_until_started(systemd: FakeSystemd) -> None:
    clock = VirtualClock()
    manager = SystemdNotifier(systemd.environ, clock)
    running = asyncio.create_task(manager.run(lambda: "waiting for the outbox"))
    await clock.sleep(2.9)
    manager.started()
    await clock.sleep(2.9)
    running.cancel()
    extension = "EXTEND_TIMEOUT_USEC=30000000"
    assert systemd.received() == ["STATUS=waiting for the outbox", extension, extension, extension, "READY=1"]


async def test_service_manager_does_nothing_without_systemd() -> None:
    manager = SystemdNotifier({}, VirtualClock())
    manager.started()
    await manager.run(lambda: "synced")


def test_failed_notification_is_logged_once(tmp_path: Path) -> None:
    manager = SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "missing")}, VirtualClock())
    with capture_logs() as logs:
        manager.started()
        manager.status("synced")
    (line,) = logs
    assert (line["event"], line["message"], line["error"]) == (
        "systemd_notify_failed",
        "READY=1",
        "No such file or directory",
    )


def test_failed_notification_is_not_retried_when_socket_missing(tmp_path: Path) -> None:
    manager = SystemdNotifier({"NOTIFY_SOCKET": str(tmp_path / "missing")}, VirtualClock())
    with capture_logs():
        manager.started()
        manager.status("synced")
    assert (list(manager._pending), manager._status) == ([], "synced")


def test_service_manager_does_not_block_when_socket_is_full(systemd: FakeSystemd) -> None:
    manager = SystemdNotifier(systemd.environ, VirtualClock())
    with capture_logs() as logs:
        for number in range(2000):
            manager.status(f"{number}")
    assert [line["event"] for line in logs] == ["systemd_notify_failed"]


def test_status_is_sent_again_when_socket_was_full(systemd: FakeSystemd) -> None:
    manager = SystemdNotifier(systemd.environ, VirtualClock())
    with capture_logs():
        for number in range(2000):
            manager.status(f"{number}")
    assert "STATUS=1999" not in systemd.received()
    for _ in range(2):
        manager.status("1999")
    assert systemd.received() == ["STATUS=1999"]


async def test_state_changes_are_resent_in_order_when_socket_was_full(systemd: FakeSystemd) -> None:
    clock = VirtualClock()
    manager = SystemdNotifier(systemd.environ, clock)
    with capture_logs():
        for number in range(2000):
            manager.status(f"{number}")
        manager.started()
        manager.reloading()
        manager.reloaded()
    assert "READY=1" not in systemd.received()
    running = asyncio.create_task(manager.run(lambda: "synced"))
    await clock.sleep(3.9)
    running.cancel()
    first, second, third, *others = systemd.received()
    assert (first, second.partition("=")[0], third, others) == ("READY=1", "RELOADING", "READY=1", ["STATUS=synced"])
