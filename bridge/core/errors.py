"""What can go wrong, told apart by what is to be done about it.

Foreign errors are translated once, at the edge where they arise, with their cause chained.
"""


class BridgeError(Exception):
    """Something failed; the text says what, where, and what to do."""


class TransientError(BridgeError):
    """Trying again may help: the peer is away, slow or busy."""


class FatalError(BridgeError):
    """Trying again will not help: someone has to change something first."""


class UnreachableError(FatalError):
    """There is no peer to connect to, and waiting will not bring one: its address is another's, or is forbidden."""


class StateError(FatalError):
    """What outlives the process cannot be read or kept: the state directory is not as it has to be."""


class InUseError(StateError):
    """Another process of ours has the state directory."""


class NotFoundError(FatalError):
    """What was asked for does not exist."""


class AmbiguousError(FatalError):
    """What was asked for fits several containers."""


class UnreadableError(BridgeError):
    """The peer is there, but what was asked for cannot be had from it, however often one asks."""


class StreamOverflowError(TransientError):
    """The memory set aside for events that were received but not yet written down is full; they were dropped."""


class RefusedRecordError(BridgeError):
    """A sink's other side refuses records for what they are; trying again will not help, but the others may pass.

    ``positions`` are the (epoch, sequence) of the refused records. Of the rest of the batch nothing is known: it is to
    be published again.
    """

    def __init__(self, reason: str, positions: frozenset[tuple[int, int]]) -> None:
        super().__init__(reason)
        self.positions = positions
