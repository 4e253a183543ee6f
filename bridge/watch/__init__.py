"""Watch one containerd: connect, list, reconcile, follow, audit; write the records to the outbox in order."""

from bridge.watch.loop import Watch
from bridge.watch.requests import SnapshotTaken
from bridge.watch.settings import WatchSettings

__all__ = ["SnapshotTaken", "Watch", "WatchSettings"]
