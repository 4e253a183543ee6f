"""`make run`: run whalebridge on the local containerd, or on a private one with sample containers.

The private containerd is Debian's, which takes seconds to download. The demo repeatedly starts, pauses, resumes and
stops two containers in it, with the labels of a compose project. With `--kafka` or `--nats` it also starts a broker:
whalebridge publishes to the broker, and `whalebridge tail` reads the records from there. Standard output contains only
the output of whalebridge; messages of the demo go to standard error.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence

from bridge.cli.socket_checks import WELL_KNOWN_SOCKETS
from tests.testbed import kafka, nats
from tests.testbed.components import InstallError
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME
from tests.testbed.install import install
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats
from tests.testbed.process import CommandError

COMPONENTS = ("containerd-1.6", "runc", "busybox")
"""Components of the private containerd; none has to be compiled."""

# The code of this checkout, even if another version is installed.
_WHALEBRIDGE = (sys.executable, "-m", "bridge")
# A shell that exits at once on SIGTERM. As process 1, a plain `sleep` ignores it, and stopping takes 10 s.
_SERVICE = ("sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")

Spawn = Callable[[Sequence[str]], subprocess.Popen[bytes]]


def main() -> int:
    """Find or start a containerd, and publish its events until interrupted."""
    parser = argparse.ArgumentParser(
        prog="make run ARGS=...",
        description="Publish the events of the local containerd, or of a private one with two sample containers.",
    )
    parser.add_argument(
        "--kafka", dest="broker", action="store_const", const=_kafka, help="publish to a private Kafka and read it"
    )
    parser.add_argument(
        "--nats", dest="broker", action="store_const", const=_nats, help="publish to a private NATS and read it"
    )
    parser.add_argument(
        "--rounds",
        type=int,
        metavar="N",
        help="exit after N rounds of the sample containers (default: run until Ctrl-C)",
    )
    parser.add_argument(
        "--pause",
        type=float,
        default=2,
        metavar="SECONDS",
        help="pause between the steps of a round (default: %(default)s)",
    )
    options = parser.parse_args()
    if sys.stdout.isatty() and not options.broker:
        _log("showing readable lines; for JSON lines, pipe the output: make run | cat")
    # Handle SIGTERM like Ctrl-C, so that everything is cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        address = next(filter(_is_available, _candidates()), None)
        if address is None:
            return _run_private(options.broker, options.rounds, options.pause)
        _log(f"publishing the events of the containerd at {address}")
        if options.broker:
            with options.broker() as url:
                return _run_whalebridge(_spawn, address, url, iter(()), None)
        # Replace this process, so that whalebridge receives the signals and sets the exit status.
        os.execv(_WHALEBRIDGE[0], [*_WHALEBRIDGE, "run", "--containerd", address])  # noqa: S606
    except (KeyboardInterrupt, BrokenPipeError):
        return 0
    except OSError as error:
        _log(str(error))
        return 3
    except (InstallError, CommandError) as error:
        _log(str(error))
        return 1


def _candidates() -> Collection[str]:
    address = os.environ.get("CONTAINERD_ADDRESS")
    return (address.removeprefix("unix://"),) if address else WELL_KNOWN_SOCKETS


def _is_available(address: str) -> bool:
    """Return whether the socket accepts connections.

    Raises:
        PermissionError: The socket exists, but this user may not open it.
        ConnectionError: CONTAINERD_ADDRESS names the socket, and it does not accept connections.
    """
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(address)
        except PermissionError as error:
            raise PermissionError(f"{address}: permission denied; run: sudo make run") from error
        except OSError as error:
            if os.environ.get("CONTAINERD_ADDRESS"):
                message = f"CONTAINERD_ADDRESS: cannot connect to {address}: {error.strerror}"
                raise ConnectionError(f"{message}; unset it to search the well-known sockets") from error
            return False
    return True


def _run_private(
    broker: Callable[[], contextlib.AbstractContextManager[str]] | None, rounds: int | None, pause: float
) -> int:
    _log("no containerd found; starting a private one with two sample containers")
    if os.geteuid() != 0:
        raise PermissionError("containers require root; run: sudo make run")
    _install(*COMPONENTS)
    with broker() if broker else contextlib.nullcontext("") as url, Containerd("1.6") as containerd:
        containerd.import_image()

        def spawn(command: Sequence[str]) -> subprocess.Popen[bytes]:
            # In the sandbox, whose cleanup also ends whalebridge if this process is killed.
            return _spawn(containerd.sandboxed_command(*command), containerd.env)

        return _run_whalebridge(spawn, containerd.address, url, _container_steps(containerd, rounds), pause)


@contextlib.contextmanager
def _kafka() -> Iterator[str]:
    _install(*kafka.COMPONENTS)
    with Kafka() as broker:
        yield f"kafka://{broker.bootstrap}/containers"


@contextlib.contextmanager
def _nats() -> Iterator[str]:
    _install(*nats.DEBIAN_COMPONENTS)
    with Nats(component=nats.DEBIAN_COMPONENTS[0]) as server:
        yield f"{server.url}/containers"


def _install(*components: str) -> None:
    with contextlib.redirect_stdout(sys.stderr):
        install(components)


def _run_whalebridge(spawn: Spawn, address: str, url: str, steps: Iterator[str], pause: float | None) -> int:
    """Run whalebridge during the steps, and with a broker also `whalebridge tail`; return the exit status."""
    sink = ("--sink", url) if url else ()
    if url:
        # `check` also creates the topic or stream, which `tail` needs.
        check = subprocess.run([*_WHALEBRIDGE, "check", "--containerd", address, *sink], stdout=sys.stderr, check=False)
        if check.returncode:
            return check.returncode
        _log(f"publishing to {url}; the lines below are read by `whalebridge tail {url}`")
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_terminating(spawn([*_WHALEBRIDGE, "run", "--containerd", address, *sink])))]
        if url:
            tail = spawn([*_WHALEBRIDGE, "tail", url, "--since", "beginning"])
            processes.append(stack.enter_context(_terminating(tail)))
        for step in steps:
            if (status := _wait(processes, pause)) is not None:
                return status
            _log(step)
        return _wait(processes, pause) or 0  # for the events of the last step


def _spawn(command: Sequence[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    # In a new session, so that Ctrl-C reaches only this process, which stops the others in order.
    return subprocess.Popen(command, env=env, start_new_session=True)


@contextlib.contextmanager
def _terminating(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Terminate the process on exit of the context."""
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float | None) -> int | None:
    """Wait up to ``seconds`` (None: indefinitely); return the exit status of the first process that exits, or None."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(0.05)
                return 0 if _is_stdout_closed() else status
    return None


def _is_stdout_closed() -> bool:
    """Return whether standard output is a pipe without a reader, as after `make run | head`."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return bool(output.poll(0))


