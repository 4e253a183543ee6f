"""Run the commands of docs/operations.md that need no broker."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.documentation import code_blocks

OPERATIONS = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()


def record(sequence: int, *, host: str = "n1", epoch: int = 5, type_: str = "present", first: int = 0) -> str:
    lost = {"epoch": epoch, "first": first, "last": sequence} if first else None
    document: dict[str, Any] = {"type": type_, "host": host, "engine": {"id": "e"}, "lost": lost}
    return json.dumps({**document, "epoch": epoch, "sequence": sequence})


def test_gap_check_prints_missing_sequence_ranges() -> None:
    (script,) = code_blocks(OPERATIONS, "bash")
    reader, _, rest = script.partition("|")
    assert reader.startswith("kcat ")
    topic = [
        record(1),
        record(2),
        record(2, type_="heartbeat"),
        record(2),
        record(9, type_="lost", first=3),
        record(10),
        record(13),
        record(1, host="n2"),
        record(1, host="n2", epoch=6),
        record(3, host="n2", epoch=6),
    ]
    process = subprocess.run(["bash", "-c", rest], input="\n".join(topic), capture_output=True, text=True, check=True)
    assert process.stdout.splitlines() == ["n1 e 5 missing 11 to 12", "n2 e 6 missing 2 to 2"]
