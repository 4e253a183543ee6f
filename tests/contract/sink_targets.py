"""Where each kind of sink publishes to, and how that fails."""

from __future__ import annotations

import contextlib
import importlib
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from bridge.clock import SystemClock
from bridge.core.errors import BridgeError, DisconnectedError, FatalError, TransientError
from bridge.core.ports import Sink
from config.settings import load
from sinks.factory import create_sink
from sinks.stdout import StdoutSink
from tests.integration.nats_reading import StreamReader
from tests.integration.target_checks import retry_until_done
from tests.testbed.http_receiver import HttpReceiver
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats
from tests.testbed.server import HOST, Servers
from tests.testbed.tcp_proxy import TcpProxy

EXAMPLE = Path(__file__).parents[1] / "example_sink"
_numbers = itertools.count()


class Target:
    """A place for records. `unusable_error` is what a start raises if the place exists, but cannot take records."""

    unusable_error: ClassVar[type[BridgeError]] = FatalError

    def make(self) -> Sink:
        """Return a sink that is not started."""
        raise NotImplementedError

    async def stored(self) -> list[bytes]:
        """Return the stored documents in order."""
        raise NotImplementedError

    async def make_unusable(self) -> Sink:
        """Return a sink that is not started, and whose target cannot take records."""
        raise NotImplementedError

    def unreachable(self) -> contextlib.AbstractContextManager[tuple[Sink, Callable[[], object]]]:
        """Return a sink whose peer is unreachable, and a function that makes the peer reachable."""
        raise NotImplementedError

    def hanging(self) -> contextlib.AbstractAsyncContextManager[tuple[Sink, Callable[[], object]]]:
        """Return a started sink whose peer hangs, and a function that ends this."""
        raise NotImplementedError


class StdoutTarget(Target):
    """A file behind the descriptor of standard output."""

    unusable_error = DisconnectedError

    def __init__(self, directory: Path, stack: contextlib.ExitStack) -> None:
        self._file = directory / "stdout"
        self._stack = stack

    def make(self) -> Sink:
        return StdoutSink(self._stack.enter_context(self._file.open("ab")).fileno())

    async def stored(self) -> list[bytes]:
        return self._file.read_bytes().splitlines()

    async def make_unusable(self) -> Sink:
        with self._file.open("ab") as file:
            return StdoutSink(file.fileno())

    @contextlib.asynccontextmanager
    async def hanging(self) -> AsyncIterator[tuple[Sink, Callable[[], object]]]:
        """Yield a sink on a pipe whose reader does not read."""
        read_end, write_end = os.pipe()
        sink = StdoutSink(write_end)
        await sink.start()
        yield sink, lambda: os.close(read_end)
        os.close(write_end)


