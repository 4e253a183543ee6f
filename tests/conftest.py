"""Fixtures for the peers of the testbed; tests whose peers are not installed are skipped, or fail in CI."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import hypothesis
import pytest
import structlog

from tests.certificates import Authority
from tests.documentation import ROOT
from tests.golden import Golden
from tests.testbed import kafka as kafka_peer
from tests.testbed import nats as nats_peer
from tests.testbed.containerd import VERSIONS, Containerd, Version, components
from tests.testbed.dockerd import Docker
from tests.testbed.http_receiver import HttpReceiver
from tests.testbed.install import missing
from tests.testbed.kafka import Kafka
from tests.testbed.kafka_config import LISTENERS
from tests.testbed.nats import Nats

# The duration of an example depends more on the load of the machine than on the code.
hypothesis.settings.register_profile("whalebridge", deadline=None)
hypothesis.settings.load_profile("whalebridge")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell's "&" sets it, and child processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that rewrites the golden files."""
    parser.addoption("--update-golden", action="store_true", help="rewrite the texts in tests/golden")


# Files with tests of half a minute and more.
_LONGEST = {
    f"test_{name}.py"
    for name in ("backpressure", "delivery", "documented_commands", "history", "install", "restarts", "second_bridge")
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start the longest tests first: one that starts last runs alone, while the other processes have nothing to do."""
    items.sort(key=lambda item: item.path.name not in _LONGEST)


@pytest.fixture(autouse=True)
def _same_logs_after_each_test() -> Iterator[None]:
    """Restore the configuration of the logs, which commands change: tests of logs in the same process need it."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def golden(pytestconfig: pytest.Config, tmp_path: Path) -> Golden:
    """Compare texts with the files in tests/golden: `golden(file, text)`, `golden.entry(file, case, text)`."""
    return Golden(pytestconfig.getoption("--update-golden"), tmp_path=tmp_path)


def _require(*names: str) -> None:
    _require_installed(*names)
    if os.geteuid() != 0:
        _skip_or_fail("containers require root (sudo make test)")


def _require_installed(*names: str) -> None:
    if missing_components := missing(names):
        _skip_or_fail(f"not installed: {', '.join(missing_components)} (make testbed)")


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
    """A containerd of each version, shared by all tests: use unique ids, and leave it running."""
    with _run_containerd(request.param) as containerd:
        yield containerd


@pytest.fixture(params=VERSIONS)
def engine_factory(request: pytest.FixtureRequest) -> Iterator[Callable[[], Containerd]]:
    """Factory of containerds for one test, which may kill, suspend and restart them."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(_run_containerd(request.param))


@pytest.fixture
def docker(engine: Containerd) -> Iterator[Docker]:
    """A Docker engine on top of `engine`: its containers are in namespace `moby`."""
    _require("docker")
    with Docker(engine) as docker:
        yield docker


@pytest.fixture(scope="session")
def require() -> Callable[..., None]:
    """Function that skips the test, or fails in CI, if one of the named components is not installed."""
    return _require_installed


@pytest.fixture(scope="session")
def require_as_root() -> Callable[..., None]:
    """Like `require`, but requires root, too."""
    return _require


@pytest.fixture(scope="session", params=["javascript", "go", "java"])
def example_reader(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command of the reader in examples/ in each language: records on standard input, a state as JSON as output."""
    program = {"javascript": "node", "go": "go", "java": "javac"}[request.param]
    if shutil.which(program) is None:
        _skip_or_fail(f"not installed: {program}")
    examples = ROOT / "examples"
    if request.param == "javascript":
        return ["node", str(examples / "state.mjs")]
    directory = tmp_path_factory.mktemp(request.param)
    if request.param == "java":  # compiled once, because `java State.java` compiles it each time
        _require_installed(*kafka_peer.COMPONENTS)
        options = ["-Xlint:all", "-Werror", "-cp", kafka_peer.jars(), "-d", str(directory)]
        subprocess.run(["javac", *options, str(examples / "State.java")], check=True)
        return ["java", "-XX:TieredStopAtLevel=1", "-cp", f"{directory}:{kafka_peer.jars()}", "State"]
    built = str(directory / "state")
    environment = os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}
    subprocess.run(["go", "build", "-o", built, "state.go"], cwd=examples, env=environment, check=True)
    return [built]


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The certificate authority that the servers and clients of the testbed trust."""
    if shutil.which("openssl") is None:
        _skip_or_fail("not installed: openssl (apt-get install openssl)")
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def kafka(authority: Authority) -> Iterator[Kafka]:
    """One broker with every kind of listener, shared by all tests: use unique topics, and leave it running."""
    _require_installed(*kafka_peer.COMPONENTS)
    with Kafka(listeners=LISTENERS, authority=authority, settings=kafka_peer.LONG_SESSION_TIMEOUT) as kafka:
        yield kafka


@pytest.fixture
def kafka_factory() -> Iterator[Callable[..., Kafka]]:
    """Factory of Kafkas for one test, which may kill, suspend and restart them; takes the arguments of `Kafka`."""
    _require_installed(*kafka_peer.COMPONENTS)
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Kafka(*args, **options))


@pytest.fixture(scope="session")
def nats() -> Iterator[Nats]:
    """One server, shared by all tests: use unique streams and subjects, and leave it running."""
    _require_installed(*nats_peer.COMPONENTS)
    with Nats() as nats:
        yield nats


@pytest.fixture
def nats_factory() -> Iterator[Callable[..., Nats]]:
    """Factory of NATS servers for one test, which start in 0.1 s; takes the arguments of `Nats`."""
    _require_installed(*nats_peer.COMPONENTS)
    with contextlib.ExitStack() as stack:
        yield lambda *args, **options: stack.enter_context(Nats(*args, **options))


@pytest.fixture(scope="session")
def http_receiver() -> Iterator[HttpReceiver]:
    """One server, shared by all tests: use unique paths, and leave it running."""
    with HttpReceiver() as receiver:
        yield receiver


@pytest.fixture(scope="session")
def docker_host() -> Iterator[str]:
    """Address of a Docker engine that can publish ports: DOCKER_HOST if set, or an engine of the testbed."""
    if host := os.environ.get("DOCKER_HOST"):
        yield host
        return
    _require(*components("2.4"), "docker")
    with Containerd("2.4") as containerd, Docker(containerd, ports=True) as docker:
        yield docker.host
