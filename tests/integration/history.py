"""A known history of real containers: what the test did is the truth, never what an event stream said.

Each scenario runs one container through its life with containerd's own clients and writes down what it did, step by
step, as the transitions that have to be told.
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


class Told(NamedTuple):
    """A transition that has to be told; ``between`` is when it happened at the earliest and at the latest."""

    type: str
    name: str
    project: str
    status: int | None
    between: tuple[float, float]


_numbers = itertools.count()  # of all stories: some leave their containers behind


class Story:
    """What was done to the containers of one namespace. One thread a story."""

    def __init__(self, engine: Containerd, namespace: str, folder: Path, records: Path) -> None:
        self.engine = engine
        self.namespace = namespace
        self.folder = folder
        self._records = records
        self.truth: dict[str, list[Told]] = defaultdict(list)
        self.silent: set[str] = set()

    def fresh(self, stem: str) -> str:
        """A name nobody had."""
        tidy = self.namespace.replace(".", "-")
        return f"{stem}-{tidy}-{os.getpid()}-{self.engine.version.replace('.', '')}-{next(_numbers)}"

    def ctr(self, *args: str) -> str:
        """Call ctr in this namespace."""
        return self.engine.ctr(*args, namespace=self.namespace).stdout

    def nerdctl(self, *args: str) -> str:
        """Call nerdctl in this namespace."""
        return self.engine.nerdctl(*args, namespace=self.namespace).stdout.strip()

    def display(self, id_: str) -> str:
        """whalewatcher's display id."""
        return id_ if self.namespace == "default" else f"{self.namespace}/{id_}"

    def do(
        self,
        id_: str,
        types: str,
        action: Callable[[], object],
        *,
        name: str = "",
        project: str = "",
        status: int | None = None,
    ) -> None:
        """Do something and note the transitions that it is, told in order; ``status`` is that of an exit."""
        before = time.time()
        action()
        self.note(id_, types, before, name=name, project=project, status=status)

    def note(
        self, id_: str, types: str, before: float, *, name: str = "", project: str = "", status: int | None = None
    ) -> None:
        """Note transitions that happened since ``before``."""
        self.truth[self.display(id_)] += [
            Told(type_, name or id_, project, status if type_ == "exited" else None, (before, time.time()))
            for type_ in types.split()
        ]

    def told(self, id_: str) -> None:
        """Wait until all that a container did is told: names are those that it had when the bridge looked."""

        def transitions() -> int:
            lines = self._records.read_text().splitlines()
            return sum(id_ in line and '"present"' not in line for line in lines)

        eventually(lambda: transitions() >= len(self.truth[self.display(id_)]), f"word of {id_}")

    # --- with ctr ---

    def start(self, id_: str, *options: str) -> None:
        """Run a container in the background."""
        run = ("run", "--detach", "--null-io", *options, IMAGE, id_, "sleep", "86400")
        self.do(id_, "started", lambda: self.ctr(*run))

    def end(self, id_: str, *, name: str = "") -> None:
        """Kill a container and remove its task."""
        self.do(id_, "exited", lambda: self._kill(id_), name=name, status=137)

    def _kill(self, id_: str) -> None:
        self.ctr("task", "kill", "--signal", "SIGKILL", id_)
        deadline = time.monotonic() + 20
        while self.engine.tasks(self.namespace).get(id_) != "STOPPED":
            assert time.monotonic() < deadline, id_
        self.ctr("task", "rm", id_)


Scenario: TypeAlias = Callable[[Story, int], None]


def plain_run(story: Story, _number: int) -> None:
    """Runs till it is killed."""
    id_ = story.fresh("plain")
    story.start(id_)
    story.end(id_)
    story.ctr("containers", "rm", id_)


def blink(story: Story, number: int) -> None:
    """Lives for a millisecond, removed at once or not, with some exit status."""
    id_ = story.fresh("blink")
    status = (0, 1, 3, 42, 255)[number % 5]
    command = ("true",) if status == 0 else ("sh", "-c", f"exit {status}")
    remove = ("--rm",) if number % 2 else ()
    run = ("run", *remove, "--null-io", "--label", "com.docker.compose.project=blinks", IMAGE, id_, *command)
    before = time.time()
    story.engine.ctr(*run, namespace=story.namespace, check=False)  # it exits with the container's status
    story.note(id_, "started exited", before, project="blinks", status=status)


def execs(story: Story, _number: int) -> None:
    """Commands are run in it, some fail: none of that is the container's exit."""
    id_ = story.fresh("execs")
    story.start(id_)
    for exec_, command in enumerate((("true",), ("false",), ("sh", "-c", "exit 7"), ("sh", "-c", "kill -9 $$"))):
        run = ("task", "exec", "--exec-id", f"e{exec_}", id_, *command)
        story.engine.ctr(*run, namespace=story.namespace, check=False)
    story.end(id_)


def pauses(story: Story, number: int) -> None:
    """Is paused and resumed, once or more."""
    id_ = story.fresh("pauses")
    story.start(id_)
    for _ in range(1 + number % 3):
        story.do(id_, "paused", lambda: story.ctr("task", "pause", id_))
        story.do(id_, "unpaused", lambda: story.ctr("task", "resume", id_))
    story.end(id_)


