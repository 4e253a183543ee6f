"""Watch one containerd: connect, list, reconcile, follow, audit; write the records to the outbox in order."""

from bridge.watch.settings import WatchSettings
from bridge.watch.snapshot_requests import SnapshotResult
from bridge.watch.watcher import ContainerWatch

__all__ = ["ContainerWatch", "SnapshotResult", "WatchSettings"]
