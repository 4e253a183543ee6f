"""`whalebridge check` and `doctor` on real peers, available and not: passwords, permissions, a compacted topic."""

from __future__ import annotations

import itertools
import json
import os
import select
import socket
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

from bridge.cli.preflight import SINK_TIMEOUT_SECONDS
from bridge.outbox.schema import APPLICATION_ID
from tests.bridge_process import BridgeProcess
from tests.integration.commands import ENVIRONMENT, WHALEBRIDGE, ContainerFactory, whalebridge
from tests.integration.engines import one_engine
from tests.naming import assert_names
from tests.testbed.containerd import Containerd
from tests.testbed.http_receiver import HttpReceiver
from tests.testbed.kafka import USERS, Kafka
from tests.testbed.nats import Nats
from tests.testbed.nats_auth import users_config
from tests.testbed.server import HOST

SECRET = "hunter2-swordfish"  # noqa: S105 (a dummy)
_numbers = itertools.count()


def unique_name() -> str:
    return f"check-{os.getpid()}-{next(_numbers)}"


def check(*arguments: str, **environment: str) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    """Run `whalebridge check`; return the exit status, and the results by check as (status, message and hint)."""
    variables = {f"WHALEBRIDGE_{key}": value for key, value in environment.items()}
    done = whalebridge("check", "--json", *arguments, environment=variables)
    assert done.stderr == ""
    assert SECRET not in done.stdout
    results: dict[str, list[tuple[str, str]]] = {}
    for each in json.loads(done.stdout)["results"]:
        text = f"{each['message']}; {each['hint']}" if each["hint"] else each["message"]
        results.setdefault(each["check"], []).append((each["status"], text))
    return done.returncode, results


# --- doctor ---


def test_doctor_reports_usable_containerd(container_factory: ContainerFactory) -> None:
    container_factory.run("doctor-shop")
    done = whalebridge("doctor", "--containerd", container_factory.address, "--json")
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    assert container_factory.address in document["usable"]
    own_results = [each for each in document["results"] if each["check"] == container_factory.address]
    assert {each["status"] for each in own_results} == {"ok"}
    text = "\n".join(each["message"] for each in own_results)
    assert_names(text, "0660 root:root", f"containerd {container_factory.engine.version}", "doctor-shop 1")
    assert len(own_results) >= 4, "socket, engine, events, containers"
    checks = {each["check"] for each in document["results"]}
    assert {"/run/k3s/containerd/containerd.sock", "/run/k0s/containerd.sock"} <= checks


@one_engine
def test_doctor_recognizes_symlink_to_same_socket(engine: Containerd, tmp_path: Path) -> None:
    link = tmp_path / "c.sock"
    link.symlink_to(engine.address)
    done = whalebridge("doctor", "--containerd", engine.address, "--containerd", f"unix://{link}")
    assert done.returncode == 0
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"ok        {link}: ")]
    assert_names(line, engine.address)


@contextmanager
def rootless(engine: Containerd) -> Iterator[int]:
    """Make containerd's socket available as RootlessKit does: in the namespaces of a process, whose id is yielded."""
    socket_path = "/run/containerd/containerd.sock"
    script = (
        f"mount -t tmpfs tmpfs /run && mkdir {os.path.dirname(socket_path)} && touch {socket_path} &&"
        f" mount --bind {engine.address} {socket_path} && echo ready && exec cat"
    )
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.communicate()


def doctor_of_user(child_pid: int, *setup: str) -> tuple[list[str], dict[str, list[dict[str, str]]]]:
    """Run doctor where root is a user who runs a rootless containerd; return the usable sockets and all results."""
    commands = [
        "mount -t tmpfs tmpfs /run",
        "mkdir -p /run/user/0/containerd /run/user/0/containerd-rootless",
        f"echo {child_pid} > /run/user/0/containerd-rootless/child_pid",
        *setup,
        'exec "$@"',
    ]
    done = whalebridge("doctor", "--json", prefix=["unshare", "--mount", "sh", "-c", " && ".join(commands), "sh"])
    assert done.returncode == 0, done.stdout
    document = json.loads(done.stdout)
    results: dict[str, list[dict[str, str]]] = {}
    for result in document["results"]:
        results.setdefault(result["check"], []).append(result)
    return document["usable"], results


