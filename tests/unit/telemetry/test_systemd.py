"""What the service manager is told, read from a real socket."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from bridge.telemetry.systemd import ServiceManager
from tests.clocks import ManualClock


class Systemd:
    """The other side."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": address}

    def told(self) -> list[str]:
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    systemd = Systemd(str(tmp_path / "n") if request.param == "path" else f"@whalebridge-test-{os.getpid()}")
    yield systemd
    systemd.socket.close()


def test_the_life_of_a_service(systemd: Systemd) -> None:
    manager = ServiceManager(systemd.environ, ManualClock())
    manager.ready()
    manager.status("live")
    manager.status("live")
    manager.status("two\nlines")
    manager.reloading()
    manager.ready()
    manager.stopping()
    ready, live, lines, reloading, again, stopping = systemd.told()
    assert (ready, live, lines, again) == ("READY=1", "STATUS=live", "STATUS=two lines", "READY=1")
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")
    assert stopping == "STOPPING=1\nSTATUS=stopping: handing over what is on its way"


@pytest.mark.parametrize(
    ("watchdog", "beats"),
    [
        ({"WATCHDOG_USEC": "1000000"}, 6),  # every half second
        (
            {"WATCHDOG_USEC": "60000000", "WATCHDOG_PID": str(os.getpid())},
            3,
        ),  # every second, as the status is looked at
        ({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, 0),  # meant for somebody else
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({}, 0),
    ],
)
async def test_the_watchdog_hears_from_the_event_loop(systemd: Systemd, watchdog: dict[str, str], beats: int) -> None:
    clock = ManualClock()
    manager = ServiceManager(systemd.environ | watchdog, clock)
    attending = asyncio.create_task(manager.attend(lambda: "live"))
    for _ in range(12):
        await asyncio.sleep(0)
        clock.pass_time(0.25)
    attending.cancel()
    told = systemd.told()
    assert (told.count("STATUS=live"), told.count("WATCHDOG=1")) == (1, beats)


async def test_without_systemd_nothing_is_told_and_nothing_waits() -> None:
    manager = ServiceManager({}, ManualClock())
    manager.ready()
    await manager.attend(lambda: "live")


def test_a_socket_that_takes_nothing_is_a_line_and_no_more(tmp_path: Path) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, ManualClock())
    with capture_logs() as logs:
        manager.ready()
        manager.status("live")
    (line,) = logs
    assert (line["event"], line["message"], line["error"]) == (
        "systemd_notify_failed",
        "READY=1",
        "No such file or directory",
    )


def test_what_nobody_will_ever_take_is_not_told_again(tmp_path: Path) -> None:
    manager = ServiceManager({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, ManualClock())
    with capture_logs():
        manager.ready()
        manager.status("live")
    assert (list(manager._due), manager._status) == ([], "live")


def test_a_full_socket_does_not_block(systemd: Systemd) -> None:
    manager = ServiceManager(systemd.environ, ManualClock())
    with capture_logs() as logs:
        for number in range(2000):
            manager.status(f"{number}")
    assert [line["event"] for line in logs] == ["systemd_notify_failed"]


def test_a_status_that_was_not_taken_is_told_again(systemd: Systemd) -> None:
    manager = ServiceManager(systemd.environ, ManualClock())
    with capture_logs():
        for number in range(2000):
            manager.status(f"{number}")
    assert "STATUS=1999" not in systemd.told()
    for _ in range(2):
        manager.status("1999")
    assert systemd.told() == ["STATUS=1999"]


async def test_changes_that_were_not_taken_are_told_again_in_their_order(systemd: Systemd) -> None:
    clock = ManualClock()
    manager = ServiceManager(systemd.environ, clock)
    with capture_logs():
        for number in range(2000):
            manager.status(f"{number}")
        manager.ready()
        manager.reloading()
        manager.ready()
    assert "READY=1" not in systemd.told()
    attending = asyncio.create_task(manager.attend(lambda: "live"))
    for _ in range(4):
        await asyncio.sleep(0)
        clock.pass_time(1)
    attending.cancel()
    first, second, third, *others = systemd.told()
    assert (first, second.partition("=")[0], third, others) == ("READY=1", "RELOADING", "READY=1", ["STATUS=live"])
