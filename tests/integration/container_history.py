"""A known history of real containers: the expected transitions are the test's own actions, never received events.

Each scenario runs a container through its whole lifecycle with containerd's own clients, and notes each action as the
transitions that the bridge must publish.
"""

from __future__ import annotations

import itertools
import os
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeAlias

from tests.eventually import eventually
from tests.scale import scaled
from tests.testbed.containerd import Containerd
from tests.testbed.image import NAME as IMAGE

NAMESPACES = ("default", "shop", "with.dot")
COMPOSE = """\
name: {project}
services:
  web:
    image: busybox:latest
    command: ["sleep", "86400"]
    network_mode: host
    pull_policy: never
  db:
    image: busybox:latest
    command: ["sleep", "86400"]
    network_mode: host
    pull_policy: never
"""


class ExpectedTransition(NamedTuple):
    """A transition that must be published; ``interval`` is the earliest and the latest time at which it happened.

    ``brief``: the run lasts for milliseconds. ``removed``: so does its container, which the client removes at its exit.
    """

    type: str
    name: str
    project: str
    status: int | None
    interval: tuple[float, float]
    brief: bool
    removed: bool


_numbers = itertools.count()  # shared by all histories: some leave containers behind


class ContainerHistory:
    """The actions on the containers of one namespace. Each history has its own thread."""

    def __init__(self, engine: Containerd, namespace: str, directory: Path, records: Path) -> None:
        self.engine = engine
        self.namespace = namespace
        self.directory = directory
        self._records = records
        self.expected: dict[str, list[ExpectedTransition]] = defaultdict(list)
        self.unpublished: set[str] = set()

    def unique_name(self, prefix: str) -> str:
        """Return a name that was never used before."""
        namespace = self.namespace.replace(".", "-")
        return f"{prefix}-{namespace}-{os.getpid()}-{self.engine.version.replace('.', '')}-{next(_numbers)}"

    def ctr(self, *args: str) -> str:
        """Run ctr in this namespace and return its output."""
        return self.engine.ctr(*args, namespace=self.namespace).stdout

    def nerdctl(self, *args: str) -> str:
        """Run nerdctl in this namespace and return its output."""
        return self.engine.nerdctl(*args, namespace=self.namespace).stdout.strip()

    def display_id(self, id_: str) -> str:
        """Return the display id, as whalewatcher defines it."""
        return id_ if self.namespace == "default" else f"{self.namespace}/{id_}"

    def perform(
        self,
        id_: str,
        types: str,
        action: Callable[[], object],
        *,
        name: str = "",
        project: str = "",
        status: int | None = None,
    ) -> None:
        """Run an action and note its expected transitions, in order; ``status`` is the exit status."""
        before = time.time()
        action()
        self.expect(id_, types, before, name=name, project=project, status=status)

    def expect(
        self,
        id_: str,
        types: str,
        before: float,
        *,
        name: str = "",
        project: str = "",
        status: int | None = None,
        brief: bool = False,
        removed: bool = False,
    ) -> None:
        """Note expected transitions, which happened since ``before`` (seconds since 1970)."""
        interval = (before, time.time())
        self.expected[self.display_id(id_)] += [
            ExpectedTransition(
                type_, name or id_, project, status if type_ == "exited" else None, interval, brief, removed
            )
            for type_ in types.split()
        ]

    def wait_published(self, id_: str) -> None:
        """Wait until all transitions of a container are published, so that they have the current name."""

        def transitions() -> int:
            lines = self._records.read_text().splitlines()
            return sum(id_ in line and '"present"' not in line for line in lines)

        eventually(lambda: transitions() >= len(self.expected[self.display_id(id_)]), f"the records of {id_}")

    # --- with ctr ---

    def start(self, id_: str, *options: str) -> None:
        """Run a container in the background."""
        run = ("run", "--detach", "--null-io", *options, IMAGE, id_, "sleep", "86400")
        self.perform(id_, "started", lambda: self.ctr(*run))

    def kill_and_delete(self, id_: str, *, name: str = "") -> None:
        """Kill a container and remove its task."""
        self.perform(id_, "exited", lambda: self._kill(id_), name=name, status=137)

    def _kill(self, id_: str) -> None:
        self.ctr("task", "kill", "--signal", "SIGKILL", id_)
        eventually(lambda: self.engine.tasks(self.namespace).get(id_) == "STOPPED", f"the exit of {id_}")
        self.ctr("task", "rm", id_)


