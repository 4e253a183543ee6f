"""The settings of standard output as a sink."""

from __future__ import annotations

from typing import Any, Literal

from config.fields import setting
from config.sinks.common import EncodedSection


class StdoutSettings(EncodedSection):
    """Standard output: one JSON document a line."""

    type: Literal["stdout"] = setting("stdout", "The type of this sink.", reason="It is what makes it this one.")


def from_url(_: str, rest: str) -> dict[str, Any]:
    """Read ``stdout:``."""
    if rest:
        raise ValueError("nothing may follow the colon of stdout:")
    return {"type": "stdout"}
