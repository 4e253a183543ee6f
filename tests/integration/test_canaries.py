"""P9: secrets of containers and of the settings are nowhere to be seen; labels that the rules let through are.

Each is put where people put secrets, and where they put them by mistake. Then all that the program writes, sends and
answers is searched as raw bytes.
"""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
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
from tests.integration.canaries import Canaries, Notified, files
from tests.integration.canary_places import Brokers, World, all_brokers
from tests.integration.commands import ENVIRONMENT, WHALEBRIDGE
from tests.integration.kafka_sinks import FreshKafka
from tests.integration.nats_reading import FreshNats
from tests.integration.terminal import Terminal
from tests.testbed.containerd import Containerd


@pytest.fixture
def world(engine: Containerd, tmp_path: Path) -> Iterator[World]:
    world = World(engine, Canaries(), tmp_path)
    world.before()
    yield world
    world.clear()


@pytest.fixture
def brokers(
    world: World, fresh_kafka: FreshKafka, fresh_nats: FreshNats, authority: Authority, tmp_path: Path
) -> Brokers:
    return all_brokers(world, fresh_kafka, fresh_nats, authority, tmp_path)


class Program:
    """The bridge with these settings, other commands with the same, and everything that was seen of them."""

    def __init__(self, world: World, brokers: Brokers, folder: Path) -> None:
        self.seen: dict[str, bytes] = {}
        self.state = folder / "state"
        self.config = folder / "config.yaml"
        self._canaries = world.canaries
        self.settings: dict[str, Any] = {
            "containerd": {"address": world.engine.address},
            "namespaces": {"include": [world.namespace, "k8s.io"]},
            "containers": {
                "names": {"include": [f"*{world.namespace}"]},
                "additional_events": ["created", "deleted", "renamed"],
            },
            "sinks": brokers.good | brokers.bad,
            "state_dir": str(self.state),
            "heartbeat": {"interval": "1s"},
            "http": {"listen": "127.0.0.1:0"},
            "log": {"level": "debug", "format": "json"},
        }
        self.write()
        self.environment = brokers.environment | {"WHALEBRIDGE_HTTP__LISTEN": "127.0.0.1:0"}
        self.notified = folder / "notify"
        self.bridge = BridgeProcess(
            world.engine.address,
            folder,
            "--config",
            str(self.config),
            environment={**self.environment, "NOTIFY_SOCKET": str(self.notified)},
        )

    def write(self) -> None:
        self.config.write_text(yaml.safe_dump(self.settings))

    def log(self) -> str:
        return self.bridge.log.read_text()

    def call(self, name: str, *arguments: str, status: int = 0) -> bytes:
        """Call a command, with the environment where it reads the file; what it says is seen."""
        more = self.environment if "--config" in arguments else {}
        done = subprocess.run(
            [*WHALEBRIDGE, *arguments],
            env={**ENVIRONMENT, **more},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == status, (name, done.stdout[-2000:], done.stderr[-2000:])
        self.seen[f"whalebridge {name}"] = done.stdout + done.stderr
        return done.stdout

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, bytes]:
        """Ask the HTTP endpoint; what it answers is seen."""
        (address,) = re.findall(r"127\.0\.0\.1:\d+", next(line for line in self.log().splitlines() if "listen" in line))
        request = urllib.request.Request(f"http://{address}{path}", method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=40) as answer:  # noqa: S310 (a snapshot has 30 s)
                status, body, told = answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                status, body, told = error.code, error.read(), error.headers
        self.seen[f"{method} {path.partition('?')[0]} {status} {sorted(headers)}"] = str(told).encode() + body
        return status, body

    def ask_nonsense(self, secret: str) -> None:
        """Send what is no HTTP: who sent it may get it back, the log may not."""
        (address,) = re.findall(r"127\.0\.0\.1:(\d+)", next(x for x in self.log().splitlines() if "listen" in x))
        for text in (f"GET / HTTP/1.1\r\nAuthorization Bearer {secret}\r\n\r\n", f"{secret}\r\n\r\n"):
            with socket.create_connection(("127.0.0.1", int(address)), timeout=10) as connection:
                connection.sendall(text.encode())
                connection.recv(65536)