@one_engine
def test_doctor_finds_rootless_containerd(container_factory: ContainerFactory) -> None:
    name = container_factory.run("rootless-shop")
    with rootless(container_factory.engine) as pid:
        inside = f"/proc/{pid}/root/run/containerd/containerd.sock"
        usable, results = doctor_of_user(pid)
        assert usable == [inside]
        assert {each["status"] for each in results[inside]} == {"ok"}
        text = " ".join(each["message"] for each in results[inside])
        assert_names(text, "rootless containerd of root", "rootless-shop 1", "a marker event was received")
        (hint,) = [each["hint"] for each in results[inside] if each["hint"]]
        command = hint.removeprefix("to watch it, run as root: ").removesuffix(" whalebridge run")
        prefix = command.replace("$(cat /run/user/0/containerd-rootless/child_pid)", str(pid)).split()
        with subprocess.Popen([*prefix, *WHALEBRIDGE, "run"], env=ENVIRONMENT, stdout=subprocess.PIPE) as bridge:
            assert bridge.stdout is not None
            assert any(name.encode() in line for line in bridge.stdout)
            bridge.terminate()


@one_engine
def test_doctor_prefers_socket_outside_of_namespaces(engine: Containerd) -> None:
    """nerdctl's containerd-rootless.sh makes the same socket available there; its path outlives the process."""
    outside = "/run/user/0/containerd/containerd.sock"
    with rootless(engine) as pid:
        usable, results = doctor_of_user(pid, f"ln -s {engine.address} {outside}")
    assert usable == [outside]
    assert_names(results[outside][0]["message"], "rootless containerd of root")
    (inside,) = results[f"/proc/{pid}/root/run/containerd/containerd.sock"]
    assert (inside["status"], inside["message"]) == ("ok", f"the same socket as {outside}")


def test_doctor_reports_error_when_socket_is_silent(tmp_path: Path) -> None:
    """As the socket of a containerd that hangs."""
    path = str(tmp_path / "silent.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        done = whalebridge("doctor", "--containerd", path)
    assert done.returncode == 1
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(f"error     {path}: ")]
    assert_names(line, "5 s")


# --- check: settings, containerd, state_dir ---


@one_engine
def test_check_exits_1_when_http_address_is_unusable(engine: Containerd) -> None:
    def check_listen(listen: str) -> tuple[int, list[tuple[str, str]]]:
        status, results = check("--containerd", engine.address, HTTP__LISTEN=listen)
        return status, results["http"]

    for address, expected_status, expected_result, reason in (
        ("192.0.2.1:9", 1, "error", "http.listen 192.0.2.1:9: Cannot assign requested address"),
        ("127.0.0.1:0", 0, "ok", "127.0.0.1:0"),
    ):
        status, ((result, text),) = check_listen(address)
        assert (status, result) == (expected_status, expected_result)
        assert_names(text, reason)
    with socket.create_server(("127.0.0.1", 0)) as server:
        in_use = f"127.0.0.1:{server.getsockname()[1]}"
        status, ((result, text),) = check_listen(in_use)
    assert (status, result) == (0, "warning")
    assert_names(text, f"http.listen {in_use}", "Address already in use")


@one_engine
def test_check_passes_when_state_dir_is_used_by_running_bridge(engine: Containerd, tmp_path: Path) -> None:
    flags = ("--containerd", engine.address, "--state-dir", str(tmp_path / "state"), f"--sink=file:{tmp_path}/events")
    status, results = check(*flags)
    result, text = results["state_dir"][0]
    assert (status, result) == (0, "ok")
    assert_names(text, f"{tmp_path}/state")
    assert (tmp_path / "events").read_bytes() == b""
    with BridgeProcess(
        engine.address, tmp_path, sinks=[f"file:{tmp_path}/events"], state_dir=tmp_path / "state"
    ) as bridge:
        bridge.wait_logged("synced")
        status, results = check(*flags)
        (result, text), *_ = results["state_dir"]
        assert (status, result) == (0, "ok")
        assert_names(text, f"{tmp_path}/state", f"process {bridge.process.pid}")
        assert results["file"][0][0] == "warning"


