"""Preflight checks of ``check``: open, check and close, once, everything that ``run`` needs before it can publish."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
from collections.abc import MutableMapping
from datetime import timedelta
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import structlog

import sinks.factory
from bridge.app import boot_id
from bridge.cli.check_results import CheckResult
from bridge.cli.containerd_checks import check_containerd
from bridge.cli.errors import FAILED
from bridge.clock import SystemClock
from bridge.core.errors import BridgeError, FatalError, InUseError
from bridge.core.filters import NamespaceFilter
from bridge.http_endpoint import describe_listen_error, listen_address
from bridge.outbox import database_worker
from bridge.outbox.state_directory import StateDirectory
from bridge.task_groups import with_timeout
from config.sinks import FileSettings, HttpSinkSettings, KafkaSettings, NatsSettings, StdoutSettings
from sinks.file import FileInUseError

if TYPE_CHECKING:
    from config.setting_groups import HttpSettings
    from config.settings import Settings
    from config.sinks import SinkSettings

SINK_TIMEOUT_SECONDS = 12.0
_ATTEMPT_TIMEOUT = timedelta(seconds=6)  # shorter than SINK_TIMEOUT_SECONDS, so that the sink reports the reason
_CLOSE_TIMEOUT_SECONDS = 2.0
_OCTAL_ESCAPE = re.compile(r"\\([0-7]{3})")
_MOUNTINFO = Path("/proc/self/mountinfo")
_MOUNT_POINT_FIELD = 4  # of a line of /proc/self/mountinfo
_MIB = 1024 * 1024
_OVERHEAD_BYTES = 16 * _MIB
_NETWORK_FILE_SYSTEMS = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "afs", "lustre", "fuse.sshfs"}
)
_VOLATILE_FILE_SYSTEMS = {
    "tmpfs": "its contents are lost at reboot: use a directory on a disk",
    "ramfs": "its contents are lost at reboot: use a directory on a disk",
    "overlay": "its contents are lost with this container: mount a directory of the host",
}


async def run_preflight(settings: Settings) -> list[CheckResult]:
    """Check containerd, the state directory, the HTTP endpoint's address and each sink, concurrently."""
    lines = _capture_logs()
    is_watched = NamespaceFilter(settings.namespaces.include, settings.namespaces.exclude)
    containerd, state, http, *sink_results = await asyncio.gather(
        check_containerd(settings.containerd.address, is_watched, uses_cri=settings.containerd.cri == "auto"),
        asyncio.to_thread(_check_state_dir, settings),
        _check_http(settings.http),
        *(_check_sink(id_, settings) for id_ in settings.sinks),
    )
    for id_, results in zip(settings.sinks, sink_results, strict=True):
        results += [_result_from_log(line) for line in lines if line.get("sink") == id_]
    return [*_check_host(), *containerd, *state, *http, *(result for results in sink_results for result in results)]


def _check_host() -> list[CheckResult]:
    try:
        boot_id()
    except BridgeError as error:
        return [CheckResult.from_error("host", error)]
    return []


# --- the state directory ---


def _check_state_dir(settings: Settings) -> list[CheckResult]:
    """Lock and check the state directory as ``run`` does, and unlock it."""
    if not settings.state_dir:
        text = "not set: undelivered records are lost when the process ends; a snapshot follows at the next start"
        return [CheckResult("ok", "state_dir", text)]
    directory = StateDirectory(Path(settings.state_dir))
    try:
        directory.lock()
        database_worker.validate_directory(directory)
        result = CheckResult("ok", "state_dir", f"{directory.path} exists and is writable")
    except InUseError as error:
        in_use, _, _ = str(error).partition("; ")  # the rest is a hint for a second bridge
        result = CheckResult("ok", "state_dir", f"{in_use}; expected while the bridge is running")
    except BridgeError as error:  # also a full disk, for which run would wait
        return [CheckResult("error", "state_dir", str(error), exit_status=FAILED)]
    finally:
        directory.unlock()
    return [result, *_check_disk(directory.path, settings)]


def _check_disk(path: Path, settings: Settings) -> list[CheckResult]:
    results: list[CheckResult] = []
    type_ = file_system_type(_read_mounts(), os.path.realpath(path))
    if type_ in _NETWORK_FILE_SYSTEMS:
        hint = "use a directory on a local disk: locks and syncs are not reliable on network file systems"
        results.append(CheckResult("warning", "state_dir", f"{path} is on a network file system ({type_})", hint))
    elif type_ in _VOLATILE_FILE_SYSTEMS:
        text = f"{path} is not persistent ({type_})"
        results.append(CheckResult("warning", "state_dir", text, _VOLATILE_FILE_SYSTEMS[type_]))
    disk = os.statvfs(path)
    free = disk.f_bavail * disk.f_frsize
    limit = settings.outbox.size_limit(settings.state_dir) * len(settings.sinks)
    needed = limit * 11 // 10 + _OVERHEAD_BYTES  # docs/performance.md
    if free < needed:
        hint = "free disk space, or lower outbox.max_bytes"
        text = f"the disk has {free // _MIB} MiB free, but the outbox can grow to {needed // _MIB} MiB"
        results.append(CheckResult("warning", "state_dir", text, hint))
    return results


