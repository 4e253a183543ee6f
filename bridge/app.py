"""The composition root: builds the parts, runs them together, and stops them in the right order.

Stopping, all of it within ``STOP_SECONDS``: first the watch, which writes down what it has received; then the pumps,
which hand over what they can; then the sinks; at last the outbox.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import structlog

import sinks.registry
from bridge import signals
from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.core.errors import FatalError
from bridge.core.filters import ContainerFilter, NamespaceFilter
from bridge.core.labels import LabelRules
from bridge.outbox.in_memory import MemoryOutbox
from bridge.outbox.limits import Limits
from bridge.outbox.sqlite import SqliteOutbox
from bridge.pump import HeartbeatFactory, Pump
from bridge.settings_reload import SettingsReloader
from bridge.sink_manager import SinkManager
from bridge.status_provider import StatusProvider, http_endpoint
from bridge.task_groups import task_group, with_timeout
from bridge.telemetry import logs
from bridge.telemetry.systemd import ServiceManager
from bridge.watch import ContainerWatch, WatchSettings

if TYPE_CHECKING:
    from bridge.core.ports import Clock, Outbox, Sink
    from config.settings import Settings

T = TypeVar("T")

STOP_SECONDS = 10.0
WATCH_STOP_SECONDS = 1.5  # of those, twice at the most, for what is received but not yet written down
CLOSE_SECONDS = 2.5  # of those, for closing what was opened
_SINK_ID = "only"  # what a sink is called that is the only one
BOOT_ID_PATH = Path("/proc/sys/kernel/random/boot_id")
_log = structlog.get_logger(__name__)


async def run(
    settings: Settings, load: Callable[[], Settings], sink_instances: Mapping[str, Sink] | None = None
) -> None:
    """Watch and publish until SIGTERM or SIGINT; at SIGHUP, go on under the settings that ``load`` reads anew.

    Raises:
        FatalError: Something that only a person can change is in the way.
    """
    wishes = _install_signal_handlers()
    clock = SystemClock()
    boot = boot_id()
    if sink_instances is None:
        sink_instances = sinks.registry.create_sinks(settings.sinks)
    chosen = watch_settings(settings)
    outbox = await _cancel_on_shutdown(
        wishes, lambda: _open_outbox(settings, clock, lambda: watch.request_snapshot("overflow"))
    )
    if outbox is None:
        return
    source = ContainerdClient(settings.containerd.address, chosen.label_rules, container_filter=chosen.container_filter)
    watch = ContainerWatch(source, outbox, clock, chosen, boot)
    heart = HeartbeatFactory(lambda: watch.watermark, _heartbeat_seconds(settings))
    delivery = SinkManager(outbox, clock, heart)
    inspection = StatusProvider(settings, watch, outbox, lambda: delivery.pumps)
    manager = ServiceManager(os.environ, clock)

    async def apply(changed: Settings) -> None:
        replaced = await delivery.reload(changed)  # first, as it may refuse, and then nothing is to be changed
        logs.set_level(changed.log.level)
        chosen = watch_settings(changed)
        source.rules, source.container_filter = chosen.label_rules, chosen.container_filter
        watch.reload(chosen)
        inspection.settings = changed
        if replaced:
            watch.request_snapshot("on_demand")

    try:
        async with http_endpoint(inspection), task_group() as tasks:
            delivery.start(tasks, settings, sink_instances)
            watching = tasks.create_task(watch.run())
            helping = [
                tasks.create_task(manager.run(lambda: _describe_state(watch, delivery.pumps))),
                tasks.create_task(
                    _reload_on_request(SettingsReloader(settings, load, apply), wishes.reload_requested, manager)
                ),
            ]
            manager.ready()  # to take what containerd tells, whenever that comes: no boot has to wait for it
            await wishes.wait_for_shutdown()
            manager.stopping()
            await _cancel(watching)
            await delivery.drain(wishes.seconds_left() - CLOSE_SECONDS)
            for task in helping:  # not before: a reload under way may have put a sink's pump aside
                task.cancel()
    finally:
        await delivery.close()
        await source.close()
        await outbox.close()


@contextlib.asynccontextmanager
async def run_watch(settings: Settings, sink: Sink) -> AsyncIterator[ContainerWatch]:
    """Have ``sink`` told what happens, for as long as the block runs; nothing outlives it.

    Raises:
        FatalError: Something that only a person can change is in the way.
    """
    clock = SystemClock()
    chosen = watch_settings(settings)
    source = ContainerdClient(settings.containerd.address, chosen.label_rules, container_filter=chosen.container_filter)
    outbox = MemoryOutbox([_SINK_ID], clock, on_loss=lambda: watch.request_snapshot("overflow"))
    watch = ContainerWatch(source, outbox, clock, chosen, boot_id())
    try:
        async with task_group() as tasks:
            running = [tasks.create_task(work) for work in (watch.run(), Pump(_SINK_ID, sink, outbox, clock).run())]
            yield watch
            for task in running:
                task.cancel()
    finally:
        await source.close()


def _describe_state(watch: ContainerWatch, pumps: Iterable[Pump]) -> str:
    """Say in one line what goes on, for whoever asks the service manager."""
    if watch.synced:
        text = "synced"
    else:
        text = f"waiting for containerd: {watch.last_error}" if watch.last_error else "connecting to containerd"
    return "; ".join([text, *(f"sink {pump.name} is failing: {pump.last_error}" for pump in pumps if pump.last_error)])


async def _open_outbox(settings: Settings, clock: Clock, on_loss: Callable[[], None]) -> Outbox:
    names = list(settings.sinks)
    bounds = settings.outbox
    room = Limits(
        max_records=bounds.max_records,
        max_bytes=bounds.max_bytes if settings.state_dir else bounds.max_memory_bytes,
        max_age=int(bounds.max_age.total_seconds()),
    )
    if settings.state_dir:
        return await SqliteOutbox.open(Path(settings.state_dir), names, clock, room, on_loss=on_loss)
    return MemoryOutbox(names, clock, room, on_loss=on_loss)


def _heartbeat_seconds(settings: Settings) -> float:
    """Return the seconds from one heartbeat to the next; where there are none, no sink asks for it."""
    interval = settings.heartbeat.interval
    return 0.0 if interval is None else interval.total_seconds()


def watch_settings(settings: Settings) -> WatchSettings:
    """Return what of the settings concerns the watch."""
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
        label_rules=_label_rules(settings),
        filter_fingerprint=_filter_fingerprint(settings),
        additional_events=containers.additional_events,
        snapshot_interval=settings.snapshot.interval.total_seconds(),
    )


def _filter_fingerprint(settings: Settings) -> str:
    """Tell one choice of namespaces, containers and labels from another."""
    chosen = (settings.namespaces, settings.containers, settings.labels)
    return hashlib.sha256("\n".join(each.model_dump_json() for each in chosen).encode()).hexdigest()


def boot_id() -> str:
    """Return the kernel's id of this boot.

    Raises:
        FatalError: The kernel does not tell: incarnations could not be told apart across boots.
    """
    try:
        return BOOT_ID_PATH.read_text(encoding="ascii").strip()
    except OSError as error:
        raise FatalError(
            f"{BOOT_ID_PATH}: {error.strerror}; whalebridge needs it to tell one boot from the next"
        ) from error


def _label_rules(settings: Settings) -> LabelRules:
    labels = settings.labels
    return LabelRules(include=labels.include, exclude=labels.exclude, redact=labels.redact)


class _ShutdownSignals:
    """What signals ask for: to reload, or to stop, which has its time; asking for that twice changes nothing."""

    def __init__(self) -> None:
        self.reload_requested = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._shutdown_requested = asyncio.Event()
        self._deadline = 0.0

    async def wait_for_shutdown(self) -> None:
        """Wait until somebody asks for it."""
        await self._shutdown_requested.wait()

    def request_shutdown(self, signal_name: str) -> None:
        """Ask for it."""
        if not self._shutdown_requested.is_set():
            _log.info("shutdown_started", signal=signal_name)
            self._deadline = self._loop.time() + STOP_SECONDS
            self._shutdown_requested.set()

    def seconds_left(self) -> float:
        """Return how many seconds are left."""
        return self._deadline - self._loop.time()


def _install_signal_handlers() -> _ShutdownSignals:
    wishes = _ShutdownSignals()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, wishes.request_shutdown, signal.Signals(number).name)
    loop.add_signal_handler(signal.SIGHUP, wishes.reload_requested.set)
    signals.unblock()
    return wishes


async def _cancel_on_shutdown(shutdown: _ShutdownSignals, call: Callable[[], Awaitable[T]]) -> T | None:
    """Return what a call returns, which may take for as long as a disk is full; None where it is given up to stop."""
    calling, asked = (
        asyncio.ensure_future(with_timeout(call, None)),
        asyncio.ensure_future(shutdown.wait_for_shutdown()),
    )
    try:
        await asyncio.wait([calling, asked], return_when=asyncio.FIRST_COMPLETED)
        return calling.result() if calling.done() else None
    finally:
        for task in (calling, asked):
            task.cancel()
        await asyncio.wait([calling, asked])


async def _reload_on_request(reloader: SettingsReloader, requested: asyncio.Event, manager: ServiceManager) -> None:
    """Reload as often as it is wished for."""
    while True:
        await requested.wait()
        requested.clear()
        manager.reloading()
        await reloader.reload()
        manager.ready()


async def _cancel(task: asyncio.Task[None]) -> None:
    """Cancel a task; where it waits for a disk that does not work, cancel that as well."""
    for _ in range(2):
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=WATCH_STOP_SECONDS)
        if done:
            return
