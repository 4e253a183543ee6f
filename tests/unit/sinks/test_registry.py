from __future__ import annotations

import subprocess
import sys

from config.settings import load
from sinks.registry import make, make_all
from sinks.stdout import StdoutSink


def test_each_setting_makes_its_sink() -> None:
    settings = load({"sinks": ["stdout:"]}).sinks
    assert isinstance(make(settings[0]), StdoutSink)
    assert [type(sink) for sink in make_all(settings)] == [StdoutSink]


def test_a_sink_is_imported_only_where_it_is_asked_for() -> None:
    code = "import sys, sinks.registry; sys.exit('sinks.stdout' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