@one_engine
def test_check_exits_1_when_state_dir_is_unusable(engine: Containerd, tmp_path: Path) -> None:
    (tmp_path / "letters").write_text("mine")
    status, results = check("--containerd", engine.address, "--state-dir", str(tmp_path))
    assert status == 1
    assert_names(results["state_dir"][0][1], f"state_dir {tmp_path}")
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as newer:
        newer.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 99")
    before = (tmp_path / "outbox.db").read_bytes()
    status, results = check("--containerd", engine.address, "--state-dir", str(tmp_path))
    assert status == 1
    assert_names(results["state_dir"][0][1], tmp_path / "outbox.db", "99")
    assert (tmp_path / "outbox.db").read_bytes() == before
    (tmp_path / "outbox.db").write_text("not an SQLite database, which run would quarantine")
    assert check("--containerd", engine.address, "--state-dir", str(tmp_path))[0] == 0
    volatile = Path("/dev/shm", unique_name())
    status, results = check("--containerd", engine.address, "--state-dir", str(volatile))
    (volatile / "whalebridge.lock").unlink()
    volatile.rmdir()
    assert status == 0
    (warning,) = [text for result, text in results["state_dir"] if result == "warning" and "tmpfs" in text]
    assert_names(warning, volatile)


# --- check: Kafka ---


def kafka_sink(kafka: Kafka, topic: str, **more: str) -> dict[str, str]:
    servers = kafka.bootstrap_for("sasl_plaintext") if more else kafka.bootstrap
    sink = {"TYPE": "kafka", "BOOTSTRAP_SERVERS": servers, "TOPIC": topic, **more}
    return {f"SINKS__MAIN__{key}": value for key, value in sink.items()}


def auth(user: str, password: str) -> dict[str, str]:
    return {"AUTH__MECHANISM": "scram-sha-256", "AUTH__USERNAME": user, "AUTH__PASSWORD": password}


@one_engine
def test_check_connects_to_kafka_without_publishing(engine: Containerd, kafka: Kafka) -> None:
    topic = unique_name()
    status, results = check("--containerd", engine.address, **kafka_sink(kafka, topic))
    assert status == 0
    connected, created = results["main"]
    assert (connected[0], created[0]) == ("ok", "ok")
    assert_names(connected[1], kafka.bootstrap, topic)
    assert_names(created[1], "topic_created", topic)
    assert kafka.admin.records(topic) == []
    assert kafka.admin.describe(topic)["settings"]["cleanup.policy"] == "delete"


@one_engine
def test_check_exits_3_when_kafka_password_is_wrong(engine: Containerd, kafka: Kafka) -> None:
    topic = unique_name()
    status, results = check("--containerd", engine.address, **kafka_sink(kafka, topic, **auth("bridge", SECRET)))
    assert status == 3
    ((result, text),) = results["main"]
    assert result == "error"
    assert_names(text, "user bridge", "scram-sha-256", "auth.password")
    status, _ = check("--containerd", engine.address, **kafka_sink(kafka, topic, **auth("bridge", USERS["bridge"])))
    assert status == 0


# --- check: HTTP ---


@one_engine
def test_check_connects_to_http_receiver_without_publishing(engine: Containerd, http_receiver: HttpReceiver) -> None:
    name = unique_name()
    url = f"{http_receiver.url}/{name}"
    status, results = check("--containerd", engine.address, "--sink", f"main={url}?key={SECRET}")
    assert (status, results["main"][0][0]) == (0, "ok")
    assert_names(results["main"][0][1], url)
    assert http_receiver.stored(name) == []


@one_engine
def test_check_fails_when_http_receiver_is_unusable(engine: Containerd, http_receiver: HttpReceiver) -> None:
    for url, expected in ((f"{http_receiver.url}/moved/x", 1), ("http://127.0.0.1:1/x", 3)):
        status, results = check("--containerd", engine.address, "--sink", url)
        assert (status, results["http"][0][0]) == (expected, "error")
        assert_names(results["http"][0][1], url)