def _container_steps(containerd: Containerd, rounds: int | None) -> Iterator[str]:
    """Yield each step of the sample containers as a command line, and run it when the next one is requested."""
    while rounds is None or rounds > 0:
        web, db = (f"demo-{service}-{secrets.token_hex(2)}" for service in ("web", "db"))
        for command in (
            (*_run("web"), web, *_SERVICE),
            (*_run("db"), db, *_SERVICE),
            ("containers", "label", web, "nerdctl/name=front"),
            ("tasks", "pause", web),
            ("tasks", "resume", web),
            ("tasks", "kill", "--signal=SIGKILL", db),
            ("tasks", "delete", "--force", db),
            ("tasks", "start", "--detach", "--null-io", db),
            ("tasks", "kill", "--signal=SIGTERM", db),
            ("tasks", "delete", "--force", db),
            ("containers", "delete", db),
            ("tasks", "delete", "--force", web),
            ("containers", "delete", web),
        ):
            yield f"ctr {shlex.join(command)}"
            containerd.ctr(*command)
        rounds = None if rounds is None else rounds - 1


def _run(service: str) -> tuple[str, ...]:
    labels = (
        f"nerdctl/name=demo-{service}-1",
        "com.docker.compose.project=demo",
        f"com.docker.compose.service={service}",
    )
    return "run", "--detach", "--null-io", *(f"--label={label}" for label in labels), NAME


def _log(line: str) -> None:
    print(f"demo: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
