"""Test the help of each command and the errors of wrong usage: exit status, one line, the named option.

Each command has a golden file with its help and the output of the invocations below. No test needs a real containerd.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import structlog

import bridge
from bridge.cli import execute
from bridge.cli.socket_checks import WELL_KNOWN_SOCKETS
from bridge.core.containerd_model import ContainerKey
from tests.golden import Golden
from tests.simulator.containerd import SimulatedContainerd
from tests.testbed.process import run

NO_SOCKET = "/nonexistent/c.sock"
SECRET = "hunter2"  # noqa: S105 (not a real secret)
ROOT = Path(__file__).parents[3]


class Call(NamedTuple):
    """An invocation, its exit status and the names its output must contain; with `process`, run by a shell."""

    line: str
    status: int
    named: tuple[str, ...] = ()
    process: bool = False


def call(line: str, status: int, *named: str) -> Call:
    return Call(line, status, named)


def shell(line: str, status: int, *named: str) -> Call:
    return Call(line, status, named, process=True)


USAGE = {
    "whalebridge": [
        call("whalebridge", 2, "Usage: whalebridge"),
        call("whalebridge frob", 2, "'frob'", "whalebridge --help"),
        call("whalebridge lst", 2, "'lst'", "'list'", "whalebridge --help"),
        call("whalebridge nats://u:hunter2@h/t", 2, "'nats://...@h/t'"),
    ],
    "run": [
        call("whalebridge run --frob", 2, "--frob", "whalebridge run --help"),
        call("whalebridge run extra", 2, "(extra)"),
        call("whalebridge run kafka://u:p@hunter2@h/t", 2, "(kafka://...@h/t)"),
        call("whalebridge run --sink frob:", 2, "--sink: sinks.frob: ", "'frob'", "kafkas:"),
        call("whalebridge run --sink kafka://u:hunter2@h:1/t", 2, "--sink: sinks.kafka: ", "URL"),
        call("whalebridge run --log-level loud", 2, "--log-level: log.level: ", "'debug'"),
        call("whalebridge run --state-dir https://h/x", 2, "--state-dir: state_dir: "),
        call("whalebridge run --config /nonexistent/config.yaml", 2, "/nonexistent/config.yaml: "),
        call("WHALEBRIDGE_SINKS=kafka://u:hunter2@h/t whalebridge run", 2, "WHALEBRIDGE_SINKS: sinks.kafka: "),
        shell("whalebridge run --state-dir /proc/x", 1, "state_dir /proc/x"),
        shell("whalebridge run --containerd /etc/passwd", 3, "/etc/passwd"),
        shell("whalebridge run --help >/dev/full", 1, "standard output", "No space left on device"),
        shell("whalebridge run >&-", 1, "standard output"),
    ],
    "list": [
        call(f"whalebridge list --containerd {NO_SOCKET}", 3, NO_SOCKET),
        call("whalebridge list --containerd /etc/passwd", 3, "/etc/passwd"),
        call("whalebridge list --containerd tcp://h:1", 2, "--containerd: containerd.address: "),
        call("whalebridge list --containerd", 2, "'--containerd'"),
        call("whalebridge list --namespace", 2, "'--namespace'", "whalebridge --help"),
        call("WHALEBRIDGE_FROB__X=1 whalebridge list", 2, "WHALEBRIDGE_FROB__X: frob: "),
        call("WHALEBRIDGE_NAMESPACES__INCLUDE= whalebridge list", 2, "WHALEBRIDGE_NAMESPACES__INCLUDE: namespaces.inc"),
    ],
    "inspect": [
        call("whalebridge inspect", 2, "'NAME_OR_ID'", "whalebridge inspect --help"),
        call(f"whalebridge inspect x --containerd {NO_SOCKET}", 3, NO_SOCKET),
        call("whalebridge inspect x --containerd /etc/passwd", 3, "/etc/passwd"),
    ],
    "watch": [call(f"whalebridge watch --containerd {NO_SOCKET}", 2, "'list'", "'run'")],
    "tail": [
        call("whalebridge tail", 2, "'SINK'", "whalebridge tail --help"),
        call("whalebridge tail file:/nonexistent/events", 1, "/nonexistent/events"),
        call("whalebridge tail file:/", 2, "path: "),
        call("whalebridge tail nats://127.0.0.1:1", 2, "nats://HOST:PORT"),
        call("whalebridge tail kafka://u:hunter2@h/t", 2, "URL"),
        call("whalebridge tail amqp://h/t", 2, "'amqp'"),
        call("whalebridge tail stdout:", 2, "stdout", "use - "),
        call("whalebridge tail https://h/p", 2, "http", "use - "),
        call("whalebridge tail - --since soon", 2, "--since", "15m"),
        call("whalebridge tail - --namespace default,a/b", 2, "--namespace: "),
        call("whalebridge tail main --config /nonexistent/config.yaml", 2, "/nonexistent/config.yaml: "),
        call(
            "WHALEBRIDGE_SINKS__MAIN__TYPE=nats WHALEBRIDGE_SINKS__MAIN__SERVERS=127.0.0.1:1 "
            "WHALEBRIDGE_SINKS__MAIN__SUBJECT_PREFIX=events WHALEBRIDGE_SINKS__MAIN__MODE=core "
            "whalebridge tail main --no-follow",
            2,
            "core",
        ),
    ],
    "fleet": [
        call("whalebridge fleet", 2, "'SINK'", "whalebridge fleet --help"),
        call("whalebridge fleet main", 2, "--once", "--json"),
        call("whalebridge fleet file:/nonexistent/events --once", 1, "/nonexistent/events"),
        call("whalebridge fleet kafka://u:hunter2@h/t --once", 2, "URL"),
        call("whalebridge fleet kafka://127.0.0.1:1/t --once", 3, "127.0.0.1:1"),
        call("whalebridge fleet nats://127.0.0.1:1/t --json", 3, "127.0.0.1:1"),
        call("whalebridge fleet - --at soon", 2, "--at", "15m"),
        call("whalebridge fleet - --at 2999-01-01", 2, "--at", "future"),
        call("whalebridge fleet - --diff 1h 2h", 2, "--diff"),
        call("whalebridge fleet - --diff 2h", 2, "--diff"),
        call("whalebridge fleet - --diff 2h 1h --at 3h", 2, "--diff", "--at"),
        call("whalebridge fleet - --once --status runing", 2, "--status", "'runing'", "running"),
        call("whalebridge fleet - --once --namespace a/b", 2, "--namespace: "),
        call(
            "WHALEBRIDGE_SINKS__MAIN__TYPE=nats WHALEBRIDGE_SINKS__MAIN__SERVERS=127.0.0.1:1 "
            "WHALEBRIDGE_SINKS__MAIN__SUBJECT_PREFIX=events WHALEBRIDGE_SINKS__MAIN__MODE=core "
            "whalebridge fleet main --once",
            2,
            "core",
        ),
        shell("whalebridge fleet - --once </dev/null", 1, "no records"),
    ],
    "audit": [
        call("whalebridge audit", 2, "'INPUT...'", "whalebridge audit --help"),
        call("whalebridge audit file:/nonexistent/events", 1, "/nonexistent/events"),
        call("whalebridge audit - kafka://u:hunter2@h/t", 2, "URL"),
        call(
            "WHALEBRIDGE_SINKS__MAIN__TYPE=nats WHALEBRIDGE_SINKS__MAIN__SERVERS=127.0.0.1:1 "
            "WHALEBRIDGE_SINKS__MAIN__SUBJECT_PREFIX=events WHALEBRIDGE_SINKS__MAIN__MODE=core "
            "whalebridge audit main",
            2,
            "core",
        ),
        shell("whalebridge audit - </dev/null", 1, "nothing to check"),
        shell("echo hello | whalebridge audit -", 1, "invalid: message 1 of standard input"),
    ],
    "retire": [
        call("whalebridge retire node-1", 2, "--sink"),
        call("whalebridge retire --sink kafka://h/t", 2, "--stale-for"),
        call("whalebridge retire node-1 --sink kafka://h/t --stale-for soon", 2, "--stale-for", "1d"),
        call("whalebridge retire node-1 --sink kafka://h/t --reason ''", 2, "--reason"),
        call("whalebridge retire node-1 --sink file:/tmp/x", 2, "file"),
        call("whalebridge retire node-1 --sink kafka://u:hunter2@h/t", 2, "URL"),
    ],
    "conformance": [
        call("whalebridge conformance", 2, "--sink"),
        call("whalebridge conformance --sink stdout:", 2, "stdout"),
        call("whalebridge conformance --sink kafka://u:hunter2@h/t", 2, "URL"),
        call("whalebridge conformance --sink kafka://127.0.0.1:1/t", 3, "127.0.0.1:1"),
        call("whalebridge conformance --sink file:/tmp/x --seed -1", 2, "--seed"),
    ],
    "check": [
        call(f"whalebridge check --containerd {NO_SOCKET}", 3, NO_SOCKET, "state_dir: ", "stdout: "),
        call(
            f"whalebridge check --containerd {NO_SOCKET} --sink file:/proc --state-dir /proc/x",
            3,
            "error     state_dir: state_dir /proc/x: ",
            "error     file: /proc ",
        ),
        call(
            "whalebridge check --sink frob: --log-level loud",
            2,
            "error     settings: --sink: sinks.frob: ",
            "error     settings: --log-level: log.level: ",
        ),
        call("whalebridge check --settings-only --log-level loud", 2, "error     settings: --log-level: log.level: "),
        shell(f"whalebridge check --containerd {NO_SOCKET} >/dev/full", 1, "standard output", "No space left on"),
    ],
    "doctor": [
        call(
            f"whalebridge doctor --containerd {NO_SOCKET}", 1, f"error     {NO_SOCKET}: ", *WELL_KNOWN_SOCKETS.values()
        ),
        call("whalebridge doctor --containerd /etc/passwd", 1, "error     /etc/passwd: "),
        call("whalebridge doctor --containerd /etc", 1, "error     /etc: "),
        call("whalebridge doctor --containerd", 2, "'--containerd'"),
        call("whalebridge doctor --containerd tcp://h:1", 2, "tcp://h:1"),
        shell("whalebridge doctor >&-", 1, "standard output"),
    ],
    "snapshot": [
        call("whalebridge snapshot", 2, "--state-dir"),
        call("whalebridge snapshot --state-dir /nonexistent", 1, "/nonexistent"),
        call("whalebridge snapshot --state-dir /etc/passwd", 1, "/etc/passwd"),
        call("whalebridge snapshot --state-dir /usr", 3, "/usr", "control.sock"),
    ],
    "proxy": [
        shell("whalebridge proxy --listen /nonexistent/p.sock", 1, "/nonexistent/p.sock"),
        shell("whalebridge proxy --listen /etc/passwd", 1, "/etc/passwd"),
        shell(f"whalebridge proxy --listen /tmp/{'x' * 120}", 1, "/tmp/xxx"),
        shell("whalebridge proxy --containerd tcp://x", 1, "tcp://x"),
        shell("whalebridge proxy --containerd /tmp/a.sock --listen /tmp/a.sock", 1, "/tmp/a.sock"),
        shell("whalebridge proxy --socket-mode rw", 2, "--socket-mode"),
        shell("whalebridge proxy --socket-group no-such-group", 2, "no-such-group"),
        shell("whalebridge proxy --socket-group 4294967295", 2, "4294967295"),
    ],
    "schema": [
        call("whalebridge schema", 2),
        call("whalebridge schema frob", 2, "'frob'", "whalebridge schema --help"),
        call("whalebridge schema event --help", 0, "whalebridge schema event"),
        call("whalebridge schema asyncapi --help", 0, "whalebridge schema asyncapi"),
        call("whalebridge schema config --help", 0, "whalebridge schema config"),
    ],
    "version": [
        call("whalebridge version", 0),
        shell("whalebridge version >&-", 1, "standard output"),
        shell("whalebridge version >/dev/full", 1, "standard output", "No space left on device"),
    ],
}


@pytest.fixture(autouse=True)
def usual_logging() -> Iterator[None]:
    """Restore the logging configuration that `check` changes."""
    root, handlers = logging.getLogger(), logging.getLogger().handlers[:]
    yield
    root.handlers[:] = handlers
    structlog.reset_defaults()


@pytest.fixture(autouse=True)
def fixed_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fix everything that output depends on: width, settings, host, and well-known sockets."""
    for name in list(os.environ):
        if name.startswith("WHALEBRIDGE_"):
            monkeypatch.delenv(name)
    for name, value in {"COLUMNS": "80", "WHALEBRIDGE_HTTP__LISTEN": "", "WHALEBRIDGE_HOST": "node-1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir("/")
    monkeypatch.setattr(
        "bridge.cli.socket_checks.WELL_KNOWN_SOCKETS",
        {f"/nonexistent{path}": description for path, description in WELL_KNOWN_SOCKETS.items()},
    )
    monkeypatch.setattr("bridge.cli.socket_checks.USER_DIRECTORIES", Path("/nonexistent"))


def run_in_shell(line: str) -> tuple[int, str, str]:
    command = ["sh", "-c", line.replace("whalebridge", '"$@"', 1), "sh", sys.executable, "-m", "bridge"]
    process = run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    return process.returncode, process.stdout, process.stderr


def run_in_process(
    line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    words = shlex.split(line)
    program = words.index("whalebridge")
    with monkeypatch.context() as environment:
        for setting in words[:program]:
            environment.setenv(*setting.split("=", 1))
        status = execute(words[program + 1 :])
    return status, *capsys.readouterr()


@pytest.mark.parametrize("command", USAGE)
def test_usage_matches_golden_file(
    command: str, golden: Golden, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    help_command = "whalebridge --help" if command == "whalebridge" else f"whalebridge {command} --help"
    text = ""
    for line, status, named, process in [call(help_command, 0, "Usage: whalebridge"), *USAGE[command]]:
        exit_status, out, err = run_in_shell(line) if process else run_in_process(line, monkeypatch, capsys)
        assert exit_status == status, (line, out, err)
        assert [name for name in named if name not in out + err] == [], (line, out, err)
        assert SECRET not in out + err, line
        messages = "".join(line for line in err.splitlines(keepends=True) if not line.startswith('{"timestamp"'))
        if status and out == "":
            assert re.fullmatch(r"whalebridge: .*\n", messages), (line, err)
        assert "Traceback" not in err, line
        text += f"$ {line}\n{out}{messages}exit status {status}\n\n"
    golden(command, text.replace(bridge.__version__, "VERSION"))


WITH_CONTAINERD = [
    call("whalebridge list --containerd SOCKET", 0, "shop/web", "db"),
    call("whalebridge list --containerd SOCKET --namespace nope", 1, "'nope'", "default, shop"),
    call("whalebridge inspect nothing --containerd SOCKET", 1, "'nothing'"),
    call(
        "whalebridge check --containerd SOCKET --namespace nope --exclude-namespace x,y",
        0,
        "warning   SOCKET: ",
        "excluded namespaces: default, shop",
    ),
    call("whalebridge check --containerd SOCKET --namespace 'default,hello world'", 2, "--namespace: "),
    call("whalebridge doctor --containerd SOCKET", 0, "ok        SOCKET: ", "2.4.2", "default 1, shop 1"),
    call(
        "whalebridge check --containerd SOCKET --sink file:TMP/events --state-dir TMP/state",
        0,
        "ok        SOCKET: ",
        "ok        file: ",
        "ok        state_dir: ",
    ),
]


@pytest.mark.real_time
async def test_output_with_containerd_matches_golden_file(
    golden: Golden, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    # The output of these functions depends on the machine: its disk and its users.
    monkeypatch.setattr("bridge.cli.preflight._check_disk", lambda *_: [])
    monkeypatch.setattr("bridge.cli.socket_checks._format_mode", lambda _: "0660 root:root")
    text = ""
    async with SimulatedContainerd(tmp_path / "c.sock") as containerd:
        os.chmod(containerd.address, 0o660)
        for id_ in ("default/db", "shop/web"):
            containerd.state.run(ContainerKey(*id_.split("/")), {"com.docker.compose.project": "p"})
        for line, status, named, _ in WITH_CONTAINERD:
            command = line.replace("SOCKET", containerd.address).replace("TMP", str(tmp_path))
            exit_status, out, err = await asyncio.to_thread(run_in_process, command, monkeypatch, capsys)
            output = (out + err).replace(containerd.address, "SOCKET").replace(str(tmp_path), "TMP")
            assert exit_status == status, (line, output)
            assert [name for name in named if name not in output] == [], (line, output)
            output = re.sub(rf"\b{os.getpid()}\b", "PID", output)
            output = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "TIME", output)
            text += f"$ {line}\n{output}exit status {status}\n\n"
    golden("with_containerd", text)
