"""Second bridges: others of the same source, noticed by their markers, which every bridge on a containerd receives.

Consumers skip all records that are older than the newest epoch of a source. So if a second bridge was started beside a
bridge, they skip the records of the first one, even after the second one has ended: then the first one must continue in
a newer epoch.
While both run, consumers follow the newer epoch, and a change of epochs would only start a race.
"""

from __future__ import annotations

import hashlib
import re
from typing import NamedTuple

import structlog

from bridge.core.containerd_model import Marker
from bridge.core.ports import Clock
from bridge.core.time import MILLISECOND, SECOND
from bridge.telemetry.rate_limit import RateLimiter

SILENT_MARKERS = 3  # own markers that return without one of the second bridge, which sends them at the same interval
MAX_BRIDGES = 16  # that are tracked, because clients of the proxy can publish markers of any content
MAX_EPOCH_LEAD = 24 * 3600 * SECOND // MILLISECOND  # the same reason: our epoch must not become too large to announce
_ANNOUNCEMENT = re.compile(r"[0-9a-f]{16}([0-9a-f]{16})([0-9a-f]{16})([0-9a-f]{12})")
_log = structlog.get_logger(__name__)


class Overlap(NamedTuple):
    """A time in which second bridges published: ``since`` (wall clock), and their newest epoch."""

    since: int
    newest_epoch: int


class SecondBridges:
    """Announce this bridge in its markers, and track the second bridges, which publish for the same host.

    The nonce of a marker is a random number, followed by the announcement: a hash of the host name, the id of the
    bridge process, and its epoch. Bridges with other host names are other sources. Markers without an announcement are
    those of ``check`` and ``watch``, which publish nothing for consumers, and of older versions. With ``publishes``
    false, nothing is announced or tracked.
    """

    def __init__(self, clock: Clock, host: str, *, publishes: bool = True) -> None:
        self._publishes = publishes
        self._clock = clock
        self._host = host
        self._source = hashlib.sha256(host.encode()).hexdigest()[:16]
        self._bridge = f"{int(clock.random() * 2**64):016x}"
        self._silent_markers: dict[str, int] = {}  # by the id of the second bridge
        self._overlap: Overlap | None = None
        self._rate_limiter = RateLimiter(clock)

    @property
    def count(self) -> int:
        """Return the number of second bridges."""
        return len(self._silent_markers)

    def announcement(self, epoch: int) -> str:
        """Return the second part of the nonce of this bridge's markers."""
        return f"{self._source}{self._bridge}{epoch:012x}" if self._publishes else ""

    def receive(self, marker: Marker) -> None:
        """Process a marker that is not of this connection."""
        match = _ANNOUNCEMENT.fullmatch(marker.nonce)
        if not self._publishes or match is None or match[1] != self._source or match[2] == self._bridge:
            return
        epoch = int(match[3], 16)
        if epoch > self._clock.now().wall // MILLISECOND + MAX_EPOCH_LEAD:
            return
        if match[2] not in self._silent_markers and self.count >= MAX_BRIDGES:
            return
        self._silent_markers[match[2]] = 0
        if self._overlap is None:
            self._overlap = Overlap(self._clock.now().wall, epoch)
        self._overlap = self._overlap._replace(newest_epoch=max(self._overlap.newest_epoch, epoch))
        self._rate_limiter.log(
            _log.warning,
            self._source,
            "second_bridge_detected",
            host=self._host,
            epoch=epoch,
            hint="stop one of the two, or give them different host names (setting host)",
        )

    def restart_silence(self) -> None:
        """Count the silence of all bridges from 0, because a new connection has not received their last markers."""
        self._silent_markers = dict.fromkeys(self._silent_markers, 0)

    def marker_returned(self) -> bool:
        """Record that an own marker has returned; return whether the last second bridge has ended."""
        before = self.count
        self._silent_markers = {
            bridge: count + 1 for bridge, count in self._silent_markers.items() if count + 1 < SILENT_MARKERS
        }
        return before > 0 and not self.count

    def take_overlap(self) -> Overlap | None:
        """Return the overlap after which a new epoch must begin, once; None if there was none."""
        overlap, self._overlap = self._overlap, None
        return overlap
