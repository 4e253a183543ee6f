"""Marks what is in this folder: `pytest -m "not integration"` leaves it out, `make test` what is marked long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scale import scaled


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of this folder (pytest hands over those of all folders); leave the long ones to test-long."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)
    if scaled(part=1, full=0):
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("long")])
        items[:] = [item for item in items if not item.get_closest_marker("long")]