# --- check: NATS ---


@one_engine
def test_check_connects_to_nats_without_publishing(engine: Containerd, nats: Nats) -> None:
    subject = unique_name()
    stream = f"WHALEBRIDGE_{subject.upper()}"
    status, results = check("--containerd", engine.address, "--sink", f"{nats.url}/{subject}")
    assert status == 0
    (result, text), *more = results["nats"]
    assert result == "ok"
    assert_names(text, HOST, stream)
    assert any("stream_created" in text for _, text in more)
    (detail,) = [
        each
        for account in nats.monitor("jsz?accounts=true&streams=true")["account_details"]
        for each in account["stream_detail"]
        if each["name"] == stream
    ]
    assert detail["state"]["messages"] == 0


@one_engine
def test_check_warns_when_retention_is_below_snapshot_interval(engine: Containerd, kafka: Kafka, nats: Nats) -> None:
    """The duplicate window of the created stream follows its retention: the server accepts it."""
    name = unique_name()
    kafka.admin.create_topic(name, settings={"retention.ms": "60000"})
    sinks = {
        "SINKS__KAFKA": f"kafka://{kafka.bootstrap_for('plaintext')}/{name}",
        "SINKS__NATS": f"{nats.url}/{name}",
        "SINKS__NATS__STREAM__MAX_AGE": "5m",
    }
    for interval, is_too_long in (("6h", True), ("30s", False)):
        status, results = check("--containerd", engine.address, SNAPSHOT__INTERVAL=interval, **sinks)
        assert status == 0
        warnings = {id_: [text for result, text in results[id_] if result == "warning"] for id_ in ("kafka", "nats")}
        assert {id_: len(texts) for id_, texts in warnings.items()} == dict.fromkeys(warnings, int(is_too_long))
        if is_too_long:
            assert_names(warnings["kafka"][0], "retention.ms (60 s)", "snapshot.interval (21600 s)")
            assert_names(warnings["nats"][0], "max_age (300 s)", "snapshot.interval (21600 s)")


@one_engine
def test_check_exits_3_when_nats_rejects_user(engine: Containerd, nats_factory: Callable[..., Nats]) -> None:
    nats = nats_factory(auth=users_config({"bridge": "right"}))
    servers = {"TYPE": "nats", "SERVERS": f"{HOST}:{nats.nodes[0].port}", "SUBJECT_PREFIX": "s"}

    def check_user(user: str, password: str) -> tuple[int, str]:
        sink = servers | {"AUTH__USER": user, "AUTH__PASSWORD": password}
        environment = {f"SINKS__MAIN__{name}": value for name, value in sink.items()}
        status, results = check("--containerd", engine.address, **environment)
        return status, results["main"][0][1]

    status, text = check_user("bridge", SECRET)
    assert status == 3
    assert_names(text, "Authorization Violation", "auth.password")
    assert check_user("bridge", "right")[0] == 0


def time_of_connection(listener: socket.socket) -> float:
    """Wait until a client connects; return the time of the monotonic clock."""
    readable, _, _ = select.select([listener], [], [], 60)
    assert readable
    return time.monotonic()


@one_engine
def test_check_tries_unresponsive_brokers_concurrently(engine: Containerd) -> None:
    """The servers accept connections and send nothing, which takes longest."""
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind((HOST, 0))
            each.listen()
        urls = [f"kafka://{HOST}:{first.getsockname()[1]}/t", f"nats://{HOST}:{second.getsockname()[1]}/t"]
        with ThreadPoolExecutor(2) as executor:
            connected = [executor.submit(time_of_connection, each) for each in (first, second)]
            status, results = check("--containerd", engine.address, *(f"--sink={url}" for url in urls))
        times = [each.result() for each in connected]
        assert max(times) - min(times) < SINK_TIMEOUT_SECONDS / 2
    assert status == 3
    assert results["kafka"][0][0] == results["nats"][0][0] == "error"
    assert results[engine.address][0][0] == "ok"
