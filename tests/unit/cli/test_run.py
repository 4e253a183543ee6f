"""The output of ``whalebridge run`` without a configured sink."""

from __future__ import annotations

import pytest

from bridge.cli import output
from bridge.cli.commands.run import _terminal_sink
from config.settings import load
from tests.records import RecordFactory


@pytest.mark.real_time
async def test_run_prints_readable_lines_on_terminal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    sinks = _terminal_sink(load())
    assert sinks is not None
    (sink,) = sinks.values()
    await sink.start()
    (record,) = RecordFactory().started_records(1)
    await sink.publish([record])
    await sink.close()
    (line,) = capfd.readouterr().out.splitlines()
    assert line.split()[1] == "started"
    assert record.subject in line


@pytest.mark.parametrize(
    ("terminal", "sinks"), [(False, None), (True, {"stdout": "stdout:"}), (True, {"events": "file:/tmp/x"})]
)
def test_run_uses_configured_sinks_or_json(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, sinks: dict[str, str] | None
) -> None:
    monkeypatch.setattr(output, "is_terminal", lambda: terminal)
    assert _terminal_sink(load({} if sinks is None else {"sinks": sinks})) is None
