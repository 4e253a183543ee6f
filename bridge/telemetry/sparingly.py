"""Repeated trouble, told at a bounded rate."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Final

from bridge.core.ports import Clock

_NANOSECONDS = 1_000_000_000
_MANY: Final = object()


class Sparingly:
    """Lets the same thing be said once in ``seconds`` at the most, and counts what is left unsaid meanwhile.

    What the same thing is, tells a key. No more than ``keys`` of them are told apart at a time, since some come from
    outside (an unknown topic); beyond that, all new ones are taken for one. For use on one thread.
    """

    def __init__(self, clock: Clock, *, seconds: float = 60.0, keys: int = 100) -> None:
        self._clock = clock
        self._pause = int(seconds * _NANOSECONDS)
        self._keys = keys
        self._said: dict[Hashable, _Said] = {}

    def say(self, log: Callable[..., Any], key: Hashable, event: str, /, **fields: Any) -> bool:
        """Call ``log(event, **fields)`` unless the same was said a short while ago; tell whether it was said.

        Where something was left unsaid since then, its count comes along as the field ``suppressed``.
        """
        unsaid = self.turn(key)
        if unsaid is None:
            return False
        if unsaid:
            fields["suppressed"] = unsaid
        log(event, **fields)
        return True

    def turn(self, key: Hashable) -> int | None:
        """Tell whether ``key`` may be said now: None if not, else how often it was left unsaid since the last time."""
        now = self._clock.now().monotonic
        said = self._said.get(key)
        if said is None:
            key = self._room_for(key, now)
            said = self._said.get(key)
        if said is None or now - said.at >= self._pause:
            self._said[key] = _Said(now)
            return said.unsaid if said else 0
        said.unsaid += 1
        return None

    def _room_for(self, key: Hashable, now: int) -> Hashable:
        """Return ``key``, or the one that stands for all others where too many are in use."""
        if len(self._said) >= self._keys:
            # One with something unsaid is kept: its count would be lost.
            self._said = {
                known: said for known, said in self._said.items() if said.unsaid or now - said.at < self._pause
            }
        return key if len(self._said) < self._keys else _MANY


class _Said:
    """When something was said, and how often it was left unsaid since."""

    __slots__ = ("at", "unsaid")

    def __init__(self, at: int) -> None:
        self.at = at
        self.unsaid = 0
