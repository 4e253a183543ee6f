from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import jsonschema
import pytest

import bridge
from bridge import cli
from bridge.cli import execute
from bridge.cli.failure import CommandError
from bridge.core.errors import AmbiguousError, BridgeError, FatalError, NotFoundError, TransientError, UnreachableError

COMMANDS = [
    *("run", "list", "inspect", "watch", "tail", "check", "doctor", "snapshot", "proxy"),
    *("schema", "version"),
]


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("WHALEBRIDGE_"):
            monkeypatch.delenv(name)


# As most people have it: with buffers, which the interpreter flushes as it ends.
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}


def whalebridge(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "bridge", *arguments]
    options = {"env": ENVIRONMENT} | options
    return subprocess.run(command, text=True, check=False, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


# --- what is fine ---


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["version"]) == 0
    assert capsys.readouterr().out.split() == ["whalebridge", bridge.__version__]


def test_the_schema_is_a_json_schema_that_knows_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["schema", "event"]) == 0
    schema = json.loads(capsys.readouterr().out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert {"type", "container", "sequence"} <= set(schema["$defs"]["EventRecord"]["required"])


def test_help_tells_all_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert execute(["--help"]) == 0
    told = capsys.readouterr()
    assert [name for name in COMMANDS if f"\n  {name} " not in told.out] == []
    assert told.err == ""


@pytest.mark.parametrize(
    "command", [*(each for each in COMMANDS if each not in ("schema", "version")), "schema event", "schema config"]
)
def test_help_of_commands_has_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert execute([*command.split(), "--help"]) == 0
    told = capsys.readouterr().out
    assert "\n  Example" in told
    assert f"\n    whalebridge {command}" in told


@pytest.mark.parametrize("arguments", [["--help"], ["version"], *([command, "--help"] for command in COMMANDS)])
def test_help_and_version_import_nothing_slow(arguments: list[str]) -> None:
    code = (
        "import sys; from bridge.cli import execute; execute(sys.argv[1:]);"
        "slow = {'grpc', 'asyncio', 'structlog', 'rich', 'pydantic_settings', 'google.protobuf'} & set(sys.modules);"
        "sys.exit(', '.join(slow) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.stderr == ""


# --- wrong usage: one line for each mistake, and status 2 ---


def test_every_wrong_setting_is_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WHALEBRIDGE_CONTAINERS__KINDS", "perhaps")
    assert execute(["run", "--log-level", "loud", "--sink", "a:", "--sink", "b:"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sorted(line.split(": ")[1] + " " + line.split(": ")[2] for line in lines) == [
        "--log-level log.level",
        "--sink sinks.a",
        "--sink sinks.b",
        "WHALEBRIDGE_CONTAINERS__KINDS containers.kinds.0",
    ]


# --- errors ---


@pytest.mark.parametrize(
    ("error", "status", "connecting"),
    [
        (NotFoundError("x"), 1, 1),
        (AmbiguousError("x"), 1, 1),
        (FatalError("x"), 1, 3),
        (UnreachableError("x"), 3, 3),
        (TransientError("x"), 3, 3),
    ],
)
def test_exit_status_of_errors(error: BridgeError, status: int, connecting: int) -> None:
    assert CommandError.of(error).status == status
    assert CommandError.to_connect(error).status == connecting
    assert CommandError.of(error).lines == ("x",)


@pytest.mark.parametrize("raised", [CommandError("a\x1b[2Jb\nc", "second", status=3), KeyboardInterrupt()])
def test_what_a_command_raises_becomes_status_and_lines(
    raised: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(_: str) -> None:
        raise raised

    monkeypatch.setattr("bridge.cli.version.write", fail)
    status = execute(["version"])
    told = capsys.readouterr().err
    if isinstance(raised, CommandError):
        assert (status, told) == (3, "whalebridge: a\\x1b[2Jb\\nc\nwhalebridge: second\n")
    else:
        assert (status, told) == (130, "")


def test_a_bug_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("bridge.cli.version.write", fail)
    with pytest.raises(ZeroDivisionError):
        execute(["version"])


def test_nothing_is_said_where_standard_error_is_closed_or_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    cli.complain("to nobody")
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        cli.complain("to nobody")
        with pytest.raises(BrokenPipeError):
            stream.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), writer)


# --- the process: closed pipes and closed descriptors ---


@pytest.mark.parametrize("command", ["version", "schema event", "--help"])
def test_a_reader_that_has_gone_is_no_traceback(command: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as stdout:
        done = whalebridge(*command.split(), stdout=stdout, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("command", ["version", "schema event"])
def test_a_full_disk_is_one_line(command: str) -> None:
    with open("/dev/full", "wb") as stdout:
        done = whalebridge(*command.split(), stdout=stdout, stderr=subprocess.PIPE)
    assert done.returncode == 1
    assert re.fullmatch(r"whalebridge: standard output .*: No space left on device\n", done.stderr)


def test_closed_descriptors_are_not_given_to_other_files() -> None:
    code = (
        "import atexit, os, sys; from bridge import cli; sys.argv[1:] = ['version'];"
        "atexit.register(lambda: os._exit(os.open('/', os.O_RDONLY))); cli.main()"
    )
    done = subprocess.run(["sh", "-c", '"$0" -c "$1" <&- >&- 2>&-', sys.executable, code], check=False)
    assert done.returncode == 3


def test_text_that_the_locale_cannot_write_is_escaped() -> None:
    done = whalebridge(
        "inspect",
        "größe\u202e",
        "--containerd",
        "/nonexistent/ö",
        capture_output=True,
        env={"PYTHONIOENCODING": "ascii"},
    )
    assert done.returncode == 3
    assert done.stderr.startswith("whalebridge: ")
    assert "/nonexistent/\\xf6" in done.stderr
