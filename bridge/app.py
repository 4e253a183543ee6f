"""The composition root: builds the components, runs them, and stops them in order.

The HTTP endpoint starts first, and reports what the start waits for: opening the outbox takes as long as its disk is
full or another process uses it. The sinks and the watch start when the outbox is open.

The shutdown takes at most ``STOP_SECONDS``: first the watch stops and persists what it has received, then the pumps
deliver as much of the backlog as they can, then the sinks are closed, and finally the outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog

import sinks.factory
from bridge import memory_tuning
from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.core.errors import FatalError
from bridge.core.filters import ContainerFilter, NamespaceFilter
from bridge.core.label_rules import LabelRules
from bridge.delivery.heartbeats import HeartbeatFactory
from bridge.delivery.pump import Pump
from bridge.delivery.sink_manager import SinkManager
from bridge.http_endpoint import StatusProvider, http_endpoint
from bridge.outbox.outbox import StoredOutbox
from bridge.outbox.sink_queue import Limits
from bridge.settings_reload import ConfigFile, SettingsReloader
from bridge.signal_handlers import SignalHandlers
from bridge.task_groups import completes_within, task_group
from bridge.telemetry import logs
from bridge.telemetry.systemd import SystemdNotifier
from bridge.watch import ContainerWatch, WatchSettings

if TYPE_CHECKING:
    from bridge.core.ports import Clock, Outbox, Sink
    from config.fields import SettingsModel
    from config.setting_groups import OutboxSettings
    from config.settings import Settings

T = TypeVar("T")

STOP_SECONDS = 10.0
WATCH_STOP_SECONDS = 1.5  # part of STOP_SECONDS, at most twice: for events that are received, but not persisted yet
CLOSE_SECONDS = 2.5  # part of STOP_SECONDS: for closing sinks, connections and the outbox
_SINK_ID = "only"  # the id of the sink of run_watch
BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")
_log = structlog.get_logger(__name__)


async def run(
    settings: Settings,
    load: Callable[[], Settings],
    config_file: ConfigFile,
    sink_instances: Mapping[str, Sink] | None = None,
) -> None:
    """Watch and publish until SIGTERM or SIGINT; at SIGHUP, apply the settings that ``load`` returns.

    With ``reload_on_change``, a change of ``config_file`` has the effect of SIGHUP. ``sink_instances`` are the sinks by
    id, created from the settings; by default they are created here.

    Raises:
        FatalError: An error that a retry cannot fix.
    """
    signals = SignalHandlers(STOP_SECONDS)
    clock = SystemClock()
    boot = boot_id()
    if sink_instances is None:
        sink_instances = sinks.factory.create_sinks(settings, clock)
    client_settings = watch_settings(settings)
    service_manager = SystemdNotifier(os.environ, clock)
    outbox = StoredOutbox(
        Path(settings.state_dir) if settings.state_dir else None,
        settings.sinks,
        clock,
        _limits(settings.outbox, settings.state_dir),
        on_wait=service_manager.started,  # so that a boot does not wait for disk space
    )
    client = _create_client(settings, client_settings)
    watch = ContainerWatch(client, outbox, clock, client_settings, boot)
    heartbeat_factory = HeartbeatFactory(lambda: watch.watermark, _heartbeat_seconds(settings))
    sink_manager = SinkManager(outbox, clock, heartbeat_factory, watch.request_snapshot)
    status_provider = StatusProvider(
        settings, watch, outbox, sink_manager, lambda: client.proxy_denied_calls, lambda: reloader.error
    )

    async def apply(changed: Settings) -> None:
        replaced = await sink_manager.reload(changed)  # first, because if it fails, nothing may change
        logs.set_level(changed.log.level)
        changed_watch = watch_settings(changed)
        client.rules, client.container_filter = changed_watch.label_rules, changed_watch.container_filter
        watch.reload(changed_watch)
        status_provider.settings = changed
        if replaced:
            watch.request_snapshot("on_demand")

    reloader = SettingsReloader(settings, load, apply)
    async with outbox:
        try:
            async with http_endpoint(settings, status_provider, clock) as open_control_socket, task_group() as tasks:
                notifying = tasks.create_task(
                    service_manager.run(lambda: _describe_state(watch, outbox, sink_manager.pumps))
                )
                trimming = tasks.create_task(memory_tuning.return_freed_memory(clock))
                if await signals.completes_before_shutdown(lambda: outbox.open(open_control_socket), clock):
                    service_manager.started()  # before containerd is connected, so that the boot does not wait for it
                    sink_manager.start(tasks, settings, sink_instances)
                    watching = tasks.create_task(watch.run())
                    reloading = [
                        tasks.create_task(_reload_on_request(reloader, signals.reload_requested, service_manager))
                    ]
                    if settings.reload_on_change:
                        reloading.append(tasks.create_task(config_file.poll(clock, signals.reload_requested.set)))
                    await signals.wait_for_shutdown()
                    service_manager.stopping()
                    await _cancel(watching, clock)
                    await sink_manager.drain(signals.seconds_left() - CLOSE_SECONDS)
                    for task in reloading:
                        task.cancel()  # only now, because a reload in progress may be replacing a pump
                notifying.cancel()
                trimming.cancel()
        finally:
            await sink_manager.close()
            await client.close()


@contextlib.asynccontextmanager
async def run_watch(settings: Settings, sink: Sink) -> AsyncIterator[ContainerWatch]:
    """Watch and publish to ``sink`` while the block runs, with an outbox in memory.

    Raises:
        FatalError: An error that a retry cannot fix.
    """
    clock = SystemClock()
    client_settings = watch_settings(settings)
    client = _create_client(settings, client_settings)
    outbox = StoredOutbox(None, [_SINK_ID], clock, _limits(settings.outbox, None))
    watch = ContainerWatch(client, outbox, clock, client_settings, boot_id(), publishes=False)
    pump = Pump(_SINK_ID, sink, outbox, clock, request_snapshot=watch.request_snapshot)
    async with outbox:
        try:
            await outbox.open()
            async with task_group() as tasks:
                running = [tasks.create_task(work) for work in (watch.run(), pump.run())]
                yield watch
                for task in running:
                    task.cancel()
        finally:
            await client.close()


def _create_client(settings: Settings, for_watch: WatchSettings) -> ContainerdClient:
    return ContainerdClient(
        settings.containerd.address, for_watch.label_rules, container_filter=for_watch.container_filter
    )


def _describe_state(watch: ContainerWatch, outbox: Outbox, pumps: Iterable[Pump]) -> str:
    """Return the status line for the service manager."""
    if outbox.last_error is not None:
        text = f"waiting for the outbox: {outbox.last_error}"
    elif watch.synced:
        text = "synced"
    else:
        text = f"waiting for containerd: {watch.last_error}" if watch.last_error else "connecting to containerd"
    if watch.second_bridges.count:
        text += "; another whalebridge publishes for this host"
    return "; ".join([text, *(f"sink {pump.name} is failing: {pump.last_error}" for pump in pumps if pump.last_error)])


def _limits(settings: OutboxSettings, state_dir: str | None) -> Limits:
    return Limits(
        max_records=settings.max_records,
        max_bytes=settings.size_limit(state_dir),
        max_age=int(settings.max_age.total_seconds()),
    )


def _heartbeat_seconds(settings: Settings) -> float:
    """Return the seconds between heartbeats; 0 if they are disabled, when no pump uses the value."""
    interval = settings.heartbeat.interval
    return 0.0 if interval is None else interval.total_seconds()


def watch_settings(settings: Settings) -> WatchSettings:
    """Return the settings of the watch."""
    containers = settings.containers
    return WatchSettings(
        host=settings.host,
        namespace_filter=NamespaceFilter(settings.namespaces.include, settings.namespaces.exclude),
        container_filter=ContainerFilter(
            kinds=containers.kinds,
            names=(containers.names.include, containers.names.exclude),
            projects=(containers.projects.include, containers.projects.exclude),
            labels=(containers.labels.include, containers.labels.exclude),
        ),
        label_rules=LabelRules(settings.labels.include, settings.labels.exclude, settings.labels.redact),
        filter_fingerprint=_fingerprint(settings.namespaces, settings.containers, settings.labels),
        selection_fingerprint=_fingerprint(settings.namespaces, settings.containers),
        additional_events=containers.additional_events,
        attributes=settings.attributes,
        keeps_checkpoint=settings.state_dir is not None,
        uses_cri=settings.containerd.cri == "auto",
        snapshot_interval=settings.snapshot.interval.total_seconds(),
    )


def _fingerprint(*sections: SettingsModel) -> str:
    """Return a hash that changes with the settings of these sections."""
    return hashlib.sha256("\n".join(section.model_dump_json() for section in sections).encode()).hexdigest()


def boot_id() -> str:
    """Return the kernel's id of this boot.

    Raises:
        FatalError: The kernel does not report it, so incarnations of different boots could get the same id.
    """
    try:
        return BOOT_ID_PATH.read_text(encoding="ascii").strip()
    except OSError as error:
        raise FatalError(
            f"{BOOT_ID_PATH} cannot be read: {error.strerror}; mount /proc, which is required to detect reboots"
        ) from error


async def _reload_on_request(reloader: SettingsReloader, requested: asyncio.Event, manager: SystemdNotifier) -> None:
    """Reload the settings at each request."""
    while True:
        await requested.wait()
        requested.clear()
        manager.reloading()
        await reloader.reload()
        manager.reloaded()


async def _cancel(task: asyncio.Task[None], clock: Clock) -> None:
    """Cancel a task; cancel it again if its cleanup is blocked by a disk that fails."""
    for _ in range(2):
        task.cancel()
        if await completes_within(WATCH_STOP_SECONDS, clock, asyncio.wait([task])):
            return
