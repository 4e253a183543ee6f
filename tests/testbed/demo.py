"""`make run`: whalebridge on the containerd that answers here, or on a private one with something to see.

The private one gets a small compose project that goes through its life again and again. Standard output is all
whalebridge's; what is told here goes to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.testbed.containerd import Containerd, components
from tests.testbed.image import NAME
from tests.testbed.install import install
from tests.testbed.process import CommandError
from tests.testbed.recipes import InstallError

USUAL_SOCKETS = (
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",  # also rke2
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/k0s/containerd.sock",
)

# A shell that heeds SIGTERM at once: a plain `sleep` as process 1 would not, and stopping would take 10 s.
_SERVICE = f"""
    image: {NAME}
    command: sh -c "trap 'exit 0' TERM; sleep 1000 & wait"
    network_mode: host
    pull_policy: never
"""
_COMPOSE = f"name: demo\nservices:\n  web:{_SERVICE}  db:{_SERVICE}"


def main() -> int:
    """Find a containerd or start one, and show its events until told to end."""
    parser = argparse.ArgumentParser(prog="make run ARGS=...", description="Real events of real containers.")
    parser.add_argument("--rounds", type=int, help="end after so many lives of the compose project (default: never)")
    parser.add_argument("--pause", type=float, default=2, help="seconds between its steps (default: 2)")
    options = parser.parse_args()
    # SIGTERM ends it as Ctrl-C does: on the way out everything is cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for address in _candidates():
            if _answers(address):
                _say(f"containerd answers at {address}: these are its events")
                # Not a child: signals and exit status are whalebridge's own.
                os.execv(_whalebridge(), ["whalebridge", "run", "--containerd", address])  # noqa: S606
        return _private(options.rounds, options.pause)
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    except OSError as error:
        _say(str(error))
        return 3
    except (InstallError, CommandError) as error:
        _say(str(error))
        return 1


def _candidates() -> tuple[str, ...]:
    named = os.environ.get("CONTAINERD_ADDRESS")
    return (named.removeprefix("unix://"),) if named else USUAL_SOCKETS


def _answers(address: str) -> bool:
    """Whether a socket answers there; one that exists for others, or was asked for and does not answer, is an error."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(address)
        except PermissionError as error:
            raise PermissionError(f"no permission to open {address}: sudo make run") from error
        except OSError as error:
            if os.environ.get("CONTAINERD_ADDRESS"):
                what = f"CONTAINERD_ADDRESS is {address}, and nothing answers there: {error.strerror}"
                raise ConnectionError(f"{what}; unset it to look in the usual places") from error
            return False
    return True


def _private(rounds: int | None, pause: float) -> int:
    _say("no containerd answers here: a private one is started, and a compose project for something to see")
    if os.geteuid() != 0:
        raise PermissionError("containers need root: sudo make run")
    with contextlib.redirect_stdout(sys.stderr):
        install(components("2.4"))
    with Containerd("2.4") as containerd:
        return _show(containerd, rounds, pause)


def _show(containerd: Containerd, rounds: int | None, pause: float) -> int:
    containerd.import_image()
    compose = containerd.directory / "compose.yaml"
    compose.write_text(_COMPOSE)
    # Inside: should this process be killed, the guard ends whalebridge with all else.
    command = containerd.inside(_whalebridge(), "run", "--containerd", containerd.address)
    # A session of its own, so that Ctrl-C reaches only us, who end things in their order.
    bridge = subprocess.Popen(command, env=containerd.env, start_new_session=True)
    try:
        for step in _life(str(compose), rounds):
            # Its end is ours too; waiting for it is the pause between two steps.
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = bridge.wait(pause)
                return 0 if _reader_is_gone() else status
            _say(f"nerdctl {' '.join(step).replace(f'--file {compose} ', '')}")
            containerd.nerdctl(*step)
        with contextlib.suppress(subprocess.TimeoutExpired):
            bridge.wait(pause)  # for the events of the last step
        return 0
    finally:
        bridge.terminate()
        try:
            bridge.wait(15)
        except subprocess.TimeoutExpired:
            bridge.kill()
            bridge.wait()


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more: `make run | head` has seen enough."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return bool(output.poll(0))


def _life(compose: str, rounds: int | None) -> Iterator[tuple[str, ...]]:
    """The steps of the project's life, as arguments of nerdctl."""
    project = ("compose", "--file", compose)
    while rounds is None or rounds > 0:
        yield *project, "up", "--detach"
        yield "rename", "demo-web-1", "front"
        yield *project, "pause", "web"
        yield *project, "unpause", "web"
        yield "kill", "demo-db-1"
        yield "start", "demo-db-1"
        yield *project, "stop", "db"
        yield *project, "down"
        rounds = None if rounds is None else rounds - 1


def _whalebridge() -> str:
    return str(Path(sys.executable).with_name("whalebridge"))


def _say(line: str) -> None:
    print(f"demo: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
