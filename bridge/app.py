"""The composition root: builds the parts, runs them together, and stops them in the right order.

Stopping, all of it within ``STOP_SECONDS``: first the watch, which writes down what it has received; then the pumps,
which hand over what they can; then the sinks; at last the outbox.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections.abc import Callable, Iterable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

import sinks.registry
from bridge import signals
from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.core.errors import FatalError
from bridge.core.labels import LabelRules
from bridge.core.model import Metadata
from bridge.outbox.bounds import Bounds
from bridge.outbox.memory import MemoryOutbox
from bridge.outbox.sqlite import SqliteOutbox
from bridge.pump import PATIENCE, Pump
from bridge.tasks import together
from bridge.telemetry.systemd import ServiceManager
from bridge.watch import Watch, WatchSettings
from config.namespaces import NamespaceFilter
from config.sinks import StdoutSettings

if TYPE_CHECKING:
    from bridge.core.ports import Clock, Outbox
    from config.settings import Settings
    from config.sinks import SinkSettings

STOP_SECONDS = 10.0
WRITE_SECONDS = 1.5  # of those, twice at the most, for what is received but not yet written down
CLOSING_SECONDS = 2.5  # of those, for closing what was opened
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = structlog.get_logger(__name__)


async def run(settings: Settings) -> None:
    """Watch and publish until SIGTERM or SIGINT.

    Raises:
        FatalError: Something that only a person can change is in the way.
    """
    stopping = _on_signals()
    clock = SystemClock()
    boot = boot_id()
    made = list(zip(settings.sinks, sinks.registry.make_all(settings.sinks), strict=True))
    source = ContainerdClient(settings.containerd.address, _rules(settings))
    outbox = await _outbox(settings, clock, on_loss=lambda: watch.requests.ask("overflow"))
    watch = Watch(source, outbox, clock, watch_settings(settings), boot)
    manager = ServiceManager(os.environ, clock)
    pumps = [Pump(each.called, sink, outbox, clock, patience=_patience(each)) for each, sink in made]
    try:
        async with together() as tasks:
            running = [tasks.create_task(pump.run()) for pump in pumps]
            watching = tasks.create_task(watch.run())
            running.append(tasks.create_task(manager.attend(lambda: _described(watch, pumps))))
            manager.ready()  # to take what containerd tells, whenever that comes: no boot has to wait for it
            await stopping.wait()
            manager.stopping()
            await _stop(watching)
            await _drain(pumps, stopping.left() - CLOSING_SECONDS)
            for task in running:
                task.cancel()
    finally:
        await asyncio.gather(*(pump.close() for pump in pumps))
        await source.close()
        await outbox.close()


def _described(watch: Watch, pumps: Iterable[Pump]) -> str:
    """Say in one line what goes on, for whoever asks the service manager."""
    if watch.live:
        text = "live"
    else:
        text = f"waiting for containerd: {watch.failure}" if watch.failure else "connecting to containerd"
    return "; ".join([text, *(f"{pump.name} is not reached: {pump.failure}" for pump in pumps if pump.failure)])


async def _outbox(settings: Settings, clock: Clock, on_loss: Callable[[], None]) -> Outbox:
    names = [sink.called for sink in settings.sinks]
    bounds = settings.outbox
    room = Bounds(
        max_records=bounds.max_records,
        max_bytes=bounds.max_bytes if settings.state_dir else bounds.memory_max_bytes,
        max_age=int(bounds.max_age.total_seconds()),
    )
    if settings.state_dir:
        return await SqliteOutbox.open(Path(settings.state_dir), names, clock, room, on_loss=on_loss)
    return MemoryOutbox(names, clock, room, on_loss=on_loss)


def _patience(settings: SinkSettings) -> float | None:
    """After how long an attempt at a sink is given up: later than the sink itself does, which knows more about it.

    A reader of standard output may take all the time it likes.
    """
    if isinstance(settings, StdoutSettings):
        return None
    timeout: timedelta | None = getattr(settings, "timeout", None)
    return PATIENCE if timeout is None else timeout.total_seconds() + PATIENCE


def watch_settings(settings: Settings) -> WatchSettings:
    """Return what of the settings concerns the watch."""
    sandboxes = settings.containers.sandboxes

    def publishes(metadata: Metadata | None) -> bool:
        return sandboxes or metadata is None or metadata.kind != "sandbox"

    return WatchSettings(
        host=settings.host,
        namespaces=NamespaceFilter(settings.namespaces.include, settings.namespaces.exclude),
        publishes=publishes,
        rules=_rules(settings),
        scope=_scope(settings),
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


class _Stopping:
    """Whether to stop, and how much time is left for it; a second signal changes nothing."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._asked = asyncio.Event()
        self._deadline = 0.0

    async def wait(self) -> None:
        """Wait until somebody asks for it."""
        await self._asked.wait()

    def ask(self, name: str) -> None:
        """Ask for it."""
        if not self._asked.is_set():
            _log.info("stopping", signal=name)
            self._deadline = self._loop.time() + STOP_SECONDS
            self._asked.set()

    def left(self) -> float:
        """Return how many seconds are left."""
        return self._deadline - self._loop.time()


def _on_signals() -> _Stopping:
    stopping = _Stopping()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.ask, signal.Signals(number).name)
    signals.release()
    return stopping


async def _stop(task: asyncio.Task[None]) -> None:
    """Cancel a task; where it waits for a disk that does not work, cancel that as well."""
    for _ in range(2):
        task.cancel()
        done, _ = await asyncio.wait([task], timeout=WRITE_SECONDS)
        if done:
            return


async def _drain(pumps: list[Pump], seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await asyncio.gather(*(pump.drained() for pump in pumps))
    except TimeoutError:
        _log.warning("not_drained", waiting={pump.name: pump.waiting for pump in pumps if pump.waiting})