def _read_mounts() -> str:
    try:
        return os.fsdecode(_MOUNTINFO.read_bytes())
    except OSError:  # without /proc, which is an error of its own
        return ""


def file_system_type(mountinfo: str, path: str) -> str:
    """Return the type of the file system of a path (ext4, tmpfs, nfs4, ...); "" if it is unknown.

    Args:
        mountinfo: The content of /proc/self/mountinfo, in which only space, tab, line feed and backslash are escaped.
        path: Absolute, without symbolic links.
    """
    best_length, file_system = -1, ""
    for line in mountinfo.split("\n"):
        mount, separator, source = line.partition(" - ")
        fields = mount.split(" ")
        if not separator or len(fields) <= _MOUNT_POINT_FIELD:
            continue
        point = PurePosixPath(_OCTAL_ESCAPE.sub(lambda code: chr(int(code[1], 8)), fields[_MOUNT_POINT_FIELD]))
        # With equal lengths the later line counts, because later mounts hide earlier ones.
        if PurePosixPath(path).is_relative_to(point) and len(point.parts) >= best_length:
            best_length, file_system = len(point.parts), source.split()[0]
    return file_system


# --- the HTTP endpoint ---


async def _check_http(settings: HttpSettings) -> list[CheckResult]:
    """Listen briefly on an explicitly configured address: only for such an address, ``run`` fails if it cannot."""
    listen = settings.listen
    if not listen or "listen" not in settings.model_fields_set:
        return []
    try:
        server = await asyncio.get_running_loop().create_server(asyncio.Protocol, *listen_address(listen))
    except OSError as error:
        text = describe_listen_error(listen, error)
        if error.errno == errno.EADDRINUSE:
            return [CheckResult("warning", "http", text, "expected while the bridge is running")]
        return [CheckResult.from_error("http", FatalError(text))]
    server.close()
    return [CheckResult("ok", "http", f"{listen} is available")]


# --- sinks ---


async def _check_sink(id_: str, all_settings: Settings) -> list[CheckResult]:
    settings = all_settings.sinks[id_]
    structlog.contextvars.bind_contextvars(sink=id_)  # as the pump does
    clock = SystemClock()
    if isinstance(settings, StdoutSettings):
        return [CheckResult("ok", id_, "run writes records to its standard output")]
    try:
        sink = sinks.factory.create_sink(
            settings.limit_timeout(_ATTEMPT_TIMEOUT),
            clock,
            host=all_settings.host,
            snapshot_interval=all_settings.snapshot.interval,
        )
    except BridgeError as error:
        return [CheckResult.from_error(id_, error)]
    try:
        await with_timeout(sink.start, SINK_TIMEOUT_SECONDS, clock)
    except FileInUseError as error:
        in_use, _, _ = str(error).partition("; ")  # the rest is a hint for a second bridge
        return [CheckResult("warning", id_, in_use, "expected while the bridge is running")]
    except BridgeError as error:
        return [CheckResult.from_error(id_, error)]
    finally:
        with contextlib.suppress(BridgeError):
            await with_timeout(sink.close, _CLOSE_TIMEOUT_SECONDS, clock)
    return [CheckResult("ok", id_, _success_message(settings))]


def _success_message(settings: SinkSettings) -> str:
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
        case HttpSinkSettings():
            return f"{settings.endpoint}: connected; whether it accepts records is not checked"
        case FileSettings():
            return f"{settings.path} is writable"
        case _:
            return "connected"


# --- log lines of the sinks ---


def _capture_logs() -> list[MutableMapping[str, Any]]:
    """Collect log lines instead of writing them; drop those of libraries, because errors repeat them."""
    lines: list[MutableMapping[str, Any]] = []

    def collect(_: Any, level: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        lines.append({**event, "level": level})
        raise structlog.DropEvent

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, collect])
    logging.basicConfig(handlers=[logging.NullHandler()], force=True)
    return lines


def _result_from_log(line: MutableMapping[str, Any]) -> CheckResult:
    values = {name: value for name, value in line.items() if name not in ("event", "level", "sink", "detail", "hint")}
    fields = ", ".join(f"{name} {value}" for name, value in values.items())
    text = str(line.get("detail") or f"{line['event']} ({fields})")
    return CheckResult(
        "ok" if line["level"] == "info" else "warning", str(line["sink"]), text, str(line.get("hint", ""))
    )
