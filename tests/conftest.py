"""The testbed's peers as fixtures; where they are not installed a test is skipped, and in CI it fails."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from typing import NoReturn

import hypothesis
import pytest

from tests.certificates import Authority
from tests.golden import Golden
from tests.testbed import broker_images
from tests.testbed import kafka as kafka_peer
from tests.testbed import nats as nats_peer
from tests.testbed.containerd import VERSIONS, Containerd, Version, components
from tests.testbed.dockerd import Docker
from tests.testbed.install import missing
from tests.testbed.kafka import Kafka
from tests.testbed.kafka_config import LISTENERS
from tests.testbed.nats import Nats

# How long an example takes says more of what else the machine does than of the code.
hypothesis.settings.register_profile("whalebridge", deadline=None)
hypothesis.settings.load_profile("whalebridge")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as behind a shell's "&": what tests start would ignore it, too
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that rewrites the golden files."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the texts in tests/golden")


@pytest.fixture(scope="session")
def golden(pytestconfig: pytest.Config) -> Golden:
    """Compares texts with the files in tests/golden: `golden(file, text)`, `golden.entry(file, case, text)`."""
    return Golden(pytestconfig.getoption("--update-golden"))


def _require(*names: str) -> None:
    _require_installed(*names)
    if os.geteuid() != 0:
        _skip_or_fail("containers need root (sudo make test)")


def _require_installed(*names: str) -> None:
    if absent := missing(names):
        _skip_or_fail(f"not installed: {', '.join(absent)} (make testbed)")


def _skip_or_fail(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


@contextlib.contextmanager
def _run_containerd(version: Version) -> Iterator[Containerd]:
    _require(*components(version))
    with Containerd(version) as containerd:
        containerd.import_image()
        yield containerd


@pytest.fixture(scope="session", params=VERSIONS)
def engine(request: pytest.FixtureRequest) -> Iterator[Containerd]:
    """A containerd of each version, shared by all tests: use ids of your own, and leave it running."""
    with _run_containerd(request.param) as containerd:
        yield containerd


@pytest.fixture(params=VERSIONS)
def engine_factory(request: pytest.FixtureRequest) -> Iterator[Callable[[], Containerd]]:
    """Makes containerds that the test has for itself, to be killed, suspended and restarted."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(_run_containerd(request.param))


@pytest.fixture
def docker(engine: Containerd) -> Iterator[Docker]:
    """A Docker engine on top of `engine`: its containers are in namespace `moby`."""
    _require("docker")
    with Docker(engine) as docker:
        yield docker


@pytest.fixture
def require() -> Callable[..., None]:
    """Called with names of components: the test does without what they bring as it does without a peer."""
    return _require_installed


@pytest.fixture(scope="session")
def require_as_root() -> Callable[..., None]:
    """The same for what needs root besides."""
    return _require


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """Whom the testbed's servers and clients trust."""
    if shutil.which("openssl") is None:
        _skip_or_fail("not installed: openssl (apt-get install openssl)")
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def kafka(authority: Authority) -> Iterator[Kafka]:
    """One broker with every kind of listener, shared by all tests: use topics of your own, and leave it running."""
    _require_installed(*kafka_peer.COMPONENTS)
    with Kafka(listeners=LISTENERS, authority=authority, settings=kafka_peer.LONG_SESSION_TIMEOUT) as kafka:
        yield kafka


@pytest.fixture
def kafka_factory() -> Iterator[Callable[..., Kafka]]:
    """Makes Kafkas that the test has for itself, called like the class, to be killed, suspended and restarted."""
    _require_installed(*kafka_peer.COMPONENTS)
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Kafka(*args, **options))


@pytest.fixture(scope="session")
def nats() -> Iterator[Nats]:
    """One server, shared by all tests: use streams and subjects of your own, and leave it running."""
    _require_installed(*nats_peer.COMPONENTS)
    with Nats() as nats:
        yield nats


@pytest.fixture
def nats_factory() -> Iterator[Callable[..., Nats]]:
    """Makes NATS servers that the test has for itself, called like the class (they start in 0.1 s)."""
    _require_installed(*nats_peer.COMPONENTS)
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Nats(*args, **options))


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """Where a Docker engine answers that can publish ports: the one that DOCKER_HOST names, else one of the testbed.

    What images are made of is there, too.
    """
    _require_installed(*broker_images.COMPONENTS)
    if given := os.environ.get("DOCKER_HOST"):
        yield given
        return
    _require(*components("2.4"), "docker")
    with Containerd("2.4") as containerd, Docker(containerd, ports=True) as docker:
        yield docker.host
