from __future__ import annotations

import subprocess
import sys

import pytest

from bridge.core.errors import FatalError
from config.settings import load
from sinks.file import FileSink
from sinks.kafka.sink import KafkaSink
from sinks.nats.sink import NatsSink
from sinks.registry import make, make_all
from sinks.stdout import StdoutSink
from tests.golden import Golden


def test_each_setting_makes_its_sink() -> None:
    settings = load({"sinks": ["stdout:", "file:/tmp/x", "kafka://h:1/topic", "nats://h:1/subject"]}).sinks
    assert isinstance(make(settings["stdout"]), StdoutSink)
    assert {id_: type(sink) for id_, sink in make_all(settings).items()} == {
        "stdout": StdoutSink,
        "file": FileSink,
        "kafka": KafkaSink,
        "nats": NatsSink,
    }


def test_a_sink_and_its_library_are_imported_only_where_they_are_asked_for() -> None:
    code = "import sys, sinks.registry; sys.exit(bool({'sinks.stdout', 'aiokafka', 'nats'} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(("url", "library"), [("kafka://h:1/topic", "aiokafka"), ("nats://h:1/subject", "nats")])
def test_a_library_that_is_not_installed_is_named(
    url: str, library: str, monkeypatch: pytest.MonkeyPatch, golden: Golden
) -> None:
    for name in [each for each in sys.modules if each.split(".")[0] == library or each.startswith(f"sinks.{url[:4]}")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not there
    with golden.error("sink_errors", f"{library} not installed", FatalError, library, "pip install 'whalebridge["):
        make(load({"sinks": {"main": url}}).sinks["main"])
