"""P9: secrets of containers and settings appear in no output; labels that the label rules allow do.

The tests put unique secrets (canaries) where users put secrets, also in wrong places, and search the raw bytes of
everything that the program writes, sends and returns.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.bridge_process import BridgeProcess
from tests.certificates import Authority
from tests.eventually import eventually
from tests.integration.canaries import Canaries, read_files
from tests.integration.commands import ENVIRONMENT, WHALEBRIDGE, whalebridge
from tests.integration.engines import one_engine
from tests.integration.kafka_sinks import KafkaFactory
from tests.integration.nats_reading import NatsFactory
from tests.integration.notify_socket import NotifySocket
from tests.integration.secret_fixtures import SecretBrokers, SecretContainers, start_brokers
from tests.integration.terminal import Terminal
from tests.testbed.containerd import Containerd


@pytest.fixture
def secret_containers(engine: Containerd, tmp_path: Path) -> Iterator[SecretContainers]:
    secret_containers = SecretContainers(engine, Canaries(), tmp_path)
    secret_containers.create_existing()
    yield secret_containers
    secret_containers.remove_all()


@pytest.fixture
def brokers(
    secret_containers: SecretContainers,
    kafka_factory: KafkaFactory,
    nats_factory: NatsFactory,
    authority: Authority,
    tmp_path: Path,
) -> SecretBrokers:
    return start_brokers(secret_containers, kafka_factory, nats_factory, authority, tmp_path)


class BridgeProgram:
    """Runs the bridge and other commands with the same settings, and collects their output."""

    def __init__(self, secret_containers: SecretContainers, brokers: SecretBrokers, directory: Path) -> None:
        self.outputs: dict[str, bytes] = {}
        self.state = directory / "state"
        self.config = directory / "config.yaml"
        self._canaries = secret_containers.canaries
        self.settings: dict[str, Any] = {
            "containerd": {"address": secret_containers.engine.address},
            "namespaces": {"include": [secret_containers.namespace, "k8s.io"]},
            "containers": {
                "names": {"include": [f"*{secret_containers.namespace}"]},
                "additional_events": ["created", "deleted", "renamed"],
            },
            "sinks": brokers.working_sinks | brokers.failing_sinks,
            "state_dir": str(self.state),
            "heartbeat": {"interval": "1s"},
            "http": {"listen": "127.0.0.1:0"},
            "log": {"level": "debug", "format": "json"},
        }
        self.write()
        self.environment = brokers.environment | {"WHALEBRIDGE_HTTP__LISTEN": "127.0.0.1:0"}
        self.bridge = BridgeProcess(
            secret_containers.engine.address,
            directory,
            "--config",
            str(self.config),
            environment={**self.environment, "NOTIFY_SOCKET": str(directory / "notify")},
        )

    def write(self) -> None:
        self.config.write_text(yaml.safe_dump(self.settings))

    def log(self) -> str:
        return self.bridge.log.read_text()

    def run_command(self, name: str, *arguments: str, status: int = 0) -> None:
        """Run a command, with the environment of the bridge if it reads the file, and collect its output."""
        environment = self.environment if "--config" in arguments else {}
        result = whalebridge(*arguments, environment=environment)
        assert result.returncode == status, (name, result.stdout[-2000:], result.stderr[-2000:])
        self.outputs[f"whalebridge {name}"] = (result.stdout + result.stderr).encode()

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
        """Send a request to the HTTP endpoint, and collect its response."""
        (address,) = re.findall(r"127\.0\.0\.1:\d+", next(line for line in self.log().splitlines() if "listen" in line))
        request = urllib.request.Request(f"http://{address}{path}", method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=40) as response:  # noqa: S310 (a snapshot has 30 s)
                status, body, received = response.status, response.read(), response.headers
        except urllib.error.HTTPError as error:
            with error:
                status, body, received = error.code, error.read(), error.headers
        self.outputs[f"{method} {path.partition('?')[0]} {status} {sorted(headers)}"] = str(received).encode() + body
        return status, body

    def send_invalid_request(self, secret: str) -> None:
        """Send invalid HTTP: the response may contain it, the log must not."""
        (address,) = re.findall(r"127\.0\.0\.1:(\d+)", next(x for x in self.log().splitlines() if "listen" in x))
        for text in (f"GET / HTTP/1.1\r\nAuthorization Bearer {secret}\r\n\r\n", f"{secret}\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", int(address)), timeout=10) as connection:
                connection.sendall(text.encode())
                connection.recv(65536)


@one_engine
def test_secrets_appear_only_in_labels_allowed_by_rules(
    secret_containers: SecretContainers, brokers: SecretBrokers, tmp_path: Path
) -> None:
    program, records = BridgeProgram(secret_containers, brokers, tmp_path), tmp_path / "events.jsonl"
    outputs, bridge = program.outputs, program.bridge
    with NotifySocket(tmp_path) as notify_socket, bridge:
        eventually(lambda: b'"snapshot_completed"' in _read(records), within=60)
        secret_containers.create_while_running()
        eventually(
            lambda: all(each.encode() in _read(records) for each in secret_containers.published_labels), within=60
        )
        eventually(lambda: _sinks_tried(program, brokers), within=60)
        _collect_outputs(program, secret_containers)
        _reload(program, secret_containers.canaries.new)
        secret_containers.stop_some()
        eventually(lambda: b'"exited"' in _read(records), within=60)
        outputs["the command line of the process"] = Path(f"/proc/{bridge.process.pid}/cmdline").read_bytes()
        bridge.kill()
        outputs |= {f"state/{name}": content for name, content in read_files(program.state).items()}
        _restart_with_text_logs(program)
    outputs["messages to systemd"] = notify_socket.received
    for each in brokers.nats:
        each.stop()
    outputs |= brokers.topic_contents() | brokers.stream_contents()
    outputs |= {"log": bridge.log.read_bytes(), "stdout": bridge.out.read_bytes(), "file": _read(records)}
    outputs["outbox"] = b"".join(content for output, content in outputs.items() if output.startswith("state/outbox.db"))
    assert len(secret_containers.canaries.locations) >= 50
    assert secret_containers.canaries.find_leaks(outputs) == []
    (location, secret), *_ = secret_containers.canaries.locations.items()
    assert secret_containers.canaries.find_leaks({"itself": secret.encode()}) == [f"{location} in itself"]
    assert [output for output, content in outputs.items() if b"Traceback" in content] == []
    _check_published_labels(outputs, secret_containers)


@pytest.mark.parametrize("engine", ["1.6"], indirect=True)
def test_secrets_are_not_leaked_with_older_containerd(secret_containers: SecretContainers, tmp_path: Path) -> None:
    """Versions differ only in the data of containerd, so brokers and commands are not covered."""
    namespaces = ("--namespace", secret_containers.namespace, "--namespace", "k8s.io")
    labels = secret_containers.published_labels
    with BridgeProcess(secret_containers.engine.address, tmp_path, *namespaces, state_dir=tmp_path / "state") as bridge:
        bridge.wait_synced()
        secret_containers.create_while_running()
        bridge.wait(lambda _: labels[3] in bridge.out.read_text(), "start of the last container")
        bridge.kill()
    outbox = b"".join(read_files(tmp_path / "state").values())
    outputs = {"records": bridge.out.read_bytes(), "log": bridge.log.read_bytes(), "outbox": outbox}
    assert secret_containers.canaries.find_leaks(outputs) == []
    for output in ("records", "outbox"):
        assert [label for label in labels if label.encode() not in outputs[output]] == [], output


def _restart_with_text_logs(program: BridgeProgram) -> None:
    """Restart after the crash, with logs in the console format."""
    program.settings["log"]["format"] = "console"
    program.write()
    length = len(program.log())
    program.bridge.start()
    eventually(lambda: "wrong-plain" in program.log()[length:] and "synced" in program.log()[length:])
    program.bridge.stop()


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _sinks_tried(program: BridgeProgram, brokers: SecretBrokers) -> bool:
    """Return whether, by /readyz, all failing sinks have failed and all working ones have no backlog."""
    sinks = {each["id"]: each for each in json.loads(program.get("/readyz")[1])["sinks"]}
    failed = all(sinks[id_]["last_error"] for id_ in brokers.failing_sinks)
    return failed and not any(sinks[id_]["backlog_records"] for id_ in brokers.working_sinks)


def _collect_outputs(program: BridgeProgram, secret_containers: SecretContainers) -> None:
    """Collect the output of all commands and HTTP paths while the bridge runs."""
    new_canary = secret_containers.canaries.new
    for path in ("/", "/livez", "/readyz", "/metrics", "/containers"):
        program.get(path)
    program.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    bearer = f"Bearer {new_canary('bearer token')}"
    assert program.get("/snapshot", "POST", Authorization=bearer)[0] == http.client.NOT_FOUND
    assert program.get(f"/nowhere?token={new_canary('token in a query')}")[0] == http.client.NOT_FOUND
    program.send_invalid_request(new_canary("header of an invalid request"))
    config = ("--config", str(program.config))
    name = f"before-{secret_containers.namespace}"
    program.run_command("list", "list", *config)
    program.run_command("list --json", "list", "--json", *config)
    program.run_command("inspect", "inspect", name, *config)
    program.run_command("check", "check", *config, status=3)
    program.run_command("check --json", "check", "--json", *config, status=3)
    program.run_command("doctor", "doctor", "--containerd", secret_containers.engine.address)
    program.run_command("snapshot", "snapshot", "--state-dir", str(program.state))
    program.run_command("schema", "schema", "config")
    for id_ in ("inline", "user"):
        program.run_command(f"tail {id_}", "tail", id_, *config, "--no-follow", "--json")
    with Terminal([*WHALEBRIDGE, "watch", *config], {**ENVIRONMENT, **program.environment}) as terminal:
        terminal.wait(lambda page: name in page, "container")
        terminal.stop(signal.SIGINT)
        program.outputs["watch"] = terminal.text.encode()


def _reload(program: BridgeProgram, insert: Callable[[str], str]) -> None:
    """Reload changed secrets, then invalid settings with others."""
    program.settings["sinks"]["wrong-plain"]["auth"]["password"] = insert("new password of Kafka")
    program.write()
    program.bridge.process.send_signal(signal.SIGHUP)
    eventually(lambda: "settings_reloaded" in program.log() and "auth.password" in program.log())
    good = program.config.read_text()
    for text in _write_invalid_settings(insert):
        program.config.write_text(text)
        failures = program.log().count("settings_reload_failed")
        program.bridge.process.send_signal(signal.SIGHUP)
        eventually(lambda: program.log().count("settings_reload_failed") > failures)  # noqa: B023 (called at once)
    program.config.write_text(good)


def _write_invalid_settings(insert: Callable[[str], str]) -> list[str]:
    """Return invalid settings with secrets in wrong places."""
    kafka, nats = "type: kafka, bootstrap_servers: h, topic: t", "type: nats, servers: h, subject_prefix: s"
    return [
        f"sinks: ['kafka://u:{insert('list')}@h/t']",
        f"sinks: 'kafka://u:{insert('URLs')}@h/t'",
        f"sinks: {{a: 'kafka://u:{insert('URL')}@h/t'}}",
        f"sinks: {{a: {{type: 'kafka://u:{insert('type')}@h/t'}}}}",
        f"sinks: {{a: {{{kafka}, auth: {{username: u, password: a,{insert('part after a comma')}}}}}}}",
        f"sinks: {{a: {{{kafka}, auth: {{username: u, password_file: {insert('password as its file')}}}}}}}",
        f"sinks: {{a: {{{nats}, auth: {{nkey_seed_file: {insert('seed as its file')}}}}}}}",
        f"sinks: {{a: {{{nats}, auth: {{token: [{insert('token in a list')}]}}}}}}",
        f"sinks: {{a: {{type: nats, servers: 'u:{insert('login in servers')}@h', subject_prefix: s}}}}",
        f"sinks: {{a: {{{nats}, auth: {{token: {insert('key')}, tokn: {insert('typo')}, user: 5}}}}}}",
        f"http:\n  listen: %{insert('broken YAML')}\n",
        f"containerd: {{address: 'tcp://u:{insert('login in an address')}@h', socket: x}}",
    ]


def _check_published_labels(outputs: Mapping[str, bytes], secret_containers: SecretContainers) -> None:
    """Check that allowed labels are in all outputs with labels, so that the search is known to work."""
    before, pod, image_, later = (each.encode() for each in secret_containers.published_labels)
    everywhere = ["inline", "by-environment", "by-token", "states", "file", "outbox", "GET /containers 200 []"]
    for output in (*everywhere, "whalebridge list --json", "whalebridge tail inline", "whalebridge tail user"):
        assert [each for each in (before, pod, image_, later) if each not in outputs[output]] == [], output
    assert before in outputs["whalebridge inspect"]
    assert before in outputs["state/dead-letters.jsonl"]
    stored = {output: content for output, content in outputs.items() if output.endswith(".blk")}
    for stream in ("WHALEBRIDGE_USER", "WHALEBRIDGE_TOKEN", "WHALEBRIDGE_NKEY", "WHALEBRIDGE_CREDS", "KV_states"):
        assert any(before in content for output, content in stored.items() if stream in output), stream
    assert b"[redacted]" in outputs["file"]
    name = f"before-{secret_containers.namespace}".encode()
    assert [output for output in ("watch", "GET / 200 []") if name not in outputs[output]] == []
    assert b"wrong-plain" in outputs["messages to systemd"]
    assert b"auth.password" in outputs["log"]
    assert b"auth.token" in outputs["log"]
