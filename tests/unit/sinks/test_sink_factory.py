from __future__ import annotations

import subprocess
import sys

import pytest

import sinks
import sinks.kafka
import sinks.nats
from bridge.core.errors import FatalError
from config.settings import load
from sinks.factory import create_sink, create_sinks
from sinks.file import FileSink
from sinks.kafka.sink import KafkaSink
from sinks.nats.sink import NatsSink
from sinks.stdout import StdoutSink
from tests.golden import Golden
from tests.virtual_time import VirtualClock


def test_sink_is_created_from_settings() -> None:
    settings = load({"sinks": ["stdout:", "file:/tmp/x", "kafka://h:1/topic", "nats://h:1/subject"]}).sinks
    assert isinstance(create_sink(settings["stdout"], VirtualClock()), StdoutSink)
    assert {id_: type(sink) for id_, sink in create_sinks(settings, VirtualClock()).items()} == {
        "stdout": StdoutSink,
        "file": FileSink,
        "kafka": KafkaSink,
        "nats": NatsSink,
    }


def test_sink_library_is_imported_only_when_configured() -> None:
    code = "import sys, sinks.factory; sys.exit(bool({'sinks.stdout', 'aiokafka', 'nats'} & sys.modules.keys()))"
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
