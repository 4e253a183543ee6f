"""Watch one containerd: connect, list, reconcile, follow, audit; write the records to the outbox in order."""

from bridge.watch.loop import ContainerWatch
from bridge.watch.requests import SnapshotResult
from bridge.watch.settings import WatchSettings

__all__ = ["ContainerWatch", "SnapshotResult", "WatchSettings"]
