"""The composition root: builds the parts, runs them together, and stops them in the right order.

Stopping: first the watch, which writes down what it has received; then the pumps, which have ``DRAIN_SECONDS`` to
hand it over; then the sinks.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

import sinks.registry
from bridge.clock import SystemClock
from bridge.containerd.client import ContainerdClient
from bridge.core.errors import FatalError
from bridge.core.labels import LabelRules
from bridge.core.model import Metadata
from bridge.outbox.memory import MemoryOutbox
from bridge.pump import Pump
from bridge.tasks import together
from bridge.watch import Watch, WatchSettings
from config.namespaces import NamespaceFilter

if TYPE_CHECKING:
    from bridge.core.ports import Sink
    from config.settings import Settings
    from config.sinks import SinkSettings

DRAIN_SECONDS = 10.0
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_log = structlog.get_logger(__name__)


async def run(settings: Settings) -> None:
    """Watch and publish until SIGTERM or SIGINT.

    Raises:
        FatalError: Something that only a person can change is in the way.
    """
    clock = SystemClock()
    named = {f"{each.type}-{number}": sink for number, (each, sink) in enumerate(_sinks(settings))}
    outbox = MemoryOutbox(named, clock, on_loss=lambda: watch.requests.ask("overflow"))
    source = ContainerdClient(settings.containerd.address, _rules(settings))
    watch = Watch(source, outbox, clock, watch_settings(settings), boot_id())
    pumps = [Pump(name, sink, outbox, clock) for name, sink in named.items()]
    stopping = _on_signals()
    try:
        async with together() as tasks:
            running = [tasks.create_task(pump.run()) for pump in pumps]
            watching = tasks.create_task(watch.run())
            await stopping.wait()
            await _stop(watching)
            await _drain(pumps)
            for task in running:
                task.cancel()
    finally:
        for pump in pumps:
            await pump.close()
        await source.close()


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
        snapshot_interval=settings.snapshot.interval.total_seconds(),
    )


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


def _sinks(settings: Settings) -> list[tuple[SinkSettings, Sink]]:
    return list(zip(settings.sinks, sinks.registry.make_all(settings.sinks), strict=True))


def _on_signals() -> asyncio.Event:
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _note, stopping, signal.Signals(number).name)
    return stopping


def _note(stopping: asyncio.Event, name: str) -> None:
    _log.info("stopping", signal=name)
    stopping.set()


async def _stop(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _drain(pumps: list[Pump]) -> None:
    try:
        async with asyncio.timeout(DRAIN_SECONDS):
            await asyncio.gather(*(pump.drained() for pump in pumps))
    except TimeoutError:
        _log.warning("not_drained", seconds=DRAIN_SECONDS)
