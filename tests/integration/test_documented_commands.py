"""Every command that README.md and docs/ tell people to type does what it is said to do, on real peers."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bridge.cli.control import Control
from examples import demo
from tests.bridge_process import BridgeProcess
from tests.documents import PAGES, commands
from tests.eventually import eventually
from tests.integration import test_install
from tests.integration.commands import Yard
from tests.integration.typing_place import Place, interrupt, terminate
from tests.kubernetes import test_cluster
from tests.kubernetes.rendering import CHART
from tests.scale import scaled
from tests.testbed import nats as nats_peer
from tests.testbed.containerd import Containerd
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats

pytestmark = [pytest.mark.timeout(600), pytest.mark.parametrize("engine", ["2.4"], indirect=True)]
SNAPSHOT = r'"snapshot_completed"'
READABLE_SNAPSHOT = r"snapshot +complete"


class Way(NamedTuple):
    """How a command is tried: what it shows, and whether it goes on till Ctrl-C (else it ends with status 0)."""

    shows: str
    goes_on: bool = False
    beside: str = ""
    """What is typed first, and goes on meanwhile."""


def runs(shows: str = SNAPSHOT, beside: str = "") -> Way:
    return Way(shows, goes_on=True, beside=beside)


PROXY = "whalebridge proxy --listen /run/whalebridge/containerd.sock --socket-group whalebridge"
SNAPSHOTS = "while sleep 1; do whalebridge snapshot --state-dir /var/lib/whalebridge; done"
WAYS = {
    "whalebridge doctor": Way(r"ok +/run/containerd/containerd.sock: containerd 2\.4"),
    "whalebridge list": Way(r"demo-web-1 +demo"),
    "whalebridge inspect demo-web-1": Way(r'"name": "demo-web-1"'),
    "whalebridge watch": runs(r"demo-web-1"),
    "whalebridge run": runs(READABLE_SNAPSHOT),
    "whalebridge run --containerd /run/k3s/containerd/containerd.sock --namespace k8s.io": runs(READABLE_SNAPSHOT),
    "whalebridge run --exclude-namespace 'test-*' --log-level warning | jq -c '[.type, .id, .container.name]'": runs(
        r'\["present","[^"]+","demo-web-1"\]'
    ),
    "whalebridge check --sink kafka://localhost:9092/containers --state-dir /var/lib/whalebridge": Way(
        "topic containers exists and is writable"
    ),
    "whalebridge run --sink kafka://localhost:9092/containers --state-dir /var/lib/whalebridge": runs("synced"),
    "whalebridge tail kafka://localhost:9092/containers": runs(r"snapshot +complete", beside=SNAPSHOTS),
    "whalebridge run --sink nats://localhost:4222/containers --state-dir /var/lib/whalebridge": runs("synced"),
    "whalebridge tail nats://localhost:4222/containers --since 15m --project demo": runs("demo-web-1"),
    "kcat -C -b localhost:9092 -t containers": runs(),
    "nats --server localhost:4222 sub --stream WHALEBRIDGE_CONTAINERS --all": runs(),
    "whalebridge run --sink kafka://k1:9092,k2:9092/containers --state-dir /var/lib/whalebridge": runs("synced"),
    "whalebridge tail kafka://k1:9092/containers --since 15m --project web-shop": runs("web-shop-web-1"),
    r"kcat -C -b k1:9092 -t containers -f '%k %h\n%s\n'": runs("node-1/.*content-type=application/json"),
    "whalebridge run --sink nats://n1:4222,n2:4222/whalebridge --state-dir /var/lib/whalebridge": runs("synced"),
    "whalebridge tail nats://n1:4222/whalebridge --since 15m --project web-shop": runs("web-shop-web-1"),
    "nats kv watch containers 'node-1.>'": runs("PUT"),
    "whalebridge snapshot --state-dir /var/lib/whalebridge": Way("snapshot"),
    "curl --unix-socket /var/lib/whalebridge/control.sock http://localhost/readyz": Way('"ready": ?true'),
    PROXY: runs("proxy_started"),
    "whalebridge run --containerd /run/whalebridge/containerd.sock": runs(READABLE_SNAPSHOT, beside=PROXY),
}
DEMOS = {
    "make run": runs(READABLE_SNAPSHOT),
    'make run ARGS="--nats"': runs(READABLE_SNAPSHOT),
    'make run ARGS="--kafka"': runs(READABLE_SNAPSHOT),
}
BENCHES = {
    'make bench ARGS="--only whalebridge --load flood --rounds 3"': Way("40000/40000"),
    **({"make bench": Way("kcat"), 'make bench ARGS="--json"': Way('"delivered"')} if scaled(part=0, full=1) else {}),
}
KAFKA_TOOLS = {
    "kafka-topics.sh --bootstrap-server k1:9092 --create --topic containers --partitions 1 --replication-factor 3 "
    "--config min.insync.replicas=2": Way("Created topic containers"),
    "kafka-acls.sh --bootstrap-server k1:9092 --add --allow-principal User:bridge --operation Write --operation Create "
    "--operation DescribeConfigs --topic containers": Way("User:bridge"),
}
ELSEWHERE: dict[str, Callable[[str], bool]] = {
    "configuration.md": lambda text: text.startswith("export "),  # tests/unit/cli/test_docs.py
    "install.md": lambda text: text in test_install.documented(),
    "kubernetes.md": lambda text: told(text) in test_cluster.documented("nats.nats:4222"),
    "nats.md": lambda text: text.startswith("nats stream add "),  # test_nats_docs.py, with three servers
}
"""What is done by other tests, by page."""

NOT_DONE = {
    r"make test": "it is what runs this",
    r"make bench( ARGS=\"--json\")?": "five minutes: make test-long does it",
    r"make newcomer": "it installs a Debian for each line",
    r"make image": "it downloads; tests/kubernetes/test_image.py builds the same from what is there",
    r"docker (tag|push) .*": "there is no registry",
    r"(systemctl|systemd-run) .*": "there is no systemd as process 1",
}


def told(text: str) -> list[str]:
    return shlex.split(text.replace("deploy/helm", str(CHART.parent)))


@pytest.mark.usefixtures("engine")
def test_every_command_is_done_by_a_test() -> None:
    here = {**WAYS, **DEMOS, **KAFKA_TOOLS, **BENCHES}
    documented = [command for page in PAGES for command in commands(page)]
    assert [
        command
        for command in documented
        if command.text not in here
        and not (command.page in ELSEWHERE and ELSEWHERE[command.page](command.text))
        and not any(re.fullmatch(pattern, command.text) for pattern in NOT_DONE)
    ] == []
    assert set(here) - {command.text for command in documented} == set()


class World(NamedTuple):
    """What the commands find: containers that live, and a bridge that publishes."""

    engine: Containerd
    state: Path
    brokers: dict[str, str]


@pytest.fixture(scope="module")
def world(engine: Containerd, kafka: Kafka, nats: Nats, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    state = folder / "state"
    yard = Yard(engine)
    for project in ("demo", "web-shop"):
        yard.run(labels={"nerdctl/name": f"{project}-web-1", "com.docker.compose.project": project})
    server = nats.url.removeprefix("nats://")
    (folder / "config.yaml").write_text(
        f"sinks:\n  kafka: kafka://{kafka.bootstrap}/containers\n  nats: nats://{server}/whalebridge\n"
        f"  state: {{type: nats, servers: ['{server}'], subject_prefix: containers, kv_bucket: {{name: containers}}}}\n"
    )
    brokers = dict.fromkeys(("k1:9092,k2:9092", "k1:9092", "localhost:9092"), kafka.bootstrap)
    brokers |= dict.fromkeys(("n1:4222,n2:4222", "n1:4222", "localhost:4222"), server)
    with BridgeProcess(engine.address, folder, "--config", str(folder / "config.yaml"), state_dir=state) as bridge:
        bridge.wait_said("synced")
        eventually(lambda: delivered(state), within=60)
        yield World(engine, state, brokers)
    yard.clear()


def delivered(state: Path) -> bool:
    """Whether every sink has all that there was to tell: until then topic, streams and bucket may be missing."""
    with contextlib.closing(Control(state, 20)) as control:
        control.request("GET", "/readyz")
        return not any(each["backlog_records"] for each in json.load(control.getresponse())["sinks"])


@pytest.mark.parametrize("text", WAYS)
def test_what_is_typed_on_a_node(text: str, world: World, tmp_path: Path, require: Callable[..., None]) -> None:
    require("kcat", "nats")
    own = re.search(" (run|check) .*--state-dir", text)  # the world's is in use
    do(WAYS[text], text, Place(tmp_path, world.brokers, world.engine, state=None if own else world.state))


@pytest.mark.parametrize("text", DEMOS)
@pytest.mark.usefixtures("engine")
def test_what_a_newcomer_types_where_no_containerd_answers(
    text: str, tmp_path: Path, require: Callable[..., None]
) -> None:
    require(*demo.COMPONENTS, *nats_peer.DEBIAN, "kafka")
    do(DEMOS[text], text, Place(tmp_path, {}), seconds=150)


@pytest.mark.parametrize("text", KAFKA_TOOLS)
@pytest.mark.usefixtures("engine")
def test_kafkas_own_tools(
    text: str, fresh_kafka: Callable[..., Kafka], tmp_path: Path, require: Callable[..., None]
) -> None:
    require("kafka-tools")
    kafka = fresh_kafka(3, acls=True)
    do(KAFKA_TOOLS[text], text, Place(tmp_path, {"k1:9092": kafka.bootstrap}))


@pytest.mark.parametrize("text", BENCHES)
@pytest.mark.usefixtures("engine")
def test_the_benchmark(text: str, tmp_path: Path, require: Callable[..., None]) -> None:
    require("flood", "kafka", "kcat")
    do(BENCHES[text], text, Place(tmp_path, {}), seconds=500)


def do(way: Way, text: str, place: Place, seconds: float = 60) -> None:
    with contextlib.ExitStack() as stack:
        if way.beside:
            beside = stack.enter_context(place.type(way.beside))
            stack.callback(terminate, beside)
        terminal = stack.enter_context(place.type(text))
        terminal.wait(lambda page: re.search(way.shows, page), way.shows, seconds)
        if way.goes_on:
            status = interrupt(terminal)
            assert status == 0 or not text.startswith("whalebridge") or "|" in text, terminal.page
        else:
            assert terminal.process.wait(60) == 0, terminal.page
