"""Read a file that several runs of the bridge wrote, by the rules for consumers."""

from __future__ import annotations

from pathlib import Path

import msgspec

from tests.bridge_process import RecordDict

_LINE_PREFIX = b'{"version":1,'


class LineReader:
    """Verify at-least-once delivery: duplicates are identical, and no sequence is missing."""

    def __init__(self) -> None:
        self.records: list[RecordDict] = []
        self.duplicates = 0
        self._seen: dict[tuple[int, int], bytes] = {}

    def accept(self, line: bytes) -> None:
        """Process one line."""
        record = msgspec.json.decode(line)
        position = (record["epoch"], record["sequence"])
        if position in self._seen:
            assert self._seen[position] == line, f"{position} has changed"
            self.duplicates += 1
            return
        if record["sequence"] > 1:
            assert self._last() == (record["epoch"], record["sequence"] - 1), f"a gap before {position}"
        else:
            self._check_first(record)
        self._seen[position] = line
        self.records.append(record)

    def _check_first(self, record: RecordDict) -> None:
        assert record["type"] == "snapshot_started"
        assert record["epoch"] > self._last()[0]
        if self.records:
            epoch, sequence = self._last()
            assert record["snapshot"]["previous"] == {"epoch": epoch, "sequence": sequence}

    def _last(self) -> tuple[int, int]:
        return next(reversed(self._seen), (0, 0))

    @property
    def epoch_count(self) -> int:
        """Number of epochs."""
        return len({epoch for epoch, _ in self._seen})


def read_file(path: Path) -> LineReader:
    """Read a file of JSON lines; a line that a SIGKILL truncated is followed by the complete one."""
    reader = LineReader()
    for line in path.read_bytes().split(b"\n")[:-1]:
        reader.accept(line[line.rfind(_LINE_PREFIX) :])
    return reader
