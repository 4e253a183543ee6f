"""Checks of one containerd: version, health, event delivery and namespaces, with the calls that ``run`` uses."""

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
_OLDEST, _NEWEST = (1, 6), 2  # oldest tested version, newest tested major version
_VERSION = re.compile(r"v?(\d+)\.(\d+)")


async def examine(path: str, watched: Callable[[str], bool]) -> list[Finding]:
    """Check the containerd at ``path``; ``is_watched`` selects the namespaces. Takes up to 15 s."""
    async with ContainerdClient(path, LabelRules.keep_all(), timeouts=TIMEOUTS) as client:
        try:
            engine = await client.engine()
        except BridgeError as error:
            return [Finding.of(path, error)]
        checks = await asyncio.gather(_health(client), _marks(client), _living(client, watched))
    return [_version(engine), *(finding for findings in checks for finding in findings)]


def _version(engine: Engine) -> Finding:
    process = f", process {engine.pid}" if engine.pid else ""
    found = f"containerd {engine.version} responds{process}"
    match = _VERSION.match(engine.version)
    version = (int(match[1]), int(match[2])) if match else _OLDEST
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
    except RefusedError:  # some versions and proxies lack this service: the other checks decide
        return []
    except BridgeError as error:
        return [Finding.of(client.path, error)]
    return [
        Finding("warning", client.path, "containerd's health service reports NOT_SERVING", "check containerd's log")
    ]


async def _marks(client: ContainerdClient) -> list[Finding]:
    """Publish marker events until one is received, as ``run`` does: only that verifies the event stream."""
    stream = await client.subscribe()
    markers = Marks(client, SystemClock(), MARK_SECONDS, busy=lambda: False)

    async def drain() -> None:
        while True:
            for event in await stream.batch():
                if isinstance(event, Mark):
                    markers.returned(event)

    try:
        async with together() as tasks:
            draining = tasks.create_task(drain())
            await markers.prove()
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
    watched_names = [name for name in namespaces if watched(name)]
    listed = await asyncio.gather(*(client.tasks(name) for name in watched_names), return_exceptions=True)
    results: list[Finding] = []
    running: list[str] = []
    for name, tasks in zip(watched_names, listed, strict=True):
        if isinstance(tasks, BridgeError):
            results.append(Finding.of(client.path, tasks))
        elif isinstance(tasks, BaseException):
            raise tasks
        else:
            running.append(f"{name} {sum(task.alive for task in tasks)}")
            results += _hanging(client.path, name, tasks)
    return [_summary(client.path, running), *_left_out(client.path, set(namespaces) - set(watched_names)), *results]


def _summary(path: str, living: Sequence[str]) -> Finding:
    if living:
        return Finding("ok", path, f"running containers by namespace: {', '.join(living)}")
    return Finding("ok", path, "no matching namespace exists yet")


def _left_out(path: str, names: Iterable[str]) -> list[Finding]:
    results: list[Finding] = []
    other_names = sorted(set(names) - {DOCKER_NAMESPACE})
    if DOCKER_NAMESPACE in names:
        name = DOCKER_NAMESPACE
        text = f"Docker's namespace {name} is excluded unless included explicitly (--namespace {name})"
        results.append(Finding("ok", path, text))
    if other_names:
        results.append(Finding("ok", path, f"excluded namespaces: {', '.join(other_names)}"))
    return results


def _hanging(path: str, namespace: str, tasks: Sequence[Task]) -> list[Finding]:
    unknown = [task.key.id for task in tasks if task.status is TaskStatus.UNKNOWN]
    if not unknown:
        return []
    text = f"namespace {namespace}: no response from the shims of {', '.join(unknown[:3])}"
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""  # noqa: PLR2004 (the ids that are listed)
    return [Finding("warning", path, text + more, "check whether these processes hang (stopped, out of memory)")]
