"""Errors, classified by the required reaction.

Errors of libraries are translated once, where they arise, with their cause chained.
"""


class BridgeError(Exception):
    """An operation failed; the text says what failed, where, and what to do."""


class TransientError(BridgeError):
    """A retry may succeed: the peer is unavailable, slow or busy."""


class FatalError(BridgeError):
    """A retry cannot succeed until an operator changes something."""


class UnreachableError(FatalError):
    """Waiting will not make the peer reachable: something else uses its address, or access is forbidden."""


class DisconnectedError(FatalError):
    """The peer has gone for good: only another process can reach it again."""


class StateError(FatalError):
    """Persistent state cannot be read or written: the state directory is unusable."""


class InUseError(TransientError):
    """Another whalebridge process uses the state directory; when it ends, the directory is free."""


class NotFoundError(FatalError):
    """The requested object does not exist."""


class AmbiguousError(FatalError):
    """The request matches several containers."""


class UnreadableError(BridgeError):
    """The peer responds but cannot return the requested object; retries do not help."""


class StreamOverflowError(TransientError):
    """The buffer for received events that are not persisted yet is full; its events were dropped."""


class RejectedRecordError(BridgeError):
    """The broker rejects records because of their content; retries do not help, but it may accept the others.

    ``positions`` are the (epoch, sequence) of the rejected records. The state of the other records in the batch is
    unknown; they must be published again.
    """

    def __init__(self, reason: str, positions: frozenset[tuple[int, int]]) -> None:
        super().__init__(reason)
        self.positions = positions
