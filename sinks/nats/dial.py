"""Connects to a server: one of the settings in random order, then one that servers have announced."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from bridge.core.errors import TransientError
from sinks.nats.link import Link, Place, place

if TYPE_CHECKING:
    from config.sinks.nats import NatsSettings


class Dialer:
    """Connects to the first usable server; remembers the servers of the cluster that servers announce."""

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self._configured = [place(server) for server in settings.servers]
        self._discovered: list[Place] = []

    async def connect(self) -> Link:
        """Return a new connection.

        Raises:
            TransientError: No server is usable; the message has the reason for each.
        """
        reasons: dict[str, None] = {}
        for each in self._order():
            try:
                return await Link.open(self._settings, each)
            except TransientError as error:
                reasons[str(error)] = None
        raise TransientError("; ".join(reasons))

    def learn(self, link: Link) -> None:
        """Remember the servers that this connection's server has announced."""
        self._discovered = link.discovered() or self._discovered

    def _order(self) -> list[Place]:
        known = {each.server for each in self._configured}
        others = [each for each in self._discovered if each.server not in known]
        # Random order, so that bridges spread over the cluster.
        return [*random.sample(self._configured, len(self._configured)), *random.sample(others, len(others))]