class FileTarget(Target):
    """A file in a directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def make(self) -> Sink:
        return create_sink(load({"sinks": [f"file:{self._directory}/events"]}).sinks["file"], SystemClock())

    async def stored(self) -> list[bytes]:
        return (self._directory / "events").read_bytes().splitlines()

    async def make_unusable(self) -> Sink:
        (self._directory / "events").mkdir()
        return self.make()

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[tuple[Sink, Callable[[], object]]]:
        self._directory = self._directory / "missing"
        yield self.make(), self._directory.mkdir


class ExampleTarget(FileTarget):
    """The directory of the sink in tests/example_sink, which has no order."""

    def make(self) -> Sink:
        importlib.invalidate_caches()
        return create_sink(load({"sinks": [f"directory:{self._directory}"]}).sinks["directory"], SystemClock())

    async def stored(self) -> list[bytes]:
        paths = sorted(self._directory.iterdir(), key=lambda path: int(path.name.rpartition("-")[2]))
        return [path.read_bytes() for path in paths]

    async def make_unusable(self) -> Sink:
        self._directory = self._directory / "missing"
        return self.make()


class ServerTarget(Target):
    """A topic or stream of its own, on a server that all tests share."""

    def __init__(self, server: Servers, port: int) -> None:
        self.address = f"{HOST}:{port}"
        self._server = server
        self._port = port
        self._name = f"contract{next(_numbers)}"

    def settings(self, *, address: str = "", timeout: str = "30s") -> dict[str, Any]:
        """Return the settings of a sink."""
        raise NotImplementedError

    def make(self, **options: Any) -> Sink:
        return create_sink(load({"sinks": {"main": self.settings(**options)}}).sinks["main"], SystemClock())

    @contextlib.contextmanager
    def unreachable(self) -> Iterator[tuple[Sink, Callable[[], object]]]:
        with TcpProxy(HOST, self._port) as proxy:
            proxy.refuse()
            yield self.make(address=proxy.address), proxy.restore

    @contextlib.asynccontextmanager
    async def hanging(self) -> AsyncIterator[tuple[Sink, Callable[[], object]]]:
        """Yield a sink with a timeout of 2 s, whose server is suspended."""
        sink = self.make(timeout="2s")
        await retry_until_done(sink.start)  # a loaded machine may exceed the timeout
        self._server.suspend()
        try:
            yield sink, self._server.resume
        finally:
            self._server.resume()
            await sink.close()


class KafkaTarget(ServerTarget):
    """A topic of its own."""

    def __init__(self, kafka: Kafka) -> None:
        super().__init__(kafka, kafka.nodes[0].ports["plaintext"])
        self._kafka = kafka

    def settings(self, *, address: str = "", timeout: str = "30s") -> dict[str, Any]:
        servers = address or self._kafka.bootstrap
        return {"type": "kafka", "bootstrap_servers": servers, "topic": self._name, "request_timeout": timeout}

    async def stored(self) -> list[bytes]:
        return [each.value or b"" for each in self._kafka.admin.records(self._name)]

    async def make_unusable(self) -> Sink:
        self._kafka.admin.create_topic(self._name, settings={"cleanup.policy": "compact"})
        return self.make()


class NatsTarget(ServerTarget):
    """A stream of its own."""

    unusable_error = TransientError  # any stream can be changed at any time

    def __init__(self, nats: Nats) -> None:
        super().__init__(nats, nats.nodes[0].port)
        self._nats = nats

    def settings(self, *, address: str = "", timeout: str = "30s") -> dict[str, Any]:
        servers = address or self._nats.urls[0].partition("//")[2]
        return {"type": "nats", "servers": servers, "subject_prefix": self._name, "timeout": timeout}

    async def stored(self) -> list[bytes]:
        async with StreamReader(self._nats) as reader:
            return [each.data for each in await reader.read_stored(f"WHALEBRIDGE_{self._name.upper()}")]

    async def make_unusable(self) -> Sink:
        async with StreamReader(self._nats) as reader:
            stream, subjects = f"WHALEBRIDGE_{self._name.upper()}", [f"{self._name}.>"]
            await reader.jetstream.add_stream(name=stream, subjects=subjects, no_ack=True)
        return self.make()


class HttpTarget(ServerTarget):
    """A path of its own; `mode` is that of CloudEvents, or `otlp`."""

    def __init__(self, receiver: HttpReceiver, mode: str) -> None:
        super().__init__(receiver, receiver.port)
        self._receiver = receiver
        self._encoding = {"encoding": "otlp", "cloudevents": "none"} if mode == "otlp" else {"cloudevents": mode}

    def settings(self, *, address: str = "", timeout: str = "30s", path: str = "") -> dict[str, Any]:
        url = f"http://{address or self.address}/{path or self._name}"
        return {"type": "http", "url": url, "timeout": timeout, **self._encoding}

    async def stored(self) -> list[bytes]:
        return self._receiver.stored(self._name)

    async def make_unusable(self) -> Sink:
        return self.make(path=f"moved/{self._name}")


def make_target(kind: str, request: pytest.FixtureRequest, directory: Path, stack: contextlib.ExitStack) -> Target:
    """Return the target of a kind of sink."""
    match kind:
        case "stdout":
            return StdoutTarget(directory, stack)
        case "file":
            return FileTarget(directory)
        case "example":
            request.getfixturevalue("monkeypatch").syspath_prepend(EXAMPLE)
            return ExampleTarget(directory)
        case "kafka":
            return KafkaTarget(request.getfixturevalue("kafka"))
        case "http-binary" | "http-batched" | "http-otlp":
            return HttpTarget(request.getfixturevalue("http_receiver"), kind.removeprefix("http-"))
        case _:
            return NatsTarget(request.getfixturevalue("nats"))
