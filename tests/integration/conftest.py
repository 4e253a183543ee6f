"""Marks what is in this folder: `pytest -m "not integration"` leaves it out, `make test` what is marked long."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.scale import scaled

BROKERS = {"kafka", "nats", "fresh_kafka", "fresh_nats", "docker_host"}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests of this folder (pytest hands over those of all folders); leave the long ones to test-long."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.integration)
    if scaled(part=1, full=0):
        config.hook.pytest_deselected(items=list(filter(_is_long, items)))
        items[:] = [item for item in items if not _is_long(item)]


def _is_long(item: pytest.Item) -> bool:
    """Whether a test takes minutes, or needs brokers."""
    needs = set(getattr(item, "fixturenames", ()))
    return item.get_closest_marker("long") is not None or not needs.isdisjoint(BROKERS)
