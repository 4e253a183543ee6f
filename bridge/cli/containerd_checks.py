"""Checks of one containerd: version, health, event delivery and namespaces, with the calls that ``run`` uses."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence

from bridge.cli.check_results import CheckResult
from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient, Timeouts
from bridge.containerd.rpc_errors import RpcError
from bridge.core.container_metadata import KUBERNETES_NAMESPACE
from bridge.core.containerd_model import Engine, Task, TaskStatus
from bridge.core.errors import BridgeError
from bridge.core.filters import DOCKER_NAMESPACE
from bridge.core.label_rules import LabelRules
from bridge.stream_markers import read_to_marker
from bridge.watch.listing import NO_MATCH_HINT

CHECK_TIMEOUTS = Timeouts(connect=5.0, call=5.0, listing=8.0)
MARKER_TIMEOUT_SECONDS = 4.0
_MIN_VERSION, _MAX_MAJOR_VERSION = (1, 6), 2  # oldest tested version, newest tested major version
_VERSION_PATTERN = re.compile(r"v?(\d+)\.(\d+)")


async def check_containerd(path: str, is_watched: Callable[[str], bool], *, uses_cri: bool = True) -> list[CheckResult]:
    """Check the containerd at ``path``; ``is_watched`` selects the namespaces. Takes up to 15 s."""
    async with ContainerdClient(path, LabelRules.keep_all(), timeouts=CHECK_TIMEOUTS) as client:
        try:
            engine = await client.engine()
        except BridgeError as error:
            return [CheckResult.from_error(path, error)]
        checks = await asyncio.gather(
            _check_health(client),
            _check_event_stream(client),
            _check_namespaces(client, is_watched),
            _check_cri(client, is_watched, uses_cri=uses_cri),
        )
    return [_check_version(engine), *(result for results in checks for result in results)]


def _check_version(engine: Engine) -> CheckResult:
    process = f", process {engine.pid}" if engine.pid else ""
    text = f"containerd {engine.version} responds{process}"
    match = _VERSION_PATTERN.match(engine.version)
    version = (int(match[1]), int(match[2])) if match else _MIN_VERSION
    if version < _MIN_VERSION:
        text += ", older than the tested versions"
        return CheckResult("warning", engine.api, text, "upgrade containerd to 1.6 or newer")
    if version[0] > _MAX_MAJOR_VERSION:
        text += ", newer than the tested versions"
        return CheckResult("warning", engine.api, text, "look for an update of whalebridge")
    return CheckResult("ok", engine.api, text)


async def _check_health(client: ContainerdClient) -> list[CheckResult]:
    try:
        if await client.health():
            return []
    except RpcError:  # some versions and proxies lack this service: the other checks decide
        return []
    except BridgeError as error:
        return [CheckResult.from_error(client.path, error)]
    return [
        CheckResult("warning", client.path, "containerd's health service reports NOT_SERVING", "check containerd's log")
    ]


async def _check_event_stream(client: ContainerdClient) -> list[CheckResult]:
    """Publish marker events until one is received, as ``run`` does: only that verifies the event stream."""
    stream = await client.subscribe()
    try:
        await read_to_marker(client, stream, SystemClock(), MARKER_TIMEOUT_SECONDS)
    except BridgeError as error:
        return [CheckResult.from_error(client.path, error)]
    finally:
        stream.close()
    return [CheckResult("ok", client.path, "events are delivered: a marker event was received")]


async def _check_namespaces(client: ContainerdClient, is_watched: Callable[[str], bool]) -> list[CheckResult]:
    try:
        namespaces = sorted(await client.namespaces())
    except BridgeError as error:
        return [CheckResult.from_error(client.path, error)]
    watched_names = [name for name in namespaces if is_watched(name)]
    listed = await asyncio.gather(*(client.tasks(name) for name in watched_names), return_exceptions=True)
    results: list[CheckResult] = []
    running: list[str] = []
    for name, tasks in zip(watched_names, listed, strict=True):
        if isinstance(tasks, BridgeError):
            results.append(CheckResult.from_error(client.path, tasks))
        elif isinstance(tasks, BaseException):
            raise tasks
        else:
            running.append(f"{name} {sum(task.running for task in tasks)}")
            results += _unresponsive_shims(client.path, name, tasks)
    return [
        _running_summary(client.path, running, exist=bool(namespaces)),
        *_excluded_namespaces(client.path, set(namespaces) - set(watched_names)),
        *results,
    ]


async def _check_cri(
    client: ContainerdClient, is_watched: Callable[[str], bool], *, uses_cri: bool
) -> list[CheckResult]:
    """Check whether CRI's records of exits are available, where they are of use."""
    if not is_watched(KUBERNETES_NAMESPACE):
        return []
    if not uses_cri:
        return [CheckResult("ok", client.path, "CRI is not used: containerd.cri is off")]
    try:
        exited = await client.exited_containers(CHECK_TIMEOUTS.call)
    except BridgeError as error:
        text = f"CRI does not respond: {error}"
        hint = "check containerd's log, and whether a proxy of an earlier version is used, or set containerd.cri to off"
        return [CheckResult("warning", client.path, text, hint)]
    if exited is None:
        return []
    text = f"CRI responds: {len(exited)} exited containers; exits that fall into a gap get their status from it"
    return [CheckResult("ok", client.path, text)]


def _running_summary(path: str, running: Sequence[str], *, exist: bool) -> CheckResult:
    if running:
        return CheckResult("ok", path, f"running containers by namespace: {', '.join(running)}")
    if exist:
        return CheckResult("warning", path, "no namespace matches, so nothing is published", NO_MATCH_HINT)
    return CheckResult("ok", path, "no namespace exists yet")


def _excluded_namespaces(path: str, excluded: Iterable[str]) -> list[CheckResult]:
    results: list[CheckResult] = []
    other_names = sorted(set(excluded) - {DOCKER_NAMESPACE})
    if DOCKER_NAMESPACE in excluded:
        name = DOCKER_NAMESPACE
        text = f"Docker's namespace {name} is excluded unless included explicitly (--namespace {name})"
        results.append(CheckResult("ok", path, text))
    if other_names:
        results.append(CheckResult("ok", path, f"excluded namespaces: {', '.join(other_names)}"))
    return results


def _unresponsive_shims(path: str, namespace: str, tasks: Sequence[Task]) -> list[CheckResult]:
    unknown = [task.key.id for task in tasks if task.status is TaskStatus.UNKNOWN]
    if not unknown:
        return []
    text = f"namespace {namespace}: no response from the shims of {', '.join(unknown[:3])}"
    more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""  # noqa: PLR2004 (the ids that are listed)
    return [CheckResult("warning", path, text + more, "check whether these processes hang (stopped, out of memory)")]
