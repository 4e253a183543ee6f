"""The testbed's peers as fixtures; where they are not installed a test is skipped, and in CI it fails."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator

import pytest

from tests.testbed.containerd import VERSIONS, Containerd, Version, components
from tests.testbed.dockerd import Docker
from tests.testbed.install import missing


def _require(*names: str) -> None:
    if absent := missing(names):
        reason = f"not installed: {', '.join(absent)} (make testbed)"
    elif os.geteuid() != 0:
        reason = "containers need root (sudo make test)"
    else:
        return
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def _running(version: Version) -> Iterator[Containerd]:
    _require(*components(version))
    with Containerd(version) as containerd:
        containerd.import_image()
        yield containerd


@pytest.fixture(scope="session", params=VERSIONS)
def engine(request: pytest.FixtureRequest) -> Iterator[Containerd]:
    """A containerd of each version, shared by all tests: use ids of your own, and leave it running."""
    with _running(request.param) as containerd:
        yield containerd


@pytest.fixture(params=VERSIONS)
def fresh_engine(request: pytest.FixtureRequest) -> Iterator[Callable[[], Containerd]]:
    """Makes containerds that the test has for itself, to be killed, suspended and restarted."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(_running(request.param))


@pytest.fixture
def docker(engine: Containerd) -> Iterator[Docker]:
    """A Docker engine on top of `engine`: its containers are in namespace `moby`."""
    _require("docker")
    with Docker(engine) as docker:
        yield docker
