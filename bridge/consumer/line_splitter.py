"""Splits a stream of bytes into lines. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.consumer.messages import Message

MAX_LINE_BYTES = 16 * 1024 * 1024  # bytes of a line; a longer line cannot be a record
_TRUNCATED_BYTES = 1000  # bytes of a line that is too long: enough to report it as invalid


class LineSplitter:
    """Splits chunks into lines; ``location`` is the lines' origin, for error messages."""

    def __init__(self, location: str, *, within_line: bool = False) -> None:
        """Start at the beginning of a line, or ``within_line``, which skips the remainder of this line."""
        self._location = location
        self._skipping = within_line
        self._remainder = b""
        self._number = 0

    def split(self, chunk: bytes) -> Sequence[Message]:
        """Return the lines that end in ``chunk``."""
        *lines, self._remainder = (self._remainder + chunk).split(b"\n")
        if lines and self._skipping:
            self._skipping = False
            del lines[0]
        messages = [self._message(line) for line in lines if line.strip()]
        if self._skipping:
            self._remainder = b""
        elif len(self._remainder) > MAX_LINE_BYTES:
            messages.append(self._message(self._remainder[:_TRUNCATED_BYTES]))
            self._remainder, self._skipping = b"", True
        return messages

    def finish(self) -> Sequence[Message]:
        """Return the text after the last line feed, at the end of the stream."""
        rest, self._remainder = self._remainder, b""
        return [self._message(rest)] if rest.strip() and not self._skipping else []

    def _message(self, line: bytes) -> Message:
        self._number += 1
        return Message(line, self._location, self._number)
