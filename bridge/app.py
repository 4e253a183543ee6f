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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
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
from bridge.delivery import Delivery
from bridge.inspection import Inspection, served
from bridge.outbox.bounds import Bounds
from bridge.outbox.memory import MemoryOutbox
from bridge.outbox.sqlite import SqliteOutbox
from bridge.pump import Heart, Pump
from bridge.reload import Reload
from bridge.tasks import bounded, together
from bridge.telemetry import logs
from bridge.telemetry.systemd import ServiceManager
from bridge.watch import Watch, WatchSettings

if TYPE_CHECKING:
    from bridge.core.ports import Clock, Outbox, Sink
    from config.settings import Settings

T = TypeVar("T")

STOP_SECONDS = 10.0
WRITE_SECONDS = 1.5  # of those, twice at the most, for what is received but not yet written down
CLOSING_SECONDS = 2.5  # of those, for closing what was opened
_ONLY = "only"  # what a sink is called that is the only one
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = structlog.get_logger(__name__)


async def run(settings: Settings, load: Callable[[], Settings]) -> None:
    """Watch and publish until SIGTERM or SIGINT; at SIGHUP, go on under the settings that ``load`` reads anew.

    Raises:
        FatalError: Something that only a person can change is in the way.
    """
    wishes = _on_signals()
    clock = SystemClock()
    boot = boot_id()
    made = sinks.registry.make_all(settings.sinks)
    chosen = watch_settings(settings)
    outbox = await _unless_stopped(wishes, lambda: _outbox(settings, clock, lambda: watch.request("overflow")))
    if outbox is None:
        return
    source = ContainerdClient(settings.containerd.address, chosen.rules, scope=chosen.in_scope)
    watch = Watch(source, outbox, clock, chosen, boot)
    heart = Heart(lambda: watch.proof, _heartbeat_seconds(settings))
    delivery = Delivery(outbox, clock, heart)
    inspection = Inspection(settings, watch, outbox, lambda: delivery.pumps)
    manager = ServiceManager(os.environ, clock)

    async def apply(changed: Settings) -> None:
        replaced = await delivery.reload(changed)  # first, as it may refuse, and then nothing is to be changed
        logs.set_level(changed.log.level)
        chosen = watch_settings(changed)
        source.rules, source.scope = chosen.rules, chosen.in_scope
        watch.reload(chosen)
        inspection.settings = changed
        if replaced:
            watch.request("on_demand")

    try:
        async with served(inspection), together() as tasks:
            delivery.start(tasks, settings, made)
            watching = tasks.create_task(watch.run())
            helping = [
                tasks.create_task(manager.attend(lambda: _described(watch, delivery.pumps))),
                tasks.create_task(_reload(Reload(settings, load, apply), wishes.reload, manager)),
            ]
            manager.ready()  # to take what containerd tells, whenever that comes: no boot has to wait for it
            await wishes.stop()
            manager.stopping()
            await _stop(watching)
            await delivery.drain(wishes.left() - CLOSING_SECONDS)
            for task in helping:  # not before: a reload under way may have put a sink's pump aside
                task.cancel()
    finally:
        await delivery.close()
        await source.close()
        await outbox.close()


@contextlib.asynccontextmanager
async def following(settings: Settings, sink: Sink) -> AsyncIterator[Watch]:
    """Have ``sink`` told what happens, for as long as the block runs; nothing outlives it.

    Raises:
        FatalError: Something that only a person can change is in the way.
    """
    clock = SystemClock()
    chosen = watch_settings(settings)
    source = ContainerdClient(settings.containerd.address, chosen.rules, scope=chosen.in_scope)
    outbox = MemoryOutbox([_ONLY], clock, on_loss=lambda: watch.request("overflow"))
    watch = Watch(source, outbox, clock, chosen, boot_id())
    try:
        async with together() as tasks:
            running = [tasks.create_task(work) for work in (watch.run(), Pump(_ONLY, sink, outbox, clock).run())]
            yield watch
            for task in running:
                task.cancel()
    finally:
        await source.close()


