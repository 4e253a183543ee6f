"""How often the tests that repeat a fault repeat it."""

from __future__ import annotations

import os


def scaled(*, reduced: int, full: int) -> int:
    """A count for `make test` (part) and one for `make test-long`, which sets WHALEBRIDGE_TEST_SCALE=full."""
    scale = os.environ.get("WHALEBRIDGE_TEST_SCALE", "part")
    return {"part": reduced, "full": full}[scale]
