"""The error that ends a command, with its exit status and its lines for standard error."""

from __future__ import annotations

from bridge.core.errors import AmbiguousError, BridgeError, NotFoundError, TransientError, UnreachableError

FAILED = 1
WRONG_USAGE = 2
NOT_CONNECTED = 3
INTERRUPTED = 130  # as in shells, for a command ended by Ctrl-C


class CommandError(Exception):
    """Ends a command; each of ``lines`` says what failed, where, and what to do."""

    def __init__(self, *lines: str, exit_status: int = FAILED) -> None:
        super().__init__("; ".join(lines))
        self.lines = lines
        self.exit_status = exit_status

    @classmethod
    def from_error(cls, error: BridgeError) -> CommandError:
        """Return the command error for an error of the bridge."""
        disconnected = isinstance(error, TransientError | UnreachableError)
        return cls(str(error), exit_status=NOT_CONNECTED if disconnected else FAILED)

    @classmethod
    def from_connect_error(cls, error: BridgeError) -> CommandError:
        """Return the command error for an error while connecting; a failed lookup means that containerd responded."""
        lookup_failed = isinstance(error, NotFoundError | AmbiguousError)
        return cls(str(error), exit_status=FAILED if lookup_failed else NOT_CONNECTED)
