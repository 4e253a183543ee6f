"""Tokens from a command: it runs without a shell, and its output is the token.

Invariants:
- The command and all processes that it has started end when it ends, after ``TIME_LIMIT_SECONDS``, and when the bridge
  ends, even if it is killed.
- No error message contains the output or an argument of the command.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bridge.core.errors import TransientError
from bridge.core.time import SECOND
from bridge.task_groups import task_group
from sinks.credentials import redact

if TYPE_CHECKING:
    from bridge.core.ports import Clock

TIME_LIMIT_SECONDS = 10.0
MAX_OUTPUT_BYTES = 64 * 1024
_MAX_ERROR_LENGTH = 300  # characters
_TOKEN_SECONDS = 60  # for connections or requests that share a token; less than any token's lifetime
_END_SECONDS = 1.0

# The parent of the command. It inherits the orphans of the command, so that it finds all processes to end, and that no
# zombies are left to a bridge that is process 1 of a container.
_SUPERVISOR = """
import ctypes, os, signal, sys

def end(status):
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as children:
            for pid in children.read().split():
                os.kill(int(pid), signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            os._exit(status)

signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
signal.signal(signal.SIGTERM, lambda *_: end(1))
prctl = ctypes.CDLL(None).prctl
prctl(36, 1)  # PR_SET_CHILD_SUBREAPER
prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG: when the bridge ends
if os.getppid() != int(sys.argv[1]):  # it has ended already
    sys.exit(1)
try:
    ignored_by_python = [signal.SIGPIPE, signal.SIGXFSZ]
    command = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ, setsigmask=[], setsigdef=ignored_by_python)
except OSError as error:
    sys.exit(f"cannot be started: {error.strerror}")
signal.pthread_sigmask(signal.SIG_SETMASK, [])
status = os.waitstatus_to_exitcode(os.waitpid(command, 0)[1])
end(status if status >= 0 else 128 - status)
"""


class TokenCommand:
    """Runs a command for tokens; those who need one within ``_TOKEN_SECONDS`` share it."""

    def __init__(self, command: Sequence[str], clock: Clock) -> None:
        self._command = command
        self._clock = clock
        self._lock = asyncio.Lock()
        self._token = ""
        self._read_at = 0

    async def token(self) -> str:
        """Return the token.

        Raises:
            TransientError: The command did not return one.
        """
        async with self._lock:
            now = self._clock.now().monotonic
            if not self._token or now - self._read_at > _TOKEN_SECONDS * SECOND:
                self._token = await run_token_command(self._command, self._clock)
                self._read_at = now
            return self._token

    def discard(self) -> None:
        """Run the command for the next token, for example because the last one was rejected."""
        self._token = ""


async def run_token_command(command: Sequence[str], clock: Clock) -> str:
    """Run a command, and return its output, a token, without white space around it.

    Raises:
        TransientError: The command failed, took too long, or its output is not a token.
    """
    name = f"auth.token_command {command[0]}"
    try:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-I", "-S", "-c", _SUPERVISOR, str(os.getpid()), *command),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise TransientError(f"{name} cannot be started: {error.strerror}") from error
    ended = False
    try:
        async with clock.timeout(TIME_LIMIT_SECONDS):
            async with task_group() as tasks:  # both at once: a command that cannot write one of them does not end
                reading = [tasks.create_task(_read(stream, name)) for stream in (process.stdout, process.stderr)]
            output, errors = (each.result() for each in reading)
            status = await process.wait()
        ended = True
    except TimeoutError:
        raise TransientError(f"{name} did not end within {TIME_LIMIT_SECONDS:g} s") from None
    finally:
        if not ended:
            await _end(process, clock)
    if status:
        text = _describe_failure(errors, [*output.decode(errors="replace").split(), *command[1:]])
        raise TransientError(f"{name} failed with status {status}{text}")
    token = output.decode(errors="replace").strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise TransientError(f"{name} did not write a token to its standard output: one line without spaces")
    return token


async def _read(stream: asyncio.StreamReader | None, name: str) -> bytes:
    data = b""
    while stream and (chunk := await stream.read(MAX_OUTPUT_BYTES)):
        data += chunk
        if len(data) > MAX_OUTPUT_BYTES:
            raise TransientError(f"{name} wrote more than {MAX_OUTPUT_BYTES} bytes")
    return data


async def _end(process: asyncio.subprocess.Process, clock: Clock) -> None:
    """End the command and the processes that it has started."""
    for end in (process.terminate, process.kill):
        with contextlib.suppress(ProcessLookupError):
            end()
        with contextlib.suppress(TimeoutError):
            async with clock.timeout(_END_SECONDS):
                await process.communicate()  # also reads the rest: a pipe with unread output would stay open
                return


def _describe_failure(errors: bytes, secrets: Sequence[str]) -> str:
    """Return the last line that the command wrote to its standard error, without secrets."""
    lines = errors.decode(errors="replace").strip().splitlines()
    if not lines:
        return ""
    line = "".join(char for char in lines[-1] if char.isprintable())
    return f": {redact(line, secrets)[:_MAX_ERROR_LENGTH]}"
