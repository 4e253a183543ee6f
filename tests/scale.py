"""Number of repetitions in tests that repeat a fault."""

from __future__ import annotations

import os


def scaled(*, reduced: int, full: int) -> int:
    """Return `full` if WHALEBRIDGE_TEST_SCALE=full, as in `make test-long`, and otherwise `reduced`."""
    scale = os.environ.get("WHALEBRIDGE_TEST_SCALE", "reduced")
    return {"reduced": reduced, "full": full}[scale]