@pytest.mark.parametrize("engine", ["2.4"], indirect=True)
def test_no_canary_is_anywhere_but_in_labels_that_the_rules_let_through(
    world: World, brokers: Brokers, tmp_path: Path
) -> None:
    program, records = Program(world, brokers, tmp_path), tmp_path / "events.jsonl"
    seen, bridge = program.seen, program.bridge
    with Notified(program.notified) as notified, bridge:
        eventually(lambda: b'"snapshot_completed"' in _read(records), within=60)
        world.live()
        eventually(lambda: all(each.encode() in _read(records) for each in world.told), within=60)
        eventually(lambda: _tried(program, brokers), within=60)
        _look(program, world)
        _reload(program, world.canaries.new)
        world.end()
        eventually(lambda: b'"exited"' in _read(records), within=60)
        seen["the command line of the process"] = Path(f"/proc/{bridge.process.pid}/cmdline").read_bytes()
        bridge.kill()
        seen |= {f"state/{name}": content for name, content in files(program.state).items()}
        _go_on_for_people(program)
    seen["what systemd heard"] = notified.heard
    for each in brokers.nats:
        each.stop()
    seen |= brokers.topics() | brokers.streams()
    seen |= {"log": bridge.log.read_bytes(), "stdout": bridge.out.read_bytes(), "file": _read(records)}
    seen["outbox"] = b"".join(content for where, content in seen.items() if where.startswith("state/outbox.db"))
    assert len(world.canaries.put) >= 50
    assert world.canaries.leaked(seen) == []
    assert [where for where, content in seen.items() if b"Traceback" in content] == []
    _check_what_may_be_told(seen, world)


@pytest.mark.parametrize("engine", ["1.6"], indirect=True)
def test_an_older_containerd_gives_no_more_away(world: World, tmp_path: Path) -> None:
    """What differs between versions is what comes from containerd, so brokers and commands are left out."""
    namespaces, told = ("--namespace", world.namespace, "--namespace", "k8s.io"), world.told
    with BridgeProcess(world.engine.address, tmp_path, *namespaces, state_dir=tmp_path / "state") as bridge:
        bridge.wait_live()
        world.live()
        bridge.wait(lambda _: told[3] in bridge.out.read_text(), "start of the last container")
        bridge.kill()
    outbox = b"".join(files(tmp_path / "state").values())
    seen = {"records": bridge.out.read_bytes(), "log": bridge.log.read_bytes(), "outbox": outbox}
    assert world.canaries.leaked(seen) == []
    for where in ("records", "outbox"):
        assert [label for label in told if label.encode() not in seen[where]] == [], where


def test_wrong_settings_and_wrong_usage_repeat_no_secret(tmp_path: Path) -> None:
    canaries, told = Canaries(), {}
    wrong = tmp_path / "wrong.yaml"
    for text in _wrong(canaries.new, "at the start"):
        wrong.write_text(text)
        told[text] = _refused("run", "--config", str(wrong))
    for scheme in ("kafka", "amqp"):
        url = f"{scheme}://user:{canaries.new(f'{scheme} URL on the command line')}@h:1/t"
        for command in (["run", "--sink", url], ["run", url], [url], ["tail", url], ["check", "--sink", url]):
            told[" ".join(command)] = _refused(*command)
    assert canaries.leaked(told) == []
    canary = next(iter(canaries.put.values()))
    assert canaries.leaked({"it": _refused("inspect", "x", canary)}) == ["list at the start in it"]  # it can be found


