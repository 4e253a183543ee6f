"""Fixtures for the tests of the image and the chart; tests on a real node use the fixture `node`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.testbed import bridge_image, kubernetes
from tests.testbed.containerd import Containerd, components
from tests.testbed.dockerd import Docker
from tests.testbed.kubernetes import Node


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Add the marker to the tests of this directory; pytest passes those of all directories."""
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.kubernetes)


@pytest.fixture(scope="session")
def docker_with_image(
    require_as_root: Callable[..., None], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Docker]:
    """Return a Docker engine that has built the image."""
    require_as_root(*components("2.4"), "docker", *bridge_image.COMPONENTS)
    with Containerd("2.4") as containerd:
        containerd.import_image()
        with Docker(containerd) as docker:
            bridge_image.build(docker, tmp_path_factory.mktemp("base"))
            yield docker


@pytest.fixture(scope="session")
def node(
    require_as_root: Callable[..., None], docker_with_image: Docker, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Node]:
    """Return a Kubernetes node that has the image."""
    require_as_root(*kubernetes.COMPONENTS)
    archive = tmp_path_factory.mktemp("image") / "whalebridge.tar"
    docker_with_image.docker("save", f"--output={archive}", bridge_image.NAME)
    with Node() as node:
        node.ctr("images", "import", str(archive), namespace="k8s.io", timeout=300)
        yield node
