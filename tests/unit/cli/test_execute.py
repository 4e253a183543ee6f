from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import bridge
from bridge import cli
from bridge.cli import execute
from bridge.cli.errors import CommandError
from bridge.core.errors import AmbiguousError, BridgeError, FatalError, NotFoundError, TransientError, UnreachableError

COMMANDS = [
    *("run", "list", "inspect", "watch", "tail", "fleet", "audit", "retire"),
    *("conformance", "check", "doctor", "snapshot", "proxy", "schema", "version"),
]


@pytest.fixture(autouse=True)
def clean_settings_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WHALEBRIDGE_"):
            monkeypatch.delenv(name)


# --- successful commands ---


def test_schema_command_prints_valid_json_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["schema", "event"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert {"type", "container", "sequence"} <= set(schema["$defs"]["EventRecord"]["required"])


@pytest.mark.parametrize(
    "command",
    [
        *(name for name in COMMANDS if name not in ("schema", "version")),
        "schema event",
        "schema asyncapi",
        "schema config",
    ],
)
def test_command_help_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([*command.split(), "--help"]) == 0
    output = capsys.readouterr().out
    assert "\n  Example" in output
    assert f"\n    whalebridge {command}" in output


@pytest.mark.parametrize("arguments", [["--help"], ["version"], *([command, "--help"] for command in COMMANDS)])
def test_help_and_version_import_no_slow_modules(arguments: list[str]) -> None:
    code = (
        "import sys; from bridge.cli import execute; execute(sys.argv[1:]);"
        "slow = {'grpc', 'asyncio', 'structlog', 'rich', 'config.settings', 'google.protobuf'} & set(sys.modules);"
        "sys.exit(', '.join(slow) or 0)"
    )
    process = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert process.stderr == ""


def test_run_imports_only_what_it_needs_at_once() -> None:
    """HTTP and metrics are imported with the first request, brokers' libraries with a sink, gRPC by the proxy only."""
    code = (
        "import sys; from bridge.telemetry import logs; from bridge import app;"
        "print(*{name.partition('.')[0] for name in sys.modules}, len(sys.modules))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    *packages, count = process.stdout.split()
    unneeded = {"grpc", "aiohttp", "prometheus_client", "rich", "pygments", "aiokafka", "nats", "typer"}
    assert unneeded.isdisjoint(packages)
    assert int(count) < 600  # 503 with Python 3.11


# --- errors ---


@pytest.mark.parametrize(
    ("error", "status", "connect_status"),
    [
        (NotFoundError("x"), 1, 1),
        (AmbiguousError("x"), 1, 1),
        (FatalError("x"), 1, 3),
        (UnreachableError("x"), 3, 3),
        (TransientError("x"), 3, 3),
    ],
)
def test_exit_status_depends_on_error_type(error: BridgeError, status: int, connect_status: int) -> None:
    assert CommandError.from_error(error).exit_status == status
    assert CommandError.from_connect_error(error).exit_status == connect_status
    assert CommandError.from_error(error).lines == ("x",)


@pytest.mark.parametrize("raised", [CommandError("a\x1b[2Jb\nc", "second", exit_status=3), KeyboardInterrupt()])
def test_command_error_becomes_exit_status_and_lines(
    raised: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: str) -> None:
        raise raised

    monkeypatch.setattr("bridge.cli.commands.version.write", fail)
    status = execute(["version"])
    output = capsys.readouterr().err
    if isinstance(raised, CommandError):
        assert (status, output) == (3, "whalebridge: a\\x1b[2Jb\\nc\nwhalebridge: second\n")
    else:
        assert (status, output) == (130, "")


def test_unexpected_exception_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("bridge.cli.commands.version.write", fail)
    with pytest.raises(ZeroDivisionError):
        execute(["version"])


def test_print_error_ignores_closed_or_broken_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    cli.print_error("unread")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        cli.print_error("unread")
        with pytest.raises(BrokenPipeError):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


# --- the process: closed pipes and closed descriptors ---


def test_closed_standard_descriptors_are_not_reused() -> None:
    code = (
        "import atexit, os, sys; from bridge import cli; sys.argv[1:] = ['version'];"
        "atexit.register(lambda: os._exit(os.open('/', os.O_RDONLY))); cli.main()"
    )
    process = subprocess.run(["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code], check=False)
    assert process.returncode == 3


def test_error_text_is_escaped_when_locale_cannot_encode() -> None:
    command = [sys.executable, "-m", "bridge", "inspect", "größe\u202e", "--containerd", "/nonexistent/ö"]
    environment = {"PYTHONIOENCODING": "ascii"}
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 3
    assert process.stderr.startswith("whalebridge: ")
    assert "/nonexistent/\\xf6" in process.stderr


def test_retire_runs_as_user_without_name(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As in the container image."""
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000_000)
    assert execute(["retire", "node-1", "--sink", "file:/tmp/x"]) == 2
    assert "file" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config", "sinks"])
@pytest.mark.parametrize("module", ["{}.py", "{}/__init__.py"])
def test_package_of_same_name_ends_command_with_its_path(name: str, module: str, tmp_path: Path) -> None:
    other = tmp_path / module.format(name)
    other.parent.mkdir(exist_ok=True)
    other.touch()
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{Path(bridge.__file__).parents[1]}"}
    command = [sys.executable, "-Pc", "from bridge.__main__ import main; main()", "version"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"Python package {name}: " in done.stderr
    assert f"found {other}, instead of {Path(bridge.__file__).parents[1] / name};" in done.stderr
    assert len(done.stderr.splitlines()) == 1
