"""`whalebridge tail`, called as people do: on files, pipes, terminals and real brokers."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bridge.core.events import Record
from tests.bridge_process import BridgeProcess
from tests.certificates import Authority
from tests.eventually import eventually
from tests.integration.commands import ENVIRONMENT, WHALEBRIDGE, Yard, assert_one_line
from tests.integration.fleet_reading import data
from tests.integration.terminal import Terminal
from tests.naming import assert_names
from tests.sample_records import frame, record, records
from tests.testbed.kafka import USERS, Kafka
from tests.testbed.nats import Nats
from tests.testbed.server import HOST

ANSI = re.compile(r"\x1b\[[\d;]*m")


def tail(
    *arguments: str, given: Sequence[Record] = (), environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    text = "".join(f"{each.decode()}\n" for each in data(given))
    command, environment = [*WHALEBRIDGE, "tail", *arguments], ENVIRONMENT | dict(environment or {})
    return subprocess.run(command, input=text, capture_output=True, text=True, timeout=60, check=False, env=environment)


class Tail:
    """`whalebridge tail` that follows; `line` waits for its next line."""

    def __init__(self, *arguments: str, environment: Mapping[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            [*WHALEBRIDGE, "tail", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=ENVIRONMENT | dict(environment or {}),
        )

    def __enter__(self) -> Tail:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        with self.process:
            pass

    def line(self) -> str:
        assert self.process.stdout
        return self.process.stdout.readline()

    def end(self, how: signal.Signals = signal.SIGINT) -> tuple[int, str]:
        self.process.send_signal(how)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


# --- what is shown ---


def test_records_are_lines_without_repetitions() -> None:
    given = [frame(1, "snapshot_started"), *records(3, 2), record(3), record(5, "heartbeat"), record(5, "exited")]
    done = tail("-", given=given)
    assert (done.returncode, done.stderr) == (0, "")
    shown = [line.split()[2:4] for line in done.stdout.splitlines()]
    assert shown == [
        ["snapshot", "begins:"],
        ["started", "shop/web-0"],
        ["started", "shop/web-1"],
        ["started", "shop/web-2"],
        ["exited", "shop/web-1"],
    ]
    assert len(tail("-", "--duplicates", given=given).stdout.splitlines()) == 6
    assert [line.split()[2] for line in tail("-", "--type", "heart*", given=given).stdout.splitlines()] == ["heartbeat"]
    assert tail("-", "--container", "web-2", "--host", "node-?", given=given).stdout.count("\n") == 1


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00Z", "1601-01-01", "1969-12-31T23:59:59Z"])
def test_since_before_there_were_containers_is_since_the_beginning(moment: str, tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(record(1).data + b"\n")
    done = tail(f"file:{path}", "--no-follow", "--since", moment)
    assert (done.returncode, done.stdout.count("\n"), done.stderr) == (0, 1, "")


def test_json_is_what_was_published() -> None:
    given = [*records(3), record(4, name="größe\x1b")]
    done = tail("-", "--json", given=given)
    assert done.stdout.encode() == b"".join(each + b"\n" for each in data(given))


def test_a_terminal_gets_colours_and_nothing_else_to_obey(tmp_path: Path) -> None:
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
    assert "\x1b" not in tail(f"file:{path}", "--no-follow").stdout


# --- following, and its end ---


def test_a_file_is_followed_from_now_on_until_ctrl_c(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(record(1).data + b"\n")
    with Tail(f"file:{path}") as following, path.open("ab") as file:
        eventually(lambda: _at_the_end(following.process.pid, path))
        file.write(b"no record\n" + record(2, "exited").data + b"\n")
        file.flush()
        assert following.line().split()[2] == "exited"
        status, errors = following.end()
        assert (status, errors.count("\n")) == (0, 1)
        assert_names(errors, "whalebridge: 1 ", f"number 1 of {path}", "JSON")


def test_a_person_who_sees_nothing_yet_is_told_why(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(record(1).data + b"\n")
    with Terminal([*WHALEBRIDGE, "tail", f"file:{path}"], ENVIRONMENT) as terminal:
        terminal.wait(lambda page: "\n" in page, "line")
        with path.open("ab") as file:
            file.write(record(2, "exited").data + b"\n")
        terminal.wait(lambda page: "exited" in page, "record")
        assert terminal.end(signal.SIGINT) == 0
        assert terminal.text.startswith("whalebridge: ")
        assert_names(terminal.text, "--since 15m")
        assert "started" not in terminal.text


def _at_the_end(pid: int, path: Path) -> bool:
    """Whether a process has opened a file and gone to its end, from where on it reads."""
    opened = [link.name for link in Path(f"/proc/{pid}/fd").iterdir() if link.resolve() == path]
    positions = [Path(f"/proc/{pid}/fdinfo/{name}").read_text().split()[1] for name in opened]
    return positions == [str(path.stat().st_size)]


def test_ctrl_c_before_the_end_is_no_success() -> None:
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


def test_a_reader_that_has_gone_is_no_error_that_needs_words(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b"".join(each + b"\n" for each in data(records(20_000))))
    command = f"{' '.join(WHALEBRIDGE)} tail file:{path} --no-follow | head -n 1"
    done = subprocess.run(
        ["sh", "-c", command], capture_output=True, text=True, timeout=60, check=False, env=ENVIRONMENT
    )
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


# --- mistakes ---


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (["file:/nowhere/nothing"], 1, "/nowhere/nothing"),
        (["file:/"], 2, "path: "),
        (["kafka://127.0.0.1:1/t"], 3, "127.0.0.1:1: connection refused"),
        (["nats://127.0.0.1:1/s"], 3, "NATS at 127.0.0.1:1 "),
        (["nats://127.0.0.1:1"], 2, "nats://HOST:PORT"),
        (["kafka://u:hunter2@h/t"], 2, "URL"),
        (["amqp://h/t"], 2, "'amqp'"),
        (["stdout:"], 2, "stdout"),
        (["-", "--since", "soon"], 2, "--since"),
        ([], 2, "'SINK'"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], status: int, told: str) -> None:
    done = tail(*arguments)
    assert_one_line(done, status, told)
    assert "hunter2" not in done.stderr


def test_core_nats_has_no_past() -> None:
    sink = {"TYPE": "nats", "SERVERS": "127.0.0.1:1", "SUBJECT_PREFIX": "events", "MODE": "core"}
    environment = {f"WHALEBRIDGE_SINKS__MAIN__{name}": value for name, value in sink.items()}
    for flags in (["--no-follow"], ["--since", "5m"]):
        done = tail("nats://127.0.0.1:1/events", *flags, environment=environment)
        assert_one_line(done, 2, "core NATS")


def test_the_file_of_the_configuration_is_read(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("sinks: {a: {type: nats, servers: [127.0.0.1:1], subject_prefix: events, mode: core}}\n")
    assert_one_line(tail("a", "--no-follow", "--config", str(path)), 2, "core NATS")
    assert_one_line(tail("b", "--config", str(path)), 2, "a")
    path.write_text("sinks: {a: {type: nats, servers: [127.0.0.1:1]}}\n")
    assert_one_line(tail("a", "--config", str(path)), 2, str(path), "sinks.a.subject_prefix")
    assert_one_line(tail("a", "--config", "/nowhere.yaml"), 2, "/nowhere.yaml")


# --- brokers ---


@pytest.mark.parametrize("engine", ["2.4"], indirect=True)
def test_what_a_bridge_publishes_to_kafka_is_read(yard: Yard, kafka: Kafka, tmp_path: Path) -> None:
    url = f"kafka://{kafka.bootstrap}/tail.run"
    first = yard.run(labels={"com.docker.compose.project": "shop"})
    structured = {"WHALEBRIDGE_HOST": "node-7"}
    with BridgeProcess(yard.address, tmp_path, sinks=[url], environment=structured) as bridge:
        bridge.wait_said("synced")
        bridge.wait_said("topic_created")
        with Tail(url, "--since", "5m", "--container", f"{first}", "--container", "cli-*") as following:
            assert following.line().split()[1:] == ["node-7", "present", f"default/{first}", "project", "shop"]
            yard.engine.ctr("tasks", "kill", "--signal", "SIGKILL", first)
            assert following.line().split()[1:4] == ["node-7", "exited", f"default/{first}"]
            assert following.end() == (0, "")
    done = tail(url, "--no-follow", "--json", "--project", "shop")
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()] == ["present", "exited"]
    since = ("--since", "1970-01-01T00:00:59.999Z")  # -1 ms is Kafka's word for the end
    assert tail(url, "--no-follow", "--json", "--project", "shop", *since).stdout == done.stdout
    assert_one_line(tail(f"kafka://{kafka.bootstrap}/tail.nothing"), 1, "tail.nothing")


def test_tail_of_configured_sink_uses_its_credentials(kafka: Kafka, authority: Authority) -> None:
    kafka.admin.create_topic("tail.guarded")
    sink = {
        "TYPE": "kafka",
        "BOOTSTRAP_SERVERS": kafka.bootstrap_of("sasl_ssl"),
        "TOPIC": "tail.guarded",
        "TLS__ENABLED": "true",
        "TLS__CA_FILE": str(authority.certificate),
        "AUTH__USERNAME": "reader",
        "AUTH__PASSWORD": USERS["reader"],
    }
    environment = {f"WHALEBRIDGE_SINKS__MAIN__{name}": value for name, value in sink.items()}
    url = f"kafka://{kafka.bootstrap_of('sasl_ssl')}/tail.guarded"
    done = tail("main", "--no-follow", environment=environment)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    environment["WHALEBRIDGE_SINKS__0__SASL__PASSWORD"] = "wr0ng"  # noqa: S105 (it opens nothing)
    done = tail(url, "--no-follow", environment=environment)
    assert_one_line(done, 3, "user reader", "scram-sha-512")
    assert "wr0ng" not in done.stderr
    assert_one_line(tail(url, "--no-follow"), 3, "tls.enabled")


@pytest.mark.parametrize("engine", ["2.4"], indirect=True)
def test_what_a_bridge_publishes_to_nats_is_read(yard: Yard, nats: Nats, tmp_path: Path) -> None:
    url = f"nats://{HOST}:{nats.nodes[0].port}/tail.run"
    first = yard.run()
    structured = {"WHALEBRIDGE_SINKS__MAIN__CLOUDEVENTS": "structured", "WHALEBRIDGE_SINKS__MAIN__TYPE": "nats"}
    structured |= {"WHALEBRIDGE_SINKS__MAIN__SERVERS": f"{HOST}:{nats.nodes[0].port}"}
    structured |= {"WHALEBRIDGE_SINKS__MAIN__SUBJECT_PREFIX": "tail.run"}
    with BridgeProcess(yard.address, tmp_path, environment=structured) as bridge:
        bridge.wait_said("synced")
        bridge.wait_said("stream_created")
        with Tail(url, "--since", "beginning", "--container", first) as following:
            assert following.line().split()[2:] == ["present", f"default/{first}"]
            yard.engine.ctr("tasks", "pause", first)
            assert following.line().split()[2:] == ["paused", f"default/{first}"]
            assert following.end() == (0, "")
    yard.engine.ctr("tasks", "resume", first)
    done = tail(url, "--no-follow", "--json", "--container", first)
    assert [json.loads(line)["type"] for line in done.stdout.splitlines()] == ["present", "paused"]
    assert tail(url, "--no-follow", "--json", "--container", first, "--since", "1601-01-01").stdout == done.stdout
    assert_one_line(tail(f"{url}s"), 1, "tail.runs.>")
