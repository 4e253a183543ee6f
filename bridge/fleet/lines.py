"""Splits a stream of bytes into lines. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.fleet.messages import Message

LONGEST = 16 * 1024 * 1024  # bytes of a line; a longer line cannot be a record
_KEPT = 1000  # bytes of a line that is too long: enough to report it as invalid


class Lines:
    """Splits chunks into lines; ``location`` is the lines' origin, for error messages."""

    def __init__(self, place: str, *, within_line: bool = False) -> None:
        """Start at the beginning of a line, or ``within_line``, which skips the remainder of this line."""
        self._place = place
        self._passing = within_line
        self._rest = b""
        self._number = 0

    def of(self, chunk: bytes) -> Sequence[Message]:
        """Return the lines that end in ``chunk``."""
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if lines and self._passing:
            self._passing = False
            del lines[0]
        messages = [self._message(line) for line in lines if line.strip()]
        if self._passing:
            self._rest = b""
        elif len(self._rest) > LONGEST:
            messages.append(self._message(self._rest[:_KEPT]))
            self._rest, self._passing = b"", True
        return messages

    def rest(self) -> Sequence[Message]:
        """Return the text after the last line feed, at the end of the stream."""
        rest, self._rest = self._rest, b""
        return [self._message(rest)] if rest.strip() and not self._passing else []

    def _message(self, line: bytes) -> Message:
        self._number += 1
        return Message(line, self._place, self._number)
