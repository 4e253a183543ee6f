"""Preflight checks: opens, checks and closes once each connection that ``run`` needs before its first record."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import MutableMapping
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

import sinks.registry
from bridge.app import boot_id
from bridge.cli.examine import examine
from bridge.cli.findings import Finding
from bridge.cli.mounts import file_system
from bridge.core.errors import BridgeError, FatalError, InUseError
from bridge.core.filters import NamespaceFilter
from bridge.inspection import not_listening
from bridge.outbox import store
from bridge.outbox.folder import StateFolder
from bridge.tasks import bounded
from config.sinks import FileSettings, KafkaSettings, NatsSettings, StdoutSettings
from config.sinks.common import host_and_port
from sinks.file import FileInUseError

if TYPE_CHECKING:
    from config.models import HttpSettings
    from config.settings import Settings
    from config.sinks import SinkSettings

SINK_SECONDS = 12.0
_PATIENCE = timedelta(seconds=6)  # shorter than SINK_TIMEOUT_SECONDS, so that the sink reports the reason
_CLOSE_SECONDS = 2.0
_SPARE_BYTES = 16 * 1024 * 1024
_REMOTE = frozenset({"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "afs", "lustre", "fuse.sshfs"})
_FLEETING = {
    "tmpfs": "its contents are lost at reboot: use a directory on a disk",
    "ramfs": "its contents are lost at reboot: use a directory on a disk",
    "overlay": "its contents are lost with this container: mount a directory of the host",
}


async def rehearse(settings: Settings) -> list[Finding]:
    """Check containerd, the state directory, the HTTP endpoint's address and each sink, concurrently."""
    lines = _listen()
    is_watched = NamespaceFilter(settings.namespaces.include, settings.namespaces.exclude)
    containerd, state, http, *sink_results = await asyncio.gather(
        examine(settings.containerd.address, is_watched),
        asyncio.to_thread(_state_dir, settings),
        _http(settings.http),
        *(_sink(id_, sink) for id_, sink in settings.sinks.items()),
    )
    for id_, results in zip(settings.sinks, sink_results, strict=True):
        results += [_from_log(line) for line in lines if line.get("sink") == id_]
    return [*_host(), *containerd, *state, *http, *(result for results in sink_results for result in results)]


def _host() -> list[Finding]:
    try:
        boot_id()
    except BridgeError as error:
        return [Finding.of("host", error)]
    return []


# --- the state directory ---


def _state_dir(settings: Settings) -> list[Finding]:
    """Lock and check the state directory as ``run`` does, and unlock it."""
    if not settings.state_dir:
        text = "not set: undelivered records are lost when the process ends; a snapshot follows at the next start"
        return [Finding("ok", "state_dir", text)]
    directory = StateFolder(Path(settings.state_dir))
    try:
        directory.take()
        store.look(directory)
        found = [Finding("ok", "state_dir", f"{directory.path} exists and is writable")]
    except InUseError as error:
        in_use, _, _ = str(error).partition("; ")  # the rest is a hint for a second bridge
        found = [Finding("ok", "state_dir", f"{in_use}; expected while the bridge is running")]
    except BridgeError as error:
        return [Finding.of("state_dir", error)]
    finally:
        directory.release()
    return [*found, *_disk(directory.path, settings)]


def _disk(path: Path, settings: Settings) -> list[Finding]:
    found: list[Finding] = []
    kind = file_system(Path("/proc/self/mountinfo").read_text(), os.path.realpath(path))
    if kind in _REMOTE:
        hint = "use a directory on a local disk: locks and syncs are not reliable on network file systems"
        found.append(Finding("warning", "state_dir", f"{path} is on a network file system ({kind})", hint))
    elif kind in _FLEETING:
        found.append(Finding("warning", "state_dir", f"{path} is not persistent ({kind})", _FLEETING[kind]))
    disk = os.statvfs(path)
    free, needed = disk.f_bavail * disk.f_frsize, _room(settings)
    if free < needed:
        hint = "free disk space, or lower outbox.max_bytes"
        text = f"the disk has {_mib(free)} free, but the outbox can grow to {_mib(needed)}"
        found.append(Finding("warning", "state_dir", text, hint))
    return found


def _room(settings: Settings) -> int:
    """Return the maximum size of the outbox in bytes (docs/reliability.md)."""
    return settings.outbox.max_bytes * len(settings.sinks) * 11 // 10 + _SPARE_BYTES


def _mib(size: int) -> str:
    return f"{size // (1024 * 1024)} MiB"


# --- the HTTP endpoint ---


async def _http(settings: HttpSettings) -> list[Finding]:
    """Listen for a moment, where ``run`` would end if it could not."""
    return [await _address(settings.listen)] if settings.listen and "listen" in settings.model_fields_set else []


async def _address(listen: str) -> Finding:
    try:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, *host_and_port(listen, 0))
    except OSError as error:
        text = not_listening(listen, error)
        if error.errno == errno.EADDRINUSE:
            return Finding("warning", "http", text, "expected while the bridge is running")
        return Finding.of("http", FatalError(text))
    server.close()
    return Finding("ok", "http", f"{listen} is available")


# --- sinks ---


async def _sink(what: str, settings: SinkSettings) -> list[Finding]:
    structlog.contextvars.bind_contextvars(sink=what)  # as the pump does
    if isinstance(settings, StdoutSettings):
        return [Finding("ok", what, "standard output of run")]
    try:
        sink = sinks.registry.make(settings.limit_timeout(_PATIENCE))
    except BridgeError as error:
        return [Finding.of(what, error)]
    try:
        await bounded(sink.start, SINK_SECONDS)
    except FileInUseError as error:
        return [Finding("warning", what, str(error), "expected while the bridge is running")]
    except BridgeError as error:
        return [Finding.of(what, error)]
    finally:
        await asyncio.wait([asyncio.ensure_future(sink.close())], timeout=_CLOSE_SECONDS)
    return [Finding("ok", what, _reached(settings))]


def _reached(settings: SinkSettings) -> str:
    match settings:
        case KafkaSettings():
            return f"{', '.join(settings.bootstrap_servers)}: connected; topic {settings.topic} exists and is writable"
        case NatsSettings(mode="core"):
            return f"{', '.join(settings.servers)}: connected; mode core does not store records"
        case NatsSettings():
            return (
                f"{', '.join(settings.servers)}: connected; stream {settings.stream_name} exists; permission to "
                f"publish to {settings.subject_prefix}.> is not checked"
            )
        case FileSettings():
            return f"{settings.path} is writable"
        case _:
            return "connected"


# --- log lines of the sinks ---


def _listen() -> list[MutableMapping[str, Any]]:
    """Collect log lines instead of writing them; drop those of libraries, because errors repeat them."""
    lines: list[MutableMapping[str, Any]] = []

    def collect(_: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        lines.append({**event, "level": level})
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, collect])
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)
    return lines


def _from_log(line: MutableMapping[str, Any]) -> Finding:
    values = {name: value for name, value in line.items() if name not in ("event", "level", "sink", "detail", "hint")}
    fields = ", ".join(f"{name} {value}" for name, value in values.items())
    text = str(line.get("detail") or f"{line['event']} ({fields})")
    return Finding("ok" if line["level"] == "info" else "warning", str(line["sink"]), text, str(line.get("hint", "")))