Scenario: TypeAlias = Callable[[ContainerHistory, int], None]


def plain_run(history: ContainerHistory, _number: int) -> None:
    """Run a container until it is killed."""
    id_ = history.unique_name("plain")
    history.start(id_)
    history.kill_and_delete(id_)
    history.ctr("containers", "rm", id_)


def short_run(history: ContainerHistory, number: int) -> None:
    """Run a container for a millisecond, with various exit statuses, with and without removal on exit."""
    id_ = history.unique_name("blink")
    status = (0, 1, 3, 42, 255)[number % 5]
    command = ("true",) if status == 0 else ("sh", "-c", f"exit {status}")
    removed = number % 2 == 1
    remove = ("--rm",) if removed else ()
    run = ("run", *remove, "--null-io", "--label", "com.docker.compose.project=blinks", IMAGE, id_, *command)
    before = time.time()
    history.engine.ctr(*run, namespace=history.namespace, check=False)  # ctr exits with the container's status
    history.expect(id_, "started exited", before, project="blinks", status=status, brief=True, removed=removed)


def exec_processes(history: ContainerHistory, _number: int) -> None:
    """Run exec processes, some of which fail: their exits are not the container's exit."""
    id_ = history.unique_name("execs")
    history.start(id_)
    for exec_, command in enumerate((("true",), ("false",), ("sh", "-c", "exit 7"), ("sh", "-c", "kill -9 $$"))):
        run = ("task", "exec", "--exec-id", f"e{exec_}", id_, *command)
        history.engine.ctr(*run, namespace=history.namespace, check=False)
    history.kill_and_delete(id_)


def pause_and_resume(history: ContainerHistory, number: int) -> None:
    """Pause and resume a container, once or more."""
    id_ = history.unique_name("pauses")
    history.start(id_)
    for _ in range(1 + number % 3):
        history.perform(id_, "paused", lambda: history.ctr("task", "pause", id_))
        history.perform(id_, "unpaused", lambda: history.ctr("task", "resume", id_))
    history.kill_and_delete(id_)


def restarts(history: ContainerHistory, number: int) -> None:
    """Kill a container and start it again with the same id."""
    id_ = history.unique_name("restarts")
    history.start(id_)
    history.kill_and_delete(id_)
    for _ in range(1 + number % 2):
        history.perform(id_, "started", lambda: history.ctr("task", "start", "--detach", "--null-io", id_))
        history.kill_and_delete(id_)


def relabeled(history: ContainerHistory, _number: int) -> None:
    """Change the name and project labels of a running container."""
    id_ = history.unique_name("relabeled")
    history.start(id_, "--label", "nerdctl/name=before")
    history.expected[history.display_id(id_)][-1] = history.expected[history.display_id(id_)][-1]._replace(
        name="before"
    )
    history.wait_published(id_)
    history.ctr("containers", "label", id_, "nerdctl/name=after", "com.docker.compose.project=late")
    history.perform(id_, "paused", lambda: history.ctr("task", "pause", id_), name="after", project="late")
    history.perform(id_, "unpaused", lambda: history.ctr("task", "resume", id_), name="after", project="late")
    history.perform(id_, "exited", lambda: history._kill(id_), name="after", project="late", status=137)


def never_started(history: ContainerHistory, number: int) -> None:
    """Create and remove a container without starting it."""
    id_ = history.unique_name("never")
    if number % 2:
        history.ctr("containers", "create", IMAGE, id_, "sleep", "86400")
        history.ctr("containers", "rm", id_)
    else:
        run = ("create", "--pull", "never", "--net", "host", "--name", id_, "busybox:latest", "sleep", "86400")
        id_ = history.nerdctl(*run)
        history.nerdctl("rm", id_)
    history.unpublished.add(history.display_id(id_))


