"""What ends a command early: an exit status, and lines for the person who called it."""

from __future__ import annotations

from bridge.core.errors import AmbiguousError, BridgeError, NotFoundError, TransientError, UnreachableError

FAILED = 1
WRONG_USAGE = 2
NOT_CONNECTED = 3
INTERRUPTED = 130  # as shells say it of a program that Ctrl-C has ended


class CommandError(Exception):
    """A command cannot go on; each of ``lines`` says what failed, where, and what to do."""

    def __init__(self, *lines: str, status: int = FAILED) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines
        self.status = status

    @classmethod
    def of(cls, error: BridgeError) -> CommandError:
        """Return what an error of the bridge means for a command."""
        away = isinstance(error, TransientError | UnreachableError)
        return cls(str(error), status=NOT_CONNECTED if away else FAILED)

    @classmethod
    def to_connect(cls, error: BridgeError) -> CommandError:
        """Return what an error means that comes up before containerd has ever answered: wrong, forbidden, or away."""
        told = isinstance(error, NotFoundError | AmbiguousError)
        return cls(str(error), status=FAILED if told else NOT_CONNECTED)
