"""Results of checks: one line each, or one JSON document."""

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
    """The result of one check.

    ``exit_status`` is the command's exit status because of this result; the highest of all results counts.
    """

    verdict: Verdict
    what: str
    found: str
    todo: str = ""
    status: int = 0

    @classmethod
    def of(cls, what: str, error: BridgeError) -> Finding:
        """Return the result for an error of the bridge."""
        return cls("error", what, str(error), status=CommandError.of(error).status)

    def document(self) -> dict[str, Any]:
        """Return the JSON object of --json."""
        return {"status": self.verdict, "check": self.what, "message": self.found, "hint": self.todo or None}

    def line(self, *, colors: bool) -> str:
        """Return the line of the text output."""
        status = f"{self.verdict:<{_WIDTH}}"
        styled = typer.style(status, fg=_COLORS[self.verdict]) if colors else status
        return f"{styled} {printable(f'{self.what}: {self.found}' + (f'; {self.todo}' if self.todo else ''))}"


def tell(findings: Sequence[Finding], *, as_json: bool, **more: Any) -> None:
    """Print the results; ``fields`` are the first fields of the JSON document."""
    if as_json:
        output.write_json({**more, "results": [finding.document() for finding in findings]})
        return
    colors = sys.stdout is not None and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    output.write("\n".join(finding.line(colors=colors) for finding in findings))
