"""Lines of JSON in a flow of bytes. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.fleet.messages import Message

LONGEST = 16 * 1024 * 1024  # bytes of a line; what goes on for longer is no record
_KEPT = 1000  # bytes of one that is too long: enough to see that it is no record


class Lines:
    """Cuts what comes into lines; ``place`` is where they come from."""

    def __init__(self, place: str, *, within_line: bool = False) -> None:
        """Begin at the beginning of a line, or ``within_line``, the rest of which is passed over."""
        self._place = place
        self._passing = within_line
        self._rest = b""
        self._number = 0

    def of(self, chunk: bytes) -> Sequence[Message]:
        """Return the lines that end in ``chunk``."""
        *whole, self._rest = (self._rest + chunk).split(b"\n")
        if whole and self._passing:
            self._passing = False
            del whole[0]
        found = [self._message(line) for line in whole if line.strip()]
        if self._passing:
            self._rest = b""
        elif len(self._rest) > LONGEST:
            found.append(self._message(self._rest[:_KEPT]))
            self._rest, self._passing = b"", True
        return found

    def rest(self) -> Sequence[Message]:
        """Return what stands behind the last line feed, as nothing comes any more."""
        rest, self._rest = self._rest, b""
        return [self._message(rest)] if rest.strip() and not self._passing else []

    def _message(self, line: bytes) -> Message:
        self._number += 1
        return Message(line, self._place, self._number)
