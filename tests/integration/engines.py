"""On which containerds a test runs: on all versions, unless it is marked with one of these."""

from __future__ import annotations

import pytest

# For tests in which the version has no part: they prove something about whalebridge, its proxy or a broker.
one_engine = pytest.mark.parametrize("engine", ["2.4"], indirect=True)
one_engine_factory = pytest.mark.parametrize("engine_factory", ["2.4"], indirect=True)