def _described(watch: Watch, pumps: Iterable[Pump]) -> str:
    """Say in one line what goes on, for whoever asks the service manager."""
    if watch.live:
        text = "synced"
    else:
        text = f"waiting for containerd: {watch.failure}" if watch.failure else "connecting to containerd"
    return "; ".join([text, *(f"sink {pump.name} is failing: {pump.failure}" for pump in pumps if pump.failure)])


async def _outbox(settings: Settings, clock: Clock, on_loss: Callable[[], None]) -> Outbox:
    names = list(settings.sinks)
    bounds = settings.outbox
    room = Bounds(
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
        namespaces=NamespaceFilter(settings.namespaces.include, settings.namespaces.exclude),
        in_scope=ContainerFilter(
            kinds=containers.kinds,
            names=(containers.names.include, containers.names.exclude),
            projects=(containers.projects.include, containers.projects.exclude),
            labels=(containers.labels.include, containers.labels.exclude),
        ),
        rules=_rules(settings),
        scope=_scope(settings),
        extras=containers.additional_events,
        snapshot_interval=settings.snapshot.interval.total_seconds(),
    )


def _scope(settings: Settings) -> str:
    """Tell one choice of namespaces, containers and labels from another."""
    chosen = (settings.namespaces, settings.containers, settings.labels)
    return hashlib.sha256("\n".join(each.model_dump_json() for each in chosen).encode()).hexdigest()


def boot_id() -> str:
    """Return the kernel's id of this boot.

    Raises:
        FatalError: The kernel does not tell: incarnations could not be told apart across boots.
    """
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError as error:
        raise FatalError(f"{BOOT_ID}: {error.strerror}; whalebridge needs it to tell one boot from the next") from error


def _rules(settings: Settings) -> LabelRules:
    labels = settings.labels
    return LabelRules(include=labels.include, exclude=labels.exclude, redact=labels.redact)


class _Wishes:
    """What signals ask for: to reload, or to stop, which has its time; asking for that twice changes nothing."""

    def __init__(self) -> None:
        self.reload = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._deadline = 0.0

    async def stop(self) -> None:
        """Wait until somebody asks for it."""
        await self._stop.wait()

    def ask_to_stop(self, name: str) -> None:
        """Ask for it."""
        if not self._stop.is_set():
            _log.info("shutdown_started", signal=name)
            self._deadline = self._loop.time() + STOP_SECONDS
            self._stop.set()

    def left(self) -> float:
        """Return how many seconds are left."""
        return self._deadline - self._loop.time()


def _on_signals() -> _Wishes:
    wishes = _Wishes()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, wishes.ask_to_stop, signal.Signals(number).name)
    loop.add_signal_handler(signal.SIGHUP, wishes.reload.set)
    signals.release()
    return wishes


async def _unless_stopped(wishes: _Wishes, call: Callable[[], Awaitable[T]]) -> T | None:
    """Return what a call returns, which may take for as long as a disk is full; None where it is given up to stop."""
    calling, asked = asyncio.ensure_future(bounded(call, None)), asyncio.ensure_future(wishes.stop())
    try:
        await asyncio.wait([calling, asked], return_when=asyncio.FIRST_COMPLETED)
        return calling.result() if calling.done() else None
    finally:
        for task in (calling, asked):
            task.cancel()
        await asyncio.wait([calling, asked])


async def _reload(reload: Reload, wished: asyncio.Event, manager: ServiceManager) -> None:
    """Reload as often as it is wished for."""
    while True:
        await wished.wait()
        wished.clear()
        manager.reloading()
        await reload.now()
        manager.ready()


async def _stop(task: asyncio.Task[None]) -> None:
    """Cancel a task; where it waits for a disk that does not work, cancel that as well."""
    for _ in range(2):
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=WRITE_SECONDS)
        if done:
            return
