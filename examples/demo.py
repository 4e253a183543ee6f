"""`make run`: whalebridge on the containerd that answers here, or on a private one with something to see.

The private one is Debian's, which takes seconds to fetch; it gets two containers, labelled as those of a compose
project are, that go through their lives again and again. With `--kafka` or `--nats` a broker is started, too, the
records go there, and what is shown is read back from it. Standard output is all whalebridge's; what is told here goes
to standard error.
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
from collections.abc import Callable, Iterator, Sequence

from tests.testbed import kafka, nats
from tests.testbed.components import InstallError
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME
from tests.testbed.install import install
from tests.testbed.kafka import Kafka
from tests.testbed.nats import Nats
from tests.testbed.process import CommandError

USUAL_SOCKETS = (
    "/run/containerd/containerd.sock",
    "/run/k3s/containerd/containerd.sock",  # also rke2
    "/var/snap/microk8s/common/run/containerd.sock",
    "/run/k0s/containerd.sock",
)

COMPONENTS = ("containerd-1.6", "runc", "busybox")
"""What has to be installed for the private containerd: nothing that has to be built."""

# From this checkout, wherever the environment's own comes from.
_WHALEBRIDGE = (sys.executable, "-m", "bridge")
# A shell that heeds SIGTERM at once: a plain `sleep` as process 1 would not, and stopping would take 10 s.
_SERVICE = ("sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")

Spawn = Callable[[Sequence[str]], subprocess.Popen[bytes]]


def main() -> int:
    """Find a containerd or start one, and show its events until told to end."""
    parser = argparse.ArgumentParser(prog="make run ARGS=...", description="Real events of real containers.")
    parser.add_argument("--kafka", dest="broker", action="store_const", const=_kafka, help="through a Kafka of its own")
    parser.add_argument("--nats", dest="broker", action="store_const", const=_nats, help="through a NATS of its own")
    parser.add_argument("--rounds", type=int, help="end after so many lives of the containers (default: never)")
    parser.add_argument("--pause", type=float, default=2, help="seconds between their steps (default: 2)")
    options = parser.parse_args()
    # SIGTERM ends it as Ctrl-C does: on the way out everything is cleaned up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        address = next(filter(_answers, _candidates()), None)
        if address is None:
            return _private(options.broker, options.rounds, options.pause)
        _say(f"containerd answers at {address}: these are its events")
        if options.broker:
            with options.broker() as url:
                return _show(_spawn, address, url, iter(()), None)
        # Not a child: signals and exit status are whalebridge's own.
        os.execv(_WHALEBRIDGE[0], [*_WHALEBRIDGE, "run", "--containerd", address])  # noqa: S606
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


def _private(
    broker: Callable[[], contextlib.AbstractContextManager[str]] | None, rounds: int | None, pause: float
) -> int:
    _say("no containerd answers here: a private one is started, and containers for something to see")
    if os.geteuid() != 0:
        raise PermissionError("containers need root: sudo make run")
    _install(*COMPONENTS)
    with broker() if broker else contextlib.nullcontext("") as url, Containerd("1.6") as containerd:
        containerd.import_image()

        def spawn(command: Sequence[str]) -> subprocess.Popen[bytes]:
            # Inside: should this process be killed, the guard ends whalebridge with all else.
            return _spawn(containerd.sandboxed_command(*command), containerd.env)

        return _show(spawn, containerd.address, url, _life(containerd, rounds), pause)


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


def _show(spawn: Spawn, address: str, url: str, life: Iterator[str], pause: float | None) -> int:
    """Run whalebridge while the containers live; with a broker, show what a reader of it gets."""
    sink = ("--sink", url) if url else ()
    if url:
        # Makes the topic or stream, too, so that the reader finds it.
        checked = subprocess.run(
            [*_WHALEBRIDGE, "check", "--containerd", address, *sink], stdout=sys.stderr, check=False
        )
        if checked.returncode:
            return checked.returncode
        _say(f"records go to {url}; below is what `whalebridge tail {url}` reads there")
    with contextlib.ExitStack() as running:
        started = [running.enter_context(_ended(spawn([*_WHALEBRIDGE, "run", "--containerd", address, *sink])))]
        if url:
            started += [running.enter_context(_ended(spawn([*_WHALEBRIDGE, "tail", url, "--since", "beginning"])))]
        for step in life:
            if (status := _wait(started, pause)) is not None:
                return status
            _say(step)
        return _wait(started, pause) or 0  # for the events of the last step


def _spawn(command: Sequence[str], env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    # A session of its own, so that Ctrl-C reaches only us, who end things in their order.
    return subprocess.Popen(command, env=env, start_new_session=True)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """End it in the end."""
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
    """Let them run for a while (None: on and on); the status of the first that ends earlier."""
    deadline = None if seconds is None else time.monotonic() + seconds
    while deadline is None or time.monotonic() < deadline:
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(0.05)
                return 0 if _reader_is_gone() else status
    return None


def _reader_is_gone() -> bool:
    """Whether standard output is a pipe that nobody reads any more: `make run | head` has seen enough."""
    output = select.poll()
    output.register(sys.stdout.fileno(), 0)
    return bool(output.poll(0))


def _life(containerd: Containerd, rounds: int | None) -> Iterator[str]:
    """Lead the containers through their lives: each step is told first, and done when the next is asked for."""
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


def _say(line: str) -> None:
    print(f"demo: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
