from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable

import pytest

import sinks
import sinks.kafka
import sinks.nats
from bridge.clock import SystemClock
from bridge.core.errors import FatalError, TransientError
from config.settings import load
from config.sinks import parse_url
from sinks.factory import create_sink, create_sinks
from sinks.file import FileSink
from sinks.http.sink import HttpSink
from sinks.kafka.sink import KafkaSink
from sinks.nats.sink import NatsSink
from sinks.stdout import StdoutSink
from tests.golden import Golden
from tests.virtual_time import VirtualClock


def test_sink_is_created_from_settings() -> None:
    settings = load({"sinks": ["stdout:", "file:/tmp/x", "kafka://h:1/topic", "nats://h:1/subject", "http://h:1/path"]})
    assert isinstance(create_sink(settings.sinks["stdout"], VirtualClock()), StdoutSink)
    assert {id_: type(sink) for id_, sink in create_sinks(settings, VirtualClock()).items()} == {
        "stdout": StdoutSink,
        "file": FileSink,
        "kafka": KafkaSink,
        "nats": NatsSink,
        "http": HttpSink,
    }


def kafka_string(text: str) -> bytes:
    return len(text).to_bytes(2) + text.encode()


def nats_name(text: str) -> bytes:
    return b'"name": "%b"' % text.encode()


def http_header(text: str) -> bytes:
    return b"User-Agent: %b\r\n" % text.encode()


@pytest.mark.real_time
@pytest.mark.parametrize("configured", [None, "audit"])
@pytest.mark.parametrize(
    ("url", "setting", "encode"),
    [
        ("kafka://{}/topic", "client_id", kafka_string),
        ("nats://{}/subject", "connection_name", nats_name),
        ("http://{}/path", "user_agent", http_header),
    ],
)
async def test_sink_sends_its_name_to_broker(
    url: str, setting: str, encode: Callable[[str], bytes], configured: str | None
) -> None:
    received = b""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal received
        if url.startswith("nats"):  # its clients wait for the server's first line
            writer.write(b'INFO {"max_payload": 1024}\r\n')
        received += await reader.read(1000)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1") as server:
        port = server.sockets[0].getsockname()[1]
        own = parse_url(url.format(f"127.0.0.1:{port}")) | {setting: configured}
        sink = create_sinks(load({"host": "node-1", "sinks": {"main": own}}), SystemClock())["main"]
        with pytest.raises(TransientError):
            await sink.start()
        await sink.close()
    assert encode(configured or "whalebridge-node-1") in received


def test_sink_library_is_imported_only_when_configured() -> None:
    libraries = {"sinks.stdout", "aiokafka", "nats", "aiohttp"}
    code = f"import sys, sinks.factory; sys.exit(bool({libraries} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("url", "library"), [("kafka://h:1/topic", "aiokafka"), ("nats://h:1/subject", "nats")])
def test_missing_sink_library_is_named(url: str, library: str, monkeypatch: pytest.MonkeyPatch, golden: Golden) -> None:
    for name in [
        module for module in sys.modules if module.split(".")[0] == library or module.startswith(f"sinks.{url[:4]}")
    ]:
        monkeypatch.delitem(sys.modules, name)
    package = url.partition(":")[0]
    monkeypatch.setattr(sinks, package, getattr(sinks, package))  # restored afterwards, like the modules
    monkeypatch.setitem(sys.modules, library, None)  # as if the library were not installed
    with golden.error("sink_errors", f"{library} not installed", FatalError, library, "pip install 'whalebridge["):
        create_sink(load({"sinks": {"main": url}}).sinks["main"], VirtualClock())