def reborn(story: Story, number: int) -> None:
    """Is killed and started again under the same id."""
    id_ = story.fresh("reborn")
    story.start(id_)
    story.end(id_)
    for _ in range(1 + number % 2):
        story.do(id_, "started", lambda: story.ctr("task", "start", "--detach", "--null-io", id_))
        story.end(id_)


def relabelled(story: Story, _number: int) -> None:
    """Is given another name and project while it lives."""
    id_ = story.fresh("relabelled")
    story.start(id_, "--label", "nerdctl/name=before")
    story.truth[story.display(id_)][-1] = story.truth[story.display(id_)][-1]._replace(name="before")
    story.told(id_)
    story.ctr("containers", "label", id_, "nerdctl/name=after", "com.docker.compose.project=late")
    story.do(id_, "paused", lambda: story.ctr("task", "pause", id_), name="after", project="late")
    story.do(id_, "unpaused", lambda: story.ctr("task", "resume", id_), name="after", project="late")
    story.do(id_, "exited", lambda: story._kill(id_), name="after", project="late", status=137)


def never_started(story: Story, number: int) -> None:
    """Is created and removed without ever having been started."""
    id_ = story.fresh("never")
    if number % 2:
        story.ctr("containers", "create", IMAGE, id_, "sleep", "86400")
        story.ctr("containers", "rm", id_)
    else:
        run = ("create", "--pull", "never", "--net", "host", "--name", id_, "busybox:latest", "sleep", "86400")
        id_ = story.nerdctl(*run)
        story.nerdctl("rm", id_)
    story.silent.add(story.display(id_))


def nerdctl_life(story: Story, number: int) -> None:
    """A nerdctl container: run, pause, rename, restart, stop."""
    name = story.fresh("ship")
    before = time.time()
    id_ = story.nerdctl(
        "run", "-d", "--pull", "never", "--net", "host", "--name", name, "busybox:latest", "sleep", "86400"
    )
    story.note(id_, "started", before, name=name)
    story.do(id_, "paused", lambda: story.nerdctl("pause", name), name=name)
    story.do(id_, "unpaused", lambda: story.nerdctl("unpause", name), name=name)
    story.told(id_)
    story.nerdctl("rename", name, f"{name}-renamed")
    name = f"{name}-renamed"
    if number % 2:
        story.do(id_, "exited started", lambda: story.nerdctl("restart", "-t", "0", name), name=name, status=137)
    story.do(id_, "exited", lambda: story.nerdctl("kill", name), name=name, status=137)
    story.nerdctl("rm", "-f", name)


def nerdctl_rm(story: Story, number: int) -> None:
    """A nerdctl container that removes itself."""
    name = story.fresh("flash")
    status = (0, 9)[number % 2]
    before = time.time()
    run = ("run", "--rm", "--pull", "never", "--net", "host", "--name", name, "--label", f"flash={name}")
    story.engine.nerdctl(*run, "busybox:latest", "sh", "-c", f"exit {status}", namespace=story.namespace, check=False)
    story.note(f"named:{name}", "started exited", before, name=name, status=status)


def compose(story: Story, number: int) -> None:
    """A compose project of two services: up, pause, unpause, down."""
    project = story.fresh("shop")
    file = story.folder / f"{project}.yaml"
    file.write_text(COMPOSE.format(project=project))
    command = ("compose", "-f", str(file))
    before = time.time()
    story.nerdctl(*command, "up", "-d")
    names = {service: f"{project}-{service}-1" for service in ("web", "db")}
    ids = {service: story.nerdctl("inspect", "--format", "{{.ID}}", name) for service, name in names.items()}
    for service, id_ in ids.items():
        story.note(id_, "started", before, name=names[service], project=project)
    if number % 2:
        for types, verb in (("paused", "pause"), ("unpaused", "unpause")):
            before = time.time()
            story.nerdctl(*command, verb, "web")
            story.note(ids["web"], types, before, name=names["web"], project=project)
    for service, name in names.items():
        kill = partial(story.nerdctl, "kill", name)
        story.do(ids[service], "exited", kill, name=name, project=project, status=137)
    story.nerdctl(*command, "down")


# Of each, how many a namespace: 70 containers each (a compose project is two), 210 in all.
SCENARIOS: dict[Scenario, int] = {
    plain_run: 8,
    blink: 20,
    execs: 6,
    pauses: 6,
    reborn: 6,
    relabelled: 5,
    never_started: 6,
    nerdctl_life: 4,
    nerdctl_rm: 5,
    compose: 2,
}


# A part of it that brings about every kind of transition, and the exits whose events containerd 2.4 loses.
SHORT: dict[Scenario, int] = {plain_run: 2, blink: 12, execs: 1, pauses: 2, reborn: 2, relabelled: 1, never_started: 1}


def live_through(engine: Containerd, folder: Path, records: Path, scenarios: dict[Scenario, int]) -> list[Story]:
    """Live through a history, the namespaces side by side; `records` is where a bridge tells of it."""
    stories = [Story(engine, namespace, folder, records) for namespace in NAMESPACES]
    for namespace in NAMESPACES[1:]:
        engine.import_image(namespace)

    def live(story: Story) -> None:
        for scenario, count in scenarios.items():
            for number in range(count):
                scenario(story, number)

    with ThreadPoolExecutor(len(stories)) as pool:
        list(pool.map(live, stories))
    return stories
