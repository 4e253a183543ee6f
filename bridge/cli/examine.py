"""A look at one containerd, as ``run`` will use it: who answers, whether marks come back, what lives there."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence

from bridge.cli.findings import Finding
from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient, Timeouts
from bridge.containerd.failures import RefusedError
from bridge.core.errors import BridgeError
from bridge.core.identity import DOCKER_NAMESPACE
from bridge.core.labels import LabelRules
from bridge.core.model import Engine, Mark, Task, TaskStatus
from bridge.tasks import together
from bridge.watch.marks import Marks

TIMEOUTS = Timeouts(connect=5.0, call=5.0, listing=8.0)
MARK_SECONDS = 4.0
_OLDEST, _NEWEST = (1, 6), 2  # the version that is known to work, and the major version up to which that goes
_VERSION = re.compile(r"v?(\d+)\.(\d+)")


async def examine(path: str, watched: Callable[[str], bool]) -> list[Finding]:
    """Look at the containerd at ``path``; ``watched`` are the namespaces that matter. It ends within some 15 s."""
    async with ContainerdClient(path, LabelRules.keep_all(), timeouts=TIMEOUTS) as client:
        try:
            engine = await client.engine()
        except BridgeError as error:
            return [Finding.of(path, error)]
        looked = await asyncio.gather(_health(client), _marks(client), _living(client, watched))
    return [_version(engine), *(finding for findings in looked for finding in findings)]


def _version(engine: Engine) -> Finding:
    process = f", process {engine.pid}" if engine.pid else ""
    found = f"containerd {engine.version} responds{process}"
    known = _VERSION.match(engine.version)
    version = (int(known[1]), int(known[2])) if known else _OLDEST
    if version < _OLDEST:
        return Finding("warning", engine.api, found, "upgrade containerd; whalebridge is tested with 1.6 and newer")
    if version[0] > _NEWEST:
        return Finding(
            "warning", engine.api, found, "newer than the tested versions; look for an update of whalebridge"
        )
    return Finding("ok", engine.api, found)


async def _health(client: ContainerdClient) -> list[Finding]:
    try:
        if await client.health():
            return []
    except RefusedError:  # not every version, nor every proxy, has that service: the others tell
        return []
    except BridgeError as error:
        return [Finding.of(client.path, error)]
    return [
        Finding("warning", client.path, "containerd's health service reports NOT_SERVING", "check containerd's log")
    ]


async def _marks(client: ContainerdClient) -> list[Finding]:
    """Publish marks until one is back, as ``run`` does: nothing else proves that the event stream works."""
    stream = await client.subscribe()
    marks = Marks(client, SystemClock(), MARK_SECONDS, busy=lambda: False)

    async def drain() -> None:
        while True:
            for event in await stream.batch():
                if isinstance(event, Mark):
                    marks.returned(event)

    try:
        async with together() as tasks:
            draining = tasks.create_task(drain())
            await marks.prove()
            draining.cancel()
    except BridgeError as error:
        return [Finding.of(client.path, error)]
    finally:
        stream.close()
    return [Finding("ok", client.path, "events are delivered: a marker event was received")]


async def _living(client: ContainerdClient, watched: Callable[[str], bool]) -> list[Finding]:
    try:
        namespaces = sorted(await client.namespaces())
    except BridgeError as error:
        return [Finding.of(client.path, error)]
    chosen = [name for name in namespaces if watched(name)]
    listed = await asyncio.gather(*(client.tasks(name) for name in chosen), return_exceptions=True)
    findings: list[Finding] = []
    living: list[str] = []
    for name, tasks in zip(chosen, listed, strict=True):
        if isinstance(tasks, BridgeError):
            findings.append(Finding.of(client.path, tasks))
        elif isinstance(tasks, BaseException):
            raise tasks
        else:
            living.append(f"{name} {sum(task.alive for task in tasks)}")
            findings += _hanging(client.path, name, tasks)
    return [_summary(client.path, living), *_left_out(client.path, set(namespaces) - set(chosen)), *findings]


def _summary(path: str, living: Sequence[str]) -> Finding:
    if living:
        return Finding("ok", path, f"running containers by namespace: {', '.join(living)}")
    return Finding("ok", path, "no matching namespace exists yet")


def _left_out(path: str, names: Iterable[str]) -> list[Finding]:
    findings: list[Finding] = []
    others = sorted(set(names) - {DOCKER_NAMESPACE})
    if DOCKER_NAMESPACE in names:
        name = DOCKER_NAMESPACE
        text = f"Docker's namespace {name} is excluded unless included explicitly (--namespace {name})"
        findings.append(Finding("ok", path, text))
    if others:
        findings.append(Finding("ok", path, f"excluded namespaces: {', '.join(others)}"))
    return findings


def _hanging(path: str, namespace: str, tasks: Sequence[Task]) -> list[Finding]:
    unknown = [task.key.id for task in tasks if task.status is TaskStatus.UNKNOWN]
    if not unknown:
        return []
    found = f"namespace {namespace}: no response from the shims of {', '.join(unknown[:3])}"
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""  # noqa: PLR2004 (those that were named)
    return [Finding("warning", path, found + more, "check whether these processes hang (stopped, out of memory)")]
