"""Test the output, the errors and the end of token commands."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import sys
from pathlib import Path

import pytest

from bridge.clock import SystemClock
from bridge.core.containerd_model import Instant
from bridge.core.errors import TransientError
from sinks import token_command
from sinks.kafka.auth import CommandTokenProvider
from sinks.token_command import run_token_command
from tests.eventually import eventually_async
from tests.golden import Golden

pytestmark = pytest.mark.real_time

SECRET = "s3cret-output"  # noqa: S105 (not a real secret)


async def test_token_command_runs_without_a_shell() -> None:
    assert await run_token_command(["/bin/echo", "$HOME;`id`"], SystemClock()) == "$HOME;`id`"


@pytest.mark.parametrize(
    ("case", "script"),
    [
        ("failure", "echo no such role >&2; exit 3"),
        ("failure without a text", "exit 3"),
        ("failure with output", f"echo {SECRET}; echo cannot store {SECRET} >&2; exit 1"),
        ("failure with argument", 'echo invalid secret "$0" >&2; exit 1'),
        ("killed", "kill -9 $$"),
        ("no output", "true"),
        ("several lines", f"echo {SECRET}; echo {SECRET}"),
        ("control characters", f"printf '{SECRET}\\001'"),
        ("binary", "printf '\\377\\376'"),
        ("too long", "while echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx; do :; done"),
        ("too long error", "while echo xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx >&2; do :; done"),
    ],
)
async def test_token_command_error_names_command(
    case: str, script: str, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_command, "TIME_LIMIT_SECONDS", 30.0)
    with golden.error(
        "credential_errors", f"token command, {case}", TransientError, "auth.token_command /bin/sh"
    ) as error:
        await run_token_command(["/bin/sh", "-c", script, SECRET], SystemClock())
    assert SECRET not in str(error.value)


async def test_missing_token_command_is_named(golden: Golden) -> None:
    with golden.error("credential_errors", "token command, missing", TransientError, "auth.token_command /nonexistent"):
        await run_token_command(["/nonexistent", SECRET], SystemClock())


# --- the end ---


def hanging_command(directory: Path) -> list[str]:
    """Return a command that starts two processes, one in a session of its own, writes all ids to a file, and hangs."""
    file = shlex.quote(str(directory / "pids"))
    script = f"sleep 600 & child=$!; setsid sleep 600 & echo $$ $child $! > {file}.new; mv {file}.new {file}; wait"
    return ["/bin/sh", "-c", script]


def read_pids(directory: Path) -> list[int]:
    return [int(pid) for pid in (directory / "pids").read_text().split()]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_token_command_ends_at_time_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_command, "TIME_LIMIT_SECONDS", 3.0)
    with pytest.raises(TransientError, match="did not end within 3 s"):
        await run_token_command(hanging_command(tmp_path), SystemClock())
    assert len(read_pids(tmp_path)) == 3
    await eventually_async(lambda: not any(map(is_running, read_pids(tmp_path))))


async def test_background_process_of_token_command_ends(tmp_path: Path) -> None:
    script = f"setsid sleep 600 >/dev/null 2>&1 & echo $! > {shlex.quote(str(tmp_path))}/pids; echo t0k3n"
    assert await run_token_command(["/bin/sh", "-c", script], SystemClock()) == "t0k3n"
    assert not any(map(is_running, read_pids(tmp_path)))


async def test_canceled_token_command_ends(tmp_path: Path) -> None:
    task = asyncio.create_task(run_token_command(hanging_command(tmp_path), SystemClock()))
    await eventually_async((tmp_path / "pids").exists)
    assert all(map(is_running, read_pids(tmp_path)))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await eventually_async(lambda: not any(map(is_running, read_pids(tmp_path))))


async def test_token_command_ends_when_bridge_is_killed(tmp_path: Path) -> None:
    program = (
        "import asyncio; from bridge import signal_mask; from bridge.clock import SystemClock; "
        "from sinks.token_command import run_token_command; signal_mask.block(); "
        f"asyncio.run(run_token_command({hanging_command(tmp_path)!r}, SystemClock()))"
    )
    bridge = await asyncio.create_subprocess_exec(sys.executable, "-c", program)
    await eventually_async((tmp_path / "pids").exists)
    assert all(map(is_running, read_pids(tmp_path)))
    os.kill(bridge.pid, signal.SIGKILL)
    await bridge.wait()
    await eventually_async(lambda: not any(map(is_running, read_pids(tmp_path))))


# --- Kafka's token provider ---


class SettableClock(SystemClock):
    seconds = 0

    def now(self) -> Instant:
        return super().now()._replace(monotonic=self.seconds * 10**9)


async def test_kafka_connections_share_token_for_a_minute(tmp_path: Path) -> None:
    clock, runs = SettableClock(), tmp_path / "runs"
    provider = CommandTokenProvider(["/bin/sh", "-c", f"echo x >> {runs}; wc -l < {runs}"], clock)
    assert set(await asyncio.gather(provider.token(), provider.token())) == {"1"}
    clock.seconds = 60
    assert await provider.token() == "1"
    clock.seconds = 61
    assert await provider.token() == "2"


async def test_kafka_token_provider_retries_after_failure(tmp_path: Path) -> None:
    provider = CommandTokenProvider(["/bin/cat", str(tmp_path / "token")], SystemClock())
    with pytest.raises(OSError, match=r"auth\.token_command /bin/cat failed with status 1: .*No such file"):
        await provider.token()
    (tmp_path / "token").write_text("t0k3n\n")
    assert await provider.token() == "t0k3n"
