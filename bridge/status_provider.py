"""Provides the status of the running bridge, for the HTTP endpoint."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bridge.core.container_state import Transition
from bridge.core.ports import Outbox
from bridge.delivery.sink_manager import SinkManager
from bridge.telemetry.status import Status
from bridge.watch import ContainerWatch

if TYPE_CHECKING:
    from config.settings import Settings


class StatusProvider:
    """Implements ``bridge.telemetry.status.BridgeInspector``.

    ``settings`` may be replaced at any time; ``proxy_denied_calls`` is called each time.
    """

    def __init__(
        self,
        settings: Settings,
        watch: ContainerWatch,
        outbox: Outbox,
        sink_manager: SinkManager,
        proxy_denied_calls: Callable[[], int | None],
    ) -> None:
        self.settings = settings
        self._watch = watch
        self._outbox = outbox
        self._sink_manager = sink_manager
        self._proxy_denied_calls = proxy_denied_calls

    def status(self) -> Status:
        """Return the current status."""
        watch, settings = self._watch, self.settings
        paused_counts = Counter(watch.paused_flags())
        return Status(
            host=settings.host,
            engine=watch.engine,
            include=settings.namespaces.include,
            exclude=settings.namespaces.exclude,
            synced=watch.synced,
            containerd_error=watch.last_error,
            second_bridges=watch.second_bridges.count,
            excluded_namespaces=watch.excluded_namespaces,
            watermark_age=watch.watermark_age,
            max_watermark_age=watch.max_watermark_age,
            outbox_error=self._outbox.last_error,
            outbox_max_bytes=settings.outbox.size_limit(settings.state_dir),
            sinks=[pump.status() for pump in self._sink_manager.pumps],
            running=paused_counts[False],
            paused=paused_counts[True],
            counters=watch.counters,
            ignored_events=watch.event_counts,
            proxy_denied_calls=self._proxy_denied_calls(),
        )

    def running_containers(self) -> Sequence[Transition]:
        """Return a snapshot record for each running container in scope."""
        return self._watch.running_containers()

    async def snapshot(self) -> tuple[str, int]:
        """Request a snapshot and wait until it is complete; return its id and the number of its containers."""
        return await self._watch.take_snapshot()
