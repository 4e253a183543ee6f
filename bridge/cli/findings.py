"""What was looked at, and what was found: a line each with a verdict, or one JSON document."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import typer

from bridge.cli import output
from bridge.cli.failure import CommandError
from bridge.core.errors import BridgeError
from bridge.telemetry.text import printable

Verdict = Literal["ok", "not_found", "warning", "error"]
_COLORS = {"ok": "green", "not_found": "bright_black", "warning": "yellow", "error": "red"}
_WIDTH = max(map(len, _COLORS))


class Finding(NamedTuple):
    """One thing that was looked at.

    ``status`` is what the command ends with because of it; of several, the greatest counts.
    """

    verdict: Verdict
    what: str
    found: str
    todo: str = ""
    status: int = 0

    @classmethod
    def of(cls, what: str, error: BridgeError) -> Finding:
        """Return what an error means; its text says what to do."""
        return cls("error", what, str(error), status=CommandError.of(error).status)

    def document(self) -> dict[str, Any]:
        """Return the JSON object of --json."""
        return {"status": self.verdict, "check": self.what, "message": self.found, "hint": self.todo or None}

    def line(self, *, colors: bool) -> str:
        """Return the line of the text output."""
        verdict = f"{self.verdict:<{_WIDTH}}"
        told = typer.style(verdict, fg=_COLORS[self.verdict]) if colors else verdict
        return f"{told} {printable(f'{self.what}: {self.found}' + (f'; {self.todo}' if self.todo else ''))}"


def tell(findings: Sequence[Finding], *, as_json: bool, **more: Any) -> None:
    """Print all of them; ``more`` goes into the JSON document in front."""
    if as_json:
        output.write_json({**more, "results": [finding.document() for finding in findings]})
        return
    colors = sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    output.write("\n".join(finding.line(colors=colors) for finding in findings))
