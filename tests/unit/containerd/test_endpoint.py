"""Where containerd is, and what is said of a socket that leads elsewhere or nowhere."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

import pytest

from bridge.containerd.endpoint import probe, socket_path
from bridge.core.errors import BridgeError, FatalError, TransientError

SETTINGS = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 5, 0, 0, 64, 0])
NOBODY = 65534


@asynccontextmanager
async def listening(path: Path, answer: bytes | None) -> AsyncIterator[None]:
    """Listen, and say ``answer`` to whoever comes; nothing at all where that is None."""
    silent: list[asyncio.StreamWriter] = []

    def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if answer is None:
            silent.append(writer)
            return
        writer.write(answer)
        writer.close()

    async with await asyncio.start_unix_server(serve, path):
        yield
        for writer in silent:
            writer.close()


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that others than root can come to, and in it another."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        public = Path(name)
        public.chmod(0o755)
        (public / "folder").mkdir()
        (public / "folder").chmod(0o755)
        yield public
        (public / "folder").chmod(0o700)


class TestAddresses:
    @pytest.mark.parametrize("address", ["/run/c.sock", "unix:/run/c.sock", "unix:///run/c.sock"])
    def test_three_forms_are_one(self, address: str) -> None:
        assert socket_path(address) == "/run/c.sock"

    def test_a_relative_path_is_made_absolute(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        assert socket_path("c.sock") == socket_path("unix://c.sock") == str(tmp_path / "c.sock")

    @pytest.mark.parametrize("address", ["", "unix:", "unix://", "tcp://host:1", "http://x", "a\0b"])
    def test_other_addresses_are_refused(self, address: str) -> None:
        with pytest.raises(FatalError, match="expected the path of a unix socket"):
            socket_path(address)


class TestProbe:
    async def test_a_server_of_http2_is_told_by_socket_and_process(self, tmp_path: Path) -> None:
        async with listening(tmp_path / "s", SETTINGS):
            peer = await probe(str(tmp_path / "s"), 5)
        found = (tmp_path / "s").stat()
        assert peer == (found.st_dev, found.st_ino, os.getpid())

    async def test_no_socket_may_come(self, tmp_path: Path) -> None:
        with pytest.raises(TransientError, match=r"^socket /.*/s does not exist; start containerd"):
            await probe(str(tmp_path / "s"), 5)

    async def test_a_socket_that_nobody_listens_at_may_come_alive(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as left_over:
            left_over.bind(str(tmp_path / "s"))
        with pytest.raises(TransientError, match=r"^/.*/s: connection refused; containerd is not running"):
            await probe(str(tmp_path / "s"), 5)

    async def test_what_is_no_socket_never_will_be(self, tmp_path: Path) -> None:
        (tmp_path / "s").touch()
        for path in (tmp_path, tmp_path / "s"):
            with pytest.raises(FatalError, match=r"^/.* is not a socket; use the path of containerd's socket"):
                await probe(str(path), 5)

    async def test_a_file_for_a_folder(self, tmp_path: Path) -> None:
        (tmp_path / "f").touch()
        with pytest.raises(FatalError, match=r"^/.*/f/s cannot be used as containerd's socket: Not a directory"):
            await probe(str(tmp_path / "f" / "s"), 5)

    async def test_a_path_too_long_for_the_kernel(self, tmp_path: Path) -> None:
        folder = tmp_path / ("x" * 100)
        folder.mkdir()
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "s"))
        (tmp_path / "s").rename(folder / "s")
        with pytest.raises(FatalError, match=r"cannot be used as containerd's socket: AF_UNIX path too long"):
            await probe(str(folder / "s"), 5)

    @pytest.mark.parametrize("forbidden", ["folder", "folder/s"])
    async def test_a_forbidden_socket_wants_sudo(self, public: Path, forbidden: str) -> None:
        path = public / "folder" / "s"
        async with listening(path, SETTINGS):
            os.chmod(public / forbidden, 0)
            with as_nobody(), pytest.raises(FatalError) as caught:
                await probe(str(path), 5)
        assert str(caught.value) == f"{path}: permission denied; run as root or with the socket's group"

    @pytest.mark.parametrize(
        ("answer", "error", "told"),
        [
            (b"HTTP/1.1 400 Bad Request\r\n", FatalError, r"it speaks HTTP/1 \(Docker's API\?\)"),
            (b"220 mail.example.org ready\r\n", FatalError, "it does not speak gRPC"),
            (b"hm", FatalError, "it does not speak gRPC"),
            (b"", TransientError, "closed the connection: not a containerd socket, or containerd is shutting down"),
            (None, TransientError, "within 0.05 s: containerd is hung, or this is not its socket"),
        ],
    )
    async def test_what_speaks_no_grpc(
        self, tmp_path: Path, answer: bytes | None, error: type[BridgeError], told: str
    ) -> None:
        async with listening(tmp_path / "s", answer):
            with pytest.raises(error, match=told):
                await probe(str(tmp_path / "s"), 0.05 if answer is None else 5)

    async def test_a_full_queue_of_connections_is_no_verdict(self, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as other:
            server.bind(str(tmp_path / "s"))
            server.listen(0)
            other.connect(str(tmp_path / "s"))
            with pytest.raises(TransientError):
                await probe(str(tmp_path / "s"), 0.05)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Be a user without rights, where we are root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
