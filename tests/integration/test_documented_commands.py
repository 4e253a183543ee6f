"""Every command documented in README.md and docs/ works as described, on real peers."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from bridge.cli.commands import snapshot
from bridge.outbox.state_directory import CONTROL_SOCKET
from examples import demo
from tests.bridge_process import BridgeProcess
from tests.documentation import PAGES, page_commands
from tests.eventually import eventually
from tests.integration import test_install
from tests.integration.commands import ContainerFactory
from tests.integration.shell import ShellSandbox, interrupt, terminate
from tests.kubernetes import test_cluster, test_manifests
from tests.kubernetes.rendering import CHART
from tests.scale import scaled
from tests.testbed import nats as nats_peer
from tests.testbed.containerd import Containerd
from tests.testbed.http_receiver import HttpReceiver
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats

pytestmark = [pytest.mark.timeout(600), pytest.mark.parametrize("engine", ["2.4"], indirect=True)]
SNAPSHOT = r'"snapshot_completed"'
READABLE_SNAPSHOT = r"snapshot +completed"


class CommandCase(NamedTuple):
    """The expected output of a command, and whether it runs until Ctrl-C (otherwise it exits with status 0)."""

    expected_output: str
    runs_until_interrupted: bool = False
    background_command: str = ""
    """Command that runs meanwhile."""


def runs_until_interrupt(expected_output: str = SNAPSHOT, background_command: str = "") -> CommandCase:
    return CommandCase(expected_output, runs_until_interrupted=True, background_command=background_command)


PROXY = "whalebridge proxy --listen /run/whalebridge-proxy/containerd.sock --socket-group whalebridge"
SNAPSHOTS = "while sleep 1; do whalebridge snapshot --state-dir /var/lib/whalebridge; done"
COMMAND_CASES = {
    "whalebridge doctor": CommandCase(r"ok +/run/containerd/containerd.sock: containerd 2\.4"),
    "whalebridge list": CommandCase(r"demo-web-1 +demo"),
    "whalebridge inspect demo-web-1": CommandCase(r'"name": "demo-web-1"'),
    "whalebridge watch": runs_until_interrupt(r"demo-web-1"),
    "whalebridge run": runs_until_interrupt(READABLE_SNAPSHOT),
    "whalebridge run --containerd /run/k3s/containerd/containerd.sock --namespace k8s.io": runs_until_interrupt(
        READABLE_SNAPSHOT
    ),
    "whalebridge run --namespace 'k8s.io,shop-*'": runs_until_interrupt(READABLE_SNAPSHOT),
    "whalebridge run --exclude-namespace 'test-*' --log-level warning"
    " | jq -c '[.type, .id, .container.name]'": runs_until_interrupt(r'\["present","[^"]+","demo-web-1"\]'),
    "whalebridge check --sink kafka://localhost:9092/containers --state-dir /var/lib/whalebridge": CommandCase(
        "topic containers exists and is writable"
    ),
    "whalebridge run --sink kafka://localhost:9092/containers --state-dir /var/lib/whalebridge": runs_until_interrupt(
        "synced"
    ),
    "whalebridge tail kafka://localhost:9092/containers": runs_until_interrupt(
        r"snapshot +completed", background_command=SNAPSHOTS
    ),
    "whalebridge fleet kafka://localhost:9092/containers": runs_until_interrupt(r"demo-web-1"),
    "whalebridge audit kafka://localhost:9092/containers": CommandCase("no defects"),
    "whalebridge run --sink nats://localhost:4222/containers --state-dir /var/lib/whalebridge": runs_until_interrupt(
        "synced"
    ),
    "whalebridge tail nats://localhost:4222/containers --since 15m --project demo": runs_until_interrupt("demo-web-1"),
    "kcat -C -b localhost:9092 -t containers": runs_until_interrupt(),
    "kcat -C -e -q -b localhost:9092 -t containers"
    " | duckdb -init examples/records.sql -c 'SELECT host, container.name FROM running'": CommandCase("demo-web-1"),
    "cat $(ls -rv /var/log/whalebridge/events.jsonl*)"
    " | duckdb -init examples/records.sql -c 'SELECT type, count(*) FROM records GROUP BY ALL'": CommandCase("exited"),
    'kcat -C -u -b localhost:9092 -t containers | jq -r --unbuffered \'select(.type == "exited" and .exit.status != 0)'
    " | [.exit.at, .host, .id, .exit.status] | @tsv'": runs_until_interrupt(r"Z\s+\S+\s+cli-\S+\s+3\s"),
    "kcat -C -e -q -b localhost:9092 -t containers | jq -c 'select(.type == \"exited\")' | sort -u | jq .exit.status"
    " | sort | uniq -c": CommandCase(r"[1-9] 3\s"),
    "whalebridge fleet kafka://localhost:9092/containers --once --json"
    " | jq -r '.containers[] | [.host, .status, .container.name, .container.image] | @tsv'": CommandCase(
        r"running\s+demo-web-1\s+docker.io/library/busybox:latest"
    ),
    "nats --server localhost:4222 sub --stream WHALEBRIDGE_CONTAINERS --all": runs_until_interrupt(),
    "whalebridge run --sink kafka://broker-1:9092,broker-2:9092/containers"
    " --state-dir /var/lib/whalebridge": runs_until_interrupt("synced"),
    "whalebridge tail kafka://broker-1:9092/containers --since 15m --project web-shop": runs_until_interrupt(
        "web-shop-web-1"
    ),
    r"kcat -C -b broker-1:9092 -t containers -f '%k %h\n%s\n'": runs_until_interrupt(
        "node-1/.*content-type=application/json"
    ),
    "whalebridge run --sink nats://nats-1:4222,nats-2:4222/containers"
    " --state-dir /var/lib/whalebridge": runs_until_interrupt("synced"),
    "whalebridge run --sink https://receiver.example.com/containers"
    " --state-dir /var/lib/whalebridge": runs_until_interrupt("synced"),
    "whalebridge tail nats://nats-1:4222/containers --since 15m --project web-shop": runs_until_interrupt(
        "web-shop-web-1"
    ),
    "nats kv watch containers 'node-1.>'": runs_until_interrupt("PUT"),
    "whalebridge snapshot --state-dir /var/lib/whalebridge": CommandCase("snapshot"),
    "curl --unix-socket /var/lib/whalebridge/control.sock http://localhost/readyz": CommandCase('"ready": ?true'),
    PROXY: runs_until_interrupt("proxy_started"),
    "whalebridge run --containerd /run/whalebridge-proxy/containerd.sock": runs_until_interrupt(
        READABLE_SNAPSHOT, background_command=PROXY
    ),
}
DEMOS = {
    "make run": runs_until_interrupt(READABLE_SNAPSHOT),
    'make run ARGS="--nats"': runs_until_interrupt(READABLE_SNAPSHOT),
    'make run ARGS="--kafka"': runs_until_interrupt(READABLE_SNAPSHOT),
}
BENCHES = {
    'make bench ARGS="--work flood --only whalebridge --rounds 3"': CommandCase(r"lost +│ +0 "),
    **(
        {"make bench": CommandCase("kcat"), 'make bench ARGS="--json bench.json"': CommandCase("kcat")}
        if scaled(reduced=0, full=1)
        else {}
    ),
}
KAFKA_TOOLS = {
    "kafka-topics.sh --bootstrap-server broker-1:9092 --create --topic containers --partitions 1 "
    "--replication-factor 3 --config min.insync.replicas=2": CommandCase("Created topic containers"),
    "kafka-acls.sh --bootstrap-server broker-1:9092 --add --allow-principal User:bridge --operation Write "
    "--operation Create --operation DescribeConfigs --topic containers": CommandCase("User:bridge"),
    "kafka-acls.sh --bootstrap-server broker-1:9092 --add --allow-principal User:bridge --operation Write "
    "--operation Create --operation DescribeConfigs --operation Read --topic containers.state": CommandCase(
        "User:bridge"
    ),
    "kafka-configs.sh --bootstrap-server broker-1:9092 --alter --entity-type users --entity-name bridge "
    "--entity-type clients --entity-default --add-config producer_byte_rate=1048576": CommandCase("Completed updating"),
}
TESTED_ELSEWHERE: dict[str, Callable[[str], bool]] = {
    "configuration.md": lambda text: text.startswith("export "),  # tests/unit/cli/test_docs.py
    "install.md": lambda text: text in test_install.documented(),
    "kubernetes.md": lambda text: (
        split_command(text) in test_cluster.documented_commands("nats.nats:4222")
        or text in test_manifests.documented_commands()
    ),
    "proxy.md": lambda text: any(text in commands for commands in test_install.documented_proxy()),
    "nats.md": lambda text: text.startswith("nats stream add "),  # test_nats_docs.py, with three servers
}
"""Commands that other tests run, by page."""

UNTESTED = {
    r"make test": "it runs these tests",
    r"make dist": "tests/integration/test_install.py builds a release",
    r"make bench( ARGS=\"--json bench.json\")?": "takes an hour; tested by make test-long",
    r"make bench ARGS=\"--work start --against .*": "it needs the history of the repository",
    r"nsenter .* whalebridge run|whalebridge run --containerd /run/user/.*": "test_cli_check.py simulates the user",
    r"make newcomer": "it installs one Debian per line",
    r"(export PIP_INDEX_URL=|make image\b).*": "it downloads; tests/kubernetes/test_image.py builds it",
    r"docker (tag|push) .*": "it needs a registry",
    r"python3 -m venv /opt/msk-signer .*": "it downloads",
    r"docker compose .*": "it needs a registry; tests/integration/test_compose.py checks the files",
}


def split_command(text: str) -> list[str]:
    return shlex.split(text.replace("deploy/helm", str(CHART.parent)))


@pytest.mark.usefixtures("engine")
def test_documented_commands_are_all_tested() -> None:
    tested = {**COMMAND_CASES, **DEMOS, **KAFKA_TOOLS, **BENCHES}
    documented = [command for page in PAGES for command in page_commands(page)]
    assert [
        command
        for command in documented
        if command.text not in tested
        and not (command.page in TESTED_ELSEWHERE and TESTED_ELSEWHERE[command.page](command.text))
        and not any(re.fullmatch(pattern, command.text) for pattern in UNTESTED)
    ] == []
    assert set(tested) - {command.text for command in documented} == set()


class CommandEnvironment(NamedTuple):
    """The environment of the commands: running containers, one that has failed, and a running bridge."""

    engine: Containerd
    state: Path
    logs: Path
    brokers: dict[str, str]


@pytest.fixture(scope="module")
def command_environment(
    engine: Containerd, kafka: Kafka, nats: Nats, http_receiver: HttpReceiver, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[CommandEnvironment]:
    directory = tmp_path_factory.mktemp("environment")
    state, logs = directory / "state", directory / "logs"
    logs.mkdir()
    container_factory = ContainerFactory(engine)
    for project in ("demo", "web-shop"):
        container_factory.run(labels={"nerdctl/name": f"{project}-web-1", "com.docker.compose.project": project})
    server = nats.url.removeprefix("nats://")
    (directory / "config.yaml").write_text(
        f"sinks:\n  kafka: kafka://{kafka.bootstrap}/containers\n  file: file:{logs}/events.jsonl\n"
        f"  nats: {{type: nats, servers: ['{server}'], subject_prefix: containers, kv_bucket: {{name: containers}}}}\n"
    )
    brokers = dict.fromkeys(("broker-1:9092,broker-2:9092", "broker-1:9092", "localhost:9092"), kafka.bootstrap)
    brokers |= dict.fromkeys(("nats-1:4222,nats-2:4222", "nats-1:4222", "localhost:4222"), server)
    brokers["https://receiver.example.com"] = http_receiver.url
    with BridgeProcess(
        engine.address, directory, "--config", str(directory / "config.yaml"), state_dir=state
    ) as bridge:
        bridge.wait_logged("synced")
        container_factory.run(command=("sh", "-c", "exit 3"))
        eventually(lambda: '"type":"exited"' in (logs / "events.jsonl").read_text(), within=60)
        eventually(lambda: is_delivered(state), within=60)
        yield CommandEnvironment(engine, state, logs, brokers)
    container_factory.remove_all()


def is_delivered(state: Path) -> bool:
    """Return whether every sink has delivered its backlog; until then the topic, streams and bucket may be missing."""
    with contextlib.closing(http.client.HTTPConnection("localhost")) as control:
        control.sock = snapshot.connect(state / CONTROL_SOCKET)
        control.request("GET", "/readyz")
        return not any(each["backlog_records"] for each in json.load(control.getresponse())["sinks"])


@pytest.mark.parametrize("text", COMMAND_CASES)
def test_documented_node_command_works(
    text: str, command_environment: CommandEnvironment, tmp_path: Path, require: Callable[..., None]
) -> None:
    require("kcat", "nats")
    needs_own_state = re.search(" (run|check) .*--state-dir", text)  # the running bridge locks its own
    run_case(
        COMMAND_CASES[text],
        text,
        ShellSandbox(
            tmp_path,
            command_environment.brokers,
            command_environment.engine,
            state=None if needs_own_state else command_environment.state,
            logs=command_environment.logs,
        ),
    )


@pytest.mark.parametrize("text", DEMOS)
@pytest.mark.usefixtures("engine")
def test_documented_demo_command_works_without_containerd(
    text: str, tmp_path: Path, require: Callable[..., None]
) -> None:
    require(*demo.COMPONENTS, *nats_peer.DEBIAN_COMPONENTS, "kafka")
    run_case(DEMOS[text], text, ShellSandbox(tmp_path, {}), seconds=150)


@pytest.mark.usefixtures("engine")
def test_documented_kafka_tool_commands_work(
    kafka_factory: Callable[..., Kafka], tmp_path: Path, require: Callable[..., None]
) -> None:
    require("kafka-tools")
    kafka = kafka_factory(3, acls=True)
    sandbox = ShellSandbox(tmp_path, {"broker-1:9092": kafka.bootstrap})
    for text, case in KAFKA_TOOLS.items():
        run_case(case, text, sandbox)


@pytest.mark.parametrize("text", BENCHES)
@pytest.mark.usefixtures("engine")
def test_documented_benchmark_command_works(text: str, tmp_path: Path, require: Callable[..., None]) -> None:
    require("flood", "kafka", "kcat")
    command = text.replace("--rounds 3", f"--rounds {scaled(reduced=1, full=3)}")  # every round does the same
    run_case(BENCHES[text], command, ShellSandbox(tmp_path, {}), seconds=scaled(reduced=500, full=5000))


def run_case(case: CommandCase, text: str, sandbox: ShellSandbox, seconds: float = 60) -> None:
    with contextlib.ExitStack() as stack:
        if case.background_command:
            background = stack.enter_context(sandbox.run(case.background_command))
            stack.callback(terminate, background)
        terminal = stack.enter_context(sandbox.run(text))
        terminal.wait(lambda page: re.search(case.expected_output, page), case.expected_output, seconds)
        if case.runs_until_interrupted:
            status = interrupt(terminal)
            assert status == 0 or not text.startswith("whalebridge") or "|" in text, terminal.page
        else:
            assert terminal.process.wait(60) == 0, terminal.page
