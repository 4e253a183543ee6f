"""The table of the state machine in ARCHITECTURE.md, generated from the table that runs.

``python -m tests.state_machine_table`` writes it between the page's markers; with ``--check`` it only compares.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from bridge.core.container_state import NoTask, Running
from bridge.core.task_machine import TABLE, Handler

PAGE = Path(__file__).parents[1] / "ARCHITECTURE.md"
_BLOCK = re.compile(
    r"(?<=<!-- state machine table: make docs -->\n).*(?=<!-- end of the state machine table -->)", re.S
)


def table() -> str:
    """Return the table: one line for each input, one column for each kind of state."""
    lines = ["| input | no task, or one that was created | a task is running |", "|---|---|---|"]
    for input_, handlers in TABLE.items():
        cells = (_summary(handlers[state]) for state in (NoTask, Running))
        lines.append(f"| `{input_.__name__}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _summary(handler: Handler) -> str:
    return (handler.__doc__ or "").partition("\n\n")[0].replace("\n    ", " ")


def main(*, check: bool, path: Path = PAGE) -> int:
    """Write the table, or check whether it is up to date; return the exit status."""
    page = path.read_text(encoding="utf-8")
    generated = _BLOCK.sub(lambda _: table(), page)
    if check and generated != page:
        print(f"{path}: out of date; run make docs", file=sys.stderr)
        return 1
    if not check:
        path.write_text(generated, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv))
