from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from bridge.cli import execute, record_inputs
from bridge.consumer.files import StdinReader
from bridge.core.record_encoder import parse_record
from sinks.state_table import TableState, apply_records
from tests.conformance.vectors import DIRECTORY
from tests.golden import Golden


@pytest.mark.real_time
@pytest.mark.parametrize(
    ("name", "status"), [("restart", 0), ("hole", 1), ("restart_without_state", 0), ("foreign_messages", 1)]
)
def test_audit_prints_report(name: str, status: int, capsys: pytest.CaptureFixture[str], golden: Golden) -> None:
    path = f"file:{DIRECTORY / name}.jsonl"
    assert execute(["audit", path]) == status
    output = capsys.readouterr().out
    golden.entry("audit_reports", name, output.replace(str(DIRECTORY), "DIRECTORY"))
    assert execute(["audit", path, "--json"]) == status
    report = json.loads(capsys.readouterr().out)
    assert report["holds"] is (status == 0) is (not report["findings"])


def test_audit_reads_several_inputs(capsys: pytest.CaptureFixture[str]) -> None:
    paths = [f"file:{DIRECTORY / name}.jsonl" for name in ("hole", "transitions", "several_sources")]
    assert execute(["audit", paths[0], paths[2]]) == 1
    assert "source node-2/" in capsys.readouterr().out


def test_audit_of_state_topic_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They would hold: of the records that are not there, none is known."""
    records = [parse_record(each) for each in (DIRECTORY / "transitions.jsonl").read_bytes().splitlines()]
    entries = apply_records(TableState(), records)[1]
    (target := tmp_path / "table.jsonl").write_bytes(b"".join(each.value + b"\n" for each in entries if each.value))
    assert execute(["audit", f"file:{target}"]) == 1
    out, error = capsys.readouterr()
    assert out == ""
    assert error == (
        f"whalebridge: message 1 of {target} is an entry of a state topic or bucket; "
        "use the topic or stream of the records\n"
    )


def test_audit_prints_some_findings_of_many(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = DIRECTORY / "transitions.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    target = tmp_path / "topic.jsonl"
    with target.open("wb") as file:
        file.writelines(lines)
        file.writelines([b"hello\n"] * 25)
    assert execute(["audit", f"file:{target}"]) == 1
    output = capsys.readouterr().out.splitlines()
    assert len([line for line in output if line.startswith("invalid: message")]) == 20
    assert "invalid: 5 more; --json lists all" in output
    assert output[-1] == "9 records, 0 repetitions, 0 heartbeats: 25 defects"


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.real_time
@pytest.mark.parametrize("total", [None, 200])
def test_progress_is_shown_on_terminal_only(total: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record_inputs, "_PROGRESS_SECONDS", 0)
    monkeypatch.setenv("TERM", "xterm")
    reader = StdinReader()
    reader.total = total
    for stderr in (FakeTerminal(), io.StringIO()):
        monkeypatch.setattr(sys, "stderr", stderr)
        with record_inputs.show_progress(reader) as advance:
            advance(1000)
            advance(500)
        assert ("1,500 messages read" in stderr.getvalue()) is stderr.isatty()
        assert bool(stderr.getvalue()) is stderr.isatty()


@pytest.mark.real_time
def test_progress_is_not_shown_for_short_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", FakeTerminal())
    with record_inputs.show_progress(StdinReader()) as advance:
        advance(10)
    assert sys.stderr.getvalue() == ""  # type: ignore[union-attr] # as set above
