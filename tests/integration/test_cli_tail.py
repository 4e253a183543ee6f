"""`whalebridge tail` on files, pipes, terminals and real brokers."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from bridge.core.records import Record
from tests.bridge_process import BridgeProcess
from tests.certificates import Authority
from tests.eventually import eventually
from tests.integration.commands import (
    ENVIRONMENT,
    WHALEBRIDGE,
    ContainerFactory,
    PipedCommand,
    assert_one_line,
    whalebridge,
)
from tests.integration.consumer_reading import record_data
from tests.integration.engines import one_engine
from tests.integration.terminal import Terminal
from tests.naming import assert_names
from tests.sample_records import control_record, record, records
from tests.testbed.kafka import USERS, Kafka
from tests.testbed.process import run
from tests.testbed.server import HOST

ANSI = re.compile(r"\x1b\[[\d;]*m")


def run_tail(
    *arguments: str, input_data: Sequence[Record] = (), environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    text = "".join(f"{each.decode()}\n" for each in record_data(input_data))
    return whalebridge("tail", *arguments, environment=environment, text=text)


class TailProcess(PipedCommand):
    """A running `whalebridge tail`; `line` waits for its next line."""

    def __init__(self, *arguments: str) -> None:
        super().__init__("tail", *arguments)

    def line(self) -> str:
        return self.out.readline().decode()

    def stop(self, signal_number: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(signal_number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors.decode()


# --- output ---


def test_tail_prints_one_line_per_record_without_duplicates() -> None:
    published = [
        control_record(1, "snapshot_started"),
        *records(3, 2),
        record(3),
        record(5, "heartbeat"),
        record(5, "exited"),
    ]
    done = run_tail("-", input_data=published)
    assert (done.returncode, done.stderr) == (0, "")
    shown = [line.split()[2:4] for line in done.stdout.splitlines()]
    assert shown == [
        ["snapshot", "started:"],
        ["started", "shop/web-0"],
        ["started", "shop/web-1"],
        ["started", "shop/web-2"],
        ["exited", "shop/web-1"],
    ]
    assert len(run_tail("-", "--duplicates", input_data=published).stdout.splitlines()) == 6
    assert [
        line.split()[2] for line in run_tail("-", "--type", "heartb*", input_data=published).stdout.splitlines()
    ] == ["heartbeat"]
    assert run_tail("-", "--container", "web-2", "--host", "node-?", input_data=published).stdout.count("\n") == 1


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "1601-01-01", "1969-12-31T23:59:59Z"])
def test_tail_reads_all_records_when_since_precedes_containers(moment: str, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(record(1).data + b"\n")
    done = run_tail(f"file:{path}", "--no-follow", "--since", moment)
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")


def test_tail_json_prints_published_bytes() -> None:
    published = [*records(3), record(4, name="größe\x1b")]
    done = run_tail("-", "--json", input_data=published)
    assert done.stdout.encode() == b"".join(each + b"\n" for each in record_data(published))


def test_tail_sends_only_color_escapes_to_terminal(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(record(1, name="web\x1b]0;title\x07\x9b2J\u202e").data + b"\n")
    shown = {}
    for flags in ((), ("--json",)):
        command = [*WHALEBRIDGE, "tail", f"file:{path}", "--no-follow", *flags]
        with Terminal(command, ENVIRONMENT, columns=1000) as terminal:
            assert terminal.process.wait(30) == 0
            terminal.wait(lambda page: "\n" in page, "line")
            shown[flags] = terminal.text
            assert all(line.isprintable() for line in ANSI.sub("", terminal.text).split("\r\n"))
    assert "\x1b[32mstarted" in shown[()]
    assert json.loads(shown[("--json",)])["container"]["name"] == "web\x1b]0;title\x07\x9b2J\u202e"
    assert "\x1b" not in run_tail(f"file:{path}", "--no-follow").stdout


# --- following ---


def test_tail_follows_file_from_end_until_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(record(1).data + b"\n")
    with TailProcess(f"file:{path}") as tail, path.open("ab") as file:
        eventually(lambda: _is_at_end(tail.process.pid, path))
        file.write(b"no record\n" + record(2, "exited").data + b"\n")
        file.flush()
        assert tail.line().split()[2] == "exited"
        status, errors = tail.stop()
        assert (status, errors.count("\n")) == (0, 1)
        assert_names(errors, "whalebridge: 1 ", f"number 1 of {path}", "JSON")


def test_tail_prints_since_hint_on_terminal(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(record(1).data + b"\n")
    with Terminal([*WHALEBRIDGE, "tail", f"file:{path}"], ENVIRONMENT) as terminal:
        terminal.wait(lambda page: "\n" in page, "line")
        with path.open("ab") as file:
            file.write(record(2, "exited").data + b"\n")
        terminal.wait(lambda page: "exited" in page, "record")
        assert terminal.stop(signal.SIGINT) == 0
        assert terminal.text.startswith("whalebridge: ")
        assert_names(terminal.text, "--since 15m")
        assert "started" not in terminal.text


def _is_at_end(pid: int, path: Path) -> bool:
    """Return whether a process has opened a file and moved to its end."""
    positions = []
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed since the directory was listed
            if link.resolve() == path:
                positions.append(Path(f"/proc/{pid}/fdinfo/{link.name}").read_text().split()[1])
    return positions == [str(path.stat().st_size)]


def test_tail_exits_130_when_interrupted_before_end_of_input() -> None:
    with subprocess.Popen(
        [*WHALEBRIDGE, "tail", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(record(1).data.decode() + "\n")
        process.stdin.flush()
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 130


def test_tail_exits_silently_when_output_pipe_closes(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(each + b"\n" for each in record_data(records(20_000))))
    command = f"{' '.join(WHALEBRIDGE)} tail file:{path} --no-follow | head -n 1"
    done = run(["sh", "-c", command], env=ENVIRONMENT)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


# --- invalid arguments ---


@pytest.mark.parametrize(
    ("url", "message"),
    [("kafka://127.0.0.1:1/t", "127.0.0.1:1: connection refused"), ("nats://127.0.0.1:1/s", "NATS at 127.0.0.1:1 ")],
)
def test_tail_exits_3_when_broker_is_unavailable(url: str, message: str) -> None:
    assert_one_line(run_tail(url), 3, message)


def test_tail_reads_config_file(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("sinks: {a: {type: nats, servers: [127.0.0.1:1], subject_prefix: events, mode: core}}\n")
    assert_one_line(run_tail("a", "--no-follow", "--config", str(path)), 2, "core NATS")
    assert_one_line(run_tail("b", "--config", str(path)), 2, "a")
    path.write_text("sinks: {a: {type: nats, servers: [127.0.0.1:1]}}\n")
    assert_one_line(run_tail("a", "--config", str(path)), 2, str(path), "sinks.a.subject_prefix")
    assert_one_line(run_tail("a", "--config", "/nowhere.yaml"), 2, "/nowhere.yaml")


# --- brokers ---


@pytest.fixture(params=["kafka", "nats"])
def broker_sink(request: pytest.FixtureRequest) -> tuple[str, dict[str, str]]:
    """Return the URL and the settings of a sink for a topic or stream that does not exist yet."""
    if request.param == "kafka":
        address = request.getfixturevalue("kafka").bootstrap
        return f"kafka://{address}/tail.run", {"TYPE": "kafka", "BOOTSTRAP_SERVERS": address, "TOPIC": "tail.run"}
    address = f"{HOST}:{request.getfixturevalue('nats').nodes[0].port}"
    settings = {"TYPE": "nats", "SERVERS": address, "SUBJECT_PREFIX": "tail.run", "CLOUDEVENTS": "structured"}
    return f"nats://{address}/tail.run", settings


@one_engine
def test_tail_reads_records_published_to_broker(
    container_factory: ContainerFactory, broker_sink: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    url, settings = broker_sink
    first = container_factory.run(labels={"com.docker.compose.project": "shop"})
    environment = {"WHALEBRIDGE_HOST": "node-7"}
    environment |= {f"WHALEBRIDGE_SINKS__MAIN__{name}": value for name, value in settings.items()}
    with BridgeProcess(container_factory.address, tmp_path, environment=environment) as bridge:
        bridge.wait_logged("synced")
        bridge.wait_logged("topic_created" if settings["TYPE"] == "kafka" else "stream_created")
        with TailProcess(url, "--since", "5m", "--container", first, "--container", "cli-*") as tail:
            assert tail.line().split()[1:] == ["node-7", "present", f"default/{first}", "project", "shop"]
            container_factory.engine.ctr("tasks", "kill", "--signal", "SIGKILL", first)
            assert tail.line().split()[1:4] == ["node-7", "exited", f"default/{first}"]
            assert tail.stop() == (0, "")
    done = run_tail(url, "--no-follow", "--json", "--project", "shop")
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()] == ["present", "exited"]
    for since in ("beginning", "1601-01-01", "1970-01-01T00:00:59.999Z"):  # in Kafka, timestamp -1 means the end
        assert run_tail(url, "--no-follow", "--json", "--project", "shop", "--since", since).stdout == done.stdout
    assert_one_line(run_tail(f"{url}s"), 1, "tail.runs")


def test_tail_of_configured_sink_uses_its_credentials(kafka: Kafka, authority: Authority) -> None:
    kafka.admin.create_topic("tail.restricted_kafka")
    sink = {
        "TYPE": "kafka",
        "BOOTSTRAP_SERVERS": kafka.bootstrap_for("sasl_ssl"),
        "TOPIC": "tail.restricted_kafka",
        "TLS__ENABLED": "true",
        "TLS__CA_FILE": str(authority.certificate),
        "AUTH__USERNAME": "reader",
        "AUTH__PASSWORD": USERS["reader"],
    }
    environment = {f"WHALEBRIDGE_SINKS__MAIN__{name}": value for name, value in sink.items()}
    url = f"kafka://{kafka.bootstrap_for('sasl_ssl')}/tail.restricted_kafka"
    done = run_tail("main", "--no-follow", environment=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    environment["WHALEBRIDGE_SINKS__MAIN__AUTH__PASSWORD"] = "wr0ng"  # noqa: S105 (a dummy)
    done = run_tail("main", "--no-follow", environment=environment)
    assert_one_line(done, 3, "user reader", "scram-sha-512")
    assert "wr0ng" not in done.stderr
    assert_one_line(run_tail(url, "--no-follow"), 3, "tls.enabled")