def _refused(*arguments: str) -> bytes:
    done = subprocess.run(
        [*WHALEBRIDGE, *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 2, done
    return done.stdout + done.stderr


def _go_on_for_people(program: Program) -> None:
    """Start once more, with log lines for people, after what was a crash."""
    program.settings["log"]["format"] = "console"
    program.write()
    said = len(program.log())
    program.bridge.start()
    eventually(lambda: "wrong-plain" in program.log()[said:] and "synced" in program.log()[said:], within=30)
    program.bridge.stop()


def _read(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


def _tried(program: Program, brokers: Brokers) -> bool:
    """Whether all bad sinks have failed, and all good ones have everything, as /readyz says it."""
    sinks = {each["id"]: each for each in json.loads(program.get("/readyz")[1])["sinks"]}
    failed = all(sinks[id_]["last_error"] for id_ in brokers.bad)
    return failed and not any(sinks[id_]["backlog_records"] for id_ in brokers.good)


def _look(program: Program, world: World) -> None:
    """Look at all there is to look at while the bridge runs."""
    put = world.canaries.new
    for path in ("/", "/livez", "/readyz", "/metrics", "/containers"):
        program.get(path)
    program.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    bearer = f"Bearer {put('bearer token')}"
    assert program.get("/snapshot", "POST", Authorization=bearer)[0] == http.client.NOT_FOUND
    assert program.get(f"/nowhere?token={put('token in a query')}")[0] == http.client.NOT_FOUND
    program.ask_nonsense(put("header of a request that is none"))
    config = ("--config", str(program.config))
    name = f"before-{world.namespace}"
    program.call("list", "list", *config)
    program.call("list --json", "list", "--json", *config)
    program.call("inspect", "inspect", name, *config)
    program.call("check", "check", *config, status=3)
    program.call("check --json", "check", "--json", *config, status=3)
    program.call("doctor", "doctor", "--containerd", world.engine.address)
    program.call("snapshot", "snapshot", "--state-dir", str(program.state))
    program.call("schema", "schema", "config")
    for id_ in ("inline", "user"):
        program.call(f"tail {id_}", "tail", id_, *config, "--no-follow", "--json")
    with Terminal([*WHALEBRIDGE, "watch", *config], {**ENVIRONMENT, **program.environment}) as terminal:
        terminal.wait(lambda page: name in page, "container")
        terminal.end(signal.SIGINT)
        program.seen["watch"] = terminal.text.encode()


def _reload(program: Program, put: Callable[[str], str]) -> None:
    """Change secrets, and then break the file around others."""
    program.settings["sinks"]["wrong-plain"]["auth"]["password"] = put("new password of Kafka")
    program.write()
    program.bridge.process.send_signal(signal.SIGHUP)
    eventually(lambda: "settings_reloaded" in program.log() and "auth.password" in program.log(), within=30)
    good = program.config.read_text()
    for text in _wrong(put, "at a reload"):
        program.config.write_text(text)
        told = program.log().count("settings_reload_failed")
        program.bridge.process.send_signal(signal.SIGHUP)
        eventually(lambda: program.log().count("settings_reload_failed") > told, within=30)  # noqa: B023 (called at once)
    program.config.write_text(good)


def _wrong(put: Callable[[str], str], when: str) -> list[str]:
    """Settings with secrets where they are a mistake."""
    kafka, nats = "type: kafka, bootstrap_servers: h, topic: t", "type: nats, servers: h, subject_prefix: s"
    return [
        f"sinks: ['kafka://u:{put(f'list {when}')}@h/t']",
        f"sinks: 'kafka://u:{put(f'URLs {when}')}@h/t'",
        f"sinks: {{a: 'kafka://u:{put(f'URL {when}')}@h/t'}}",
        f"sinks: {{a: {{type: 'kafka://u:{put(f'type {when}')}@h/t'}}}}",
        f"sinks: {{a: {{{kafka}, auth: {{username: u, password: a,{put(f'part after a comma {when}')}}}}}}}",
        f"sinks: {{a: {{{kafka}, auth: {{username: u, password_file: {put(f'password as its file {when}')}}}}}}}",
        f"sinks: {{a: {{{nats}, auth: {{nkey_seed_file: {put(f'seed as its file {when}')}}}}}}}",
        f"sinks: {{a: {{{nats}, auth: {{token: [{put(f'token in a list {when}')}]}}}}}}",
        f"sinks: {{a: {{type: nats, servers: 'u:{put(f'login in servers {when}')}@h', subject_prefix: s}}}}",
        f"sinks: {{a: {{{nats}, auth: {{token: {put(f'token {when}')}, tokn: {put(f'misspelt {when}')}, user: 5}}}}}}",
        f"http:\n  listen: %{put(f'broken YAML {when}')}\n",
        f"containerd: {{address: 'tcp://u:{put(f'login in an address {when}')}@h', socket: x}}",
    ]


def _check_what_may_be_told(seen: Mapping[str, bytes], world: World) -> None:
    """The search finds what is there: labels that the rules let through are wherever labels belong."""
    before, pod, image_, live = (each.encode() for each in world.told)
    everywhere = ["inline", "by-environment", "by-token", "rows", "file", "outbox", "GET /containers 200 []"]
    for where in (*everywhere, "whalebridge list --json", "whalebridge tail inline", "whalebridge tail user"):
        assert [each for each in (before, pod, image_, live) if each not in seen[where]] == [], where
    assert before in seen["whalebridge inspect"]
    assert before in seen["state/dead-letters.jsonl"]
    stored = {where: content for where, content in seen.items() if where.endswith(".blk")}
    for stream in ("WHALEBRIDGE_USER", "WHALEBRIDGE_TOKEN", "WHALEBRIDGE_NKEY", "WHALEBRIDGE_CREDS", "KV_rows"):
        assert any(before in content for where, content in stored.items() if stream in where), stream
    assert b"[redacted]" in seen["file"]
    name = f"before-{world.namespace}".encode()
    assert [where for where in ("watch", "GET / 200 []") if name not in seen[where]] == []
    assert b"wrong-plain" in seen["what systemd heard"]
    assert b"auth.password" in seen["log"]
    assert b"auth.token" in seen["log"]