def nerdctl_lifecycle(history: ContainerHistory, number: int) -> None:
    """Run, pause, rename, restart and stop a nerdctl container."""
    name = history.unique_name("ship")
    before = time.time()
    id_ = history.nerdctl(
        "run", "-d", "--pull", "never", "--net", "host", "--name", name, "busybox:latest", "sleep", "86400"
    )
    history.expect(id_, "started", before, name=name)
    history.perform(id_, "paused", lambda: history.nerdctl("pause", name), name=name)
    history.perform(id_, "unpaused", lambda: history.nerdctl("unpause", name), name=name)
    history.wait_published(id_)
    history.nerdctl("rename", name, f"{name}-renamed")
    name = f"{name}-renamed"
    if number % 2:
        history.perform(
            id_, "exited started", lambda: history.nerdctl("restart", "-t", "0", name), name=name, status=137
        )
    history.perform(id_, "exited", lambda: history.nerdctl("kill", name), name=name, status=137)
    history.nerdctl("rm", "-f", name)


def nerdctl_self_removing(history: ContainerHistory, number: int) -> None:
    """Run a nerdctl container that is removed on exit."""
    name = history.unique_name("flash")
    status = (0, 9)[number % 2]
    before, id_file = time.time(), history.directory / name
    run = ("run", "--rm", f"--cidfile={id_file}", "--pull=never", "--net=host", f"--name={name}", "busybox:latest")
    history.engine.nerdctl(*run, "sh", "-c", f"exit {status}", namespace=history.namespace, check=False)
    id_ = id_file.read_text()
    history.expect(id_, "started exited", before, name=name, status=status, brief=True, removed=True)


def compose_project(history: ContainerHistory, number: int) -> None:
    """Start, pause, unpause and stop a compose project of two services."""
    project = history.unique_name("shop")
    file = history.directory / f"{project}.yaml"
    file.write_text(COMPOSE.format(project=project))
    command = ("compose", "-f", str(file))
    before = time.time()
    history.nerdctl(*command, "up", "-d")
    names = {service: f"{project}-{service}-1" for service in ("web", "db")}
    ids = {service: history.nerdctl("inspect", "--format", "{{.ID}}", name) for service, name in names.items()}
    for service, id_ in ids.items():
        history.expect(id_, "started", before, name=names[service], project=project)
    if number % 2:
        for types, verb in (("paused", "pause"), ("unpaused", "unpause")):
            before = time.time()
            history.nerdctl(*command, verb, "web")
            history.expect(ids["web"], types, before, name=names["web"], project=project)
    for service, name in names.items():
        kill = partial(history.nerdctl, "kill", name)
        history.perform(ids[service], "exited", kill, name=name, project=project, status=137)
    history.nerdctl(*command, "down")


# Runs of each scenario per namespace. At the full count, these are 70 containers (a compose project has two), 210 in
# total; at the reduced count, each scenario runs with each of its variants.
SCENARIOS: dict[Scenario, int] = {
    plain_run: scaled(reduced=2, full=8),
    short_run: scaled(reduced=10, full=20),
    exec_processes: scaled(reduced=2, full=6),
    pause_and_resume: scaled(reduced=3, full=6),
    restarts: scaled(reduced=2, full=6),
    relabeled: scaled(reduced=1, full=5),
    never_started: scaled(reduced=2, full=6),
    nerdctl_lifecycle: scaled(reduced=2, full=4),
    nerdctl_self_removing: scaled(reduced=2, full=5),
    compose_project: 2,
}


# A subset with every kind of transition, and with the exits whose events containerd 2.4 loses.
SHORT_SCENARIOS: dict[Scenario, int] = {
    plain_run: 2,
    short_run: 6,
    exec_processes: 1,
    pause_and_resume: 2,
    restarts: 2,
    relabeled: 1,
    never_started: 1,
}


def run_scenarios(
    engine: Containerd, directory: Path, records: Path, scenarios: dict[Scenario, int]
) -> list[ContainerHistory]:
    """Run the scenarios in all namespaces concurrently; ``records`` is the file that a bridge publishes to."""
    histories = [ContainerHistory(engine, namespace, directory, records) for namespace in NAMESPACES]
    for namespace in NAMESPACES[1:]:
        engine.import_image(namespace)

    def run_all(history: ContainerHistory) -> None:
        for scenario, count in scenarios.items():
            for number in range(count):
                scenario(history, number)

    with ThreadPoolExecutor(len(histories)) as pool:
        list(pool.map(run_all, histories))
    return histories
