"""Results of checks: one line each, or one JSON document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import typer

from bridge.cli import output
from bridge.cli.errors import CommandError
from bridge.core.errors import BridgeError
from bridge.telemetry.safe_text import printable

Status = Literal["ok", "not_found", "warning", "error"]
_COLORS = {"ok": "green", "not_found": "bright_black", "warning": "yellow", "error": "red"}
_STATUS_WIDTH = max(map(len, _COLORS))


class CheckResult(NamedTuple):
    """The result of one check.

    ``exit_status`` is the command's exit status because of this result; the highest of all results counts.
    """

    status: Status
    subject: str
    message: str
    hint: str = ""
    exit_status: int = 0

    @classmethod
    def from_error(cls, subject: str, error: BridgeError) -> CheckResult:
        """Return the result for an error of the bridge."""
        return cls("error", subject, str(error), exit_status=CommandError.from_error(error).exit_status)

    def to_json(self) -> dict[str, Any]:
        """Return the JSON object of --json."""
        return {"status": self.status, "check": self.subject, "message": self.message, "hint": self.hint or None}

    def to_line(self, *, colors: bool) -> str:
        """Return the line of the text output."""
        status = f"{self.status:<{_STATUS_WIDTH}}"
        styled = typer.style(status, fg=_COLORS[self.status]) if colors else status
        return f"{styled} {printable(f'{self.subject}: {self.message}' + (f'; {self.hint}' if self.hint else ''))}"


def print_results(results: Sequence[CheckResult], *, as_json: bool, **fields: Any) -> None:
    """Print the results; ``fields`` are the first fields of the JSON document."""
    if as_json:
        output.write_json({**fields, "results": [result.to_json() for result in results]})
        return
    colors = output.is_colored()
    output.write("\n".join(result.to_line(colors=colors) for result in results))
