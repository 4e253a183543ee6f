"""Test socket addresses and the errors of probing a socket that is missing or not containerd's."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from bridge.clock import SystemClock
from bridge.containerd.socket_probe import probe, socket_path
from bridge.core.errors import BridgeError, FatalError, TransientError
from tests.golden import Golden

SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 5, 0, 0, 64, 0])
UNPRIVILEGED_UID = 65534


@asynccontextmanager
async def listen(path: Path, response: bytes | None) -> AsyncIterator[None]:
    """Listen, and send ``response`` to each client; keep the connection open and silent if it is None."""
    silent: list[asyncio.StreamWriter] = []

    def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if response is None:
            silent.append(writer)
            return
        writer.write(response)
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        yield
        for writer in silent:
            writer.close()


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """Provide a directory, with a subdirectory, that users other than root can access."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        public_directory = Path(name)
        public_directory.chmod(0o755)
        (public_directory / "directory").mkdir()
        (public_directory / "directory").chmod(0o755)
        yield public_directory
        (public_directory / "directory").chmod(0o700)


class TestAddresses:
    @pytest.mark.parametrize("address", ["/run/c.sock", "unix:/run/c.sock", "unix:///run/c.sock"])
    def test_socket_path_accepts_path_and_unix_urls(self, address: str) -> None:
        assert socket_path(address) == "/run/c.sock"

    def test_socket_path_is_absolute(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        assert socket_path("c.sock") == socket_path("unix://c.sock") == str(tmp_path / "c.sock")

    @pytest.mark.parametrize("address", ["", "unix:", "unix://", "tcp://host:1", "http://x", "a\0b"])
    def test_socket_path_rejects_other_addresses(self, address: str, golden: Golden) -> None:
        with golden.error("containerd_errors", f"address {address!r}", FatalError, repr(address)):
            socket_path(address)


class TestProbe:
    async def test_probe_returns_socket_identity_and_pid_of_http2_server(self, tmp_path: Path) -> None:
        async with listen(tmp_path / "s", SETTINGS):
            peer = await probe(str(tmp_path / "s"), 5, SystemClock())
        status = (tmp_path / "s").stat()
        assert peer == (status.st_dev, status.st_ino, os.getpid())

    async def test_probe_raises_transient_error_when_socket_is_missing(self, tmp_path: Path, golden: Golden) -> None:
        with golden.error("containerd_errors", "no socket", TransientError, tmp_path / "s"):
            await probe(str(tmp_path / "s"), 5, SystemClock())

    async def test_probe_raises_transient_error_when_nothing_listens(self, tmp_path: Path, golden: Golden) -> None:
        with socket.socket(socket.AF_UNIX) as unused:
            unused.bind(str(tmp_path / "s"))
        with golden.error("containerd_errors", "a socket without a listener", TransientError, tmp_path / "s"):
            await probe(str(tmp_path / "s"), 5, SystemClock())

    async def test_probe_raises_fatal_error_when_path_is_not_a_socket(self, tmp_path: Path, golden: Golden) -> None:
        (tmp_path / "s").touch()
        for path in (tmp_path, tmp_path / "s"):
            with golden.error("containerd_errors", "not a socket", FatalError, path, SOCKET=path):
                await probe(str(path), 5, SystemClock())

    async def test_probe_raises_fatal_error_when_parent_is_a_file(self, tmp_path: Path, golden: Golden) -> None:
        (tmp_path / "f").touch()
        with golden.error("containerd_errors", "below a file", FatalError, tmp_path / "f" / "s", "Not a directory"):
            await probe(str(tmp_path / "f" / "s"), 5, SystemClock())

    async def test_probe_raises_fatal_error_when_path_is_too_long(self, tmp_path: Path, golden: Golden) -> None:
        directory = tmp_path / ("x" * 100)
        directory.mkdir()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "s"))
        (tmp_path / "s").rename(directory / "s")
        with golden.error("containerd_errors", "path too long", FatalError, directory / "s", "AF_UNIX path too long"):
            await probe(str(directory / "s"), 5, SystemClock())

    @pytest.mark.parametrize("forbidden", ["directory", "directory/s"])
    async def test_probe_raises_permission_error_with_hint(
        self, public_directory: Path, forbidden: str, golden: Golden
    ) -> None:
        path = public_directory / "directory" / "s"
        async with listen(path, SETTINGS):
            os.chmod(public_directory / forbidden, 0)
            with (
                golden.error("containerd_errors", "permission denied", FatalError, path, SOCKET=path),
                as_unprivileged_user(),
            ):
                await probe(str(path), 5, SystemClock())

    @pytest.mark.parametrize(
        ("response", "error"),
        [
            (b"HTTP/1.1 400 Bad Request\r\n", FatalError),
            (b"220 mail.example.org ready\r\n", FatalError),
            (b"hm", FatalError),
            (b"", TransientError),
            (None, TransientError),
        ],
    )
    async def test_probe_raises_when_peer_does_not_speak_grpc(
        self, tmp_path: Path, response: bytes | None, error: type[BridgeError], golden: Golden
    ) -> None:
        async with listen(tmp_path / "s", response):
            with golden.error("containerd_errors", f"response {response!r}", error, tmp_path / "s"):
                await probe(str(tmp_path / "s"), 0.05 if response is None else 5, SystemClock())

    async def test_probe_raises_transient_error_when_backlog_is_full(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other:
            server.bind(str(tmp_path / "s"))
            server.listen(0)
            other.connect(str(tmp_path / "s"))
            with pytest.raises(TransientError):
                await probe(str(tmp_path / "s"), 0.05, SystemClock())


@contextmanager
def as_unprivileged_user() -> Iterator[None]:
    """Run the block as an unprivileged user if the tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(UNPRIVILEGED_UID)
    try:
        yield
    finally:
        os.seteuid(0)
