"""Settings of the standard output sink."""

from __future__ import annotations

from typing import Any, Literal

from config.fields import field
from config.sinks.common import EncodedSinkSettings


class StdoutSettings(EncodedSinkSettings):
    """Standard output: one JSON document per line."""

    type: Literal["stdout"] = field("stdout", "Type of the sink.")


def parse_url(_: str, rest: str) -> dict[str, Any]:
    """Parse ``stdout:``."""
    if rest:
        raise ValueError("invalid URL; use stdout:, with nothing after the colon")
    return {"type": "stdout"}
