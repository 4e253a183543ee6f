"""Batching of events from the proxy to the bridge: receiving a message costs far more than an event in it.

A client that supports batches sends a header in the metadata of ``Events.Subscribe``, and a proxy that batches sends
the same header back. containerd ignores the header; clients of the proxy that do not send it get single events.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bridge.containerd.protos.envelopes_pb2 import Envelopes

HEADER = ("whalebridge-envelopes", "packed")
MAX_MESSAGE_BYTES = 1024 * 1024  # of envelopes; a larger envelope is sent in its own message


def supports_batches(metadata: Iterable[tuple[str, str | bytes]] | None) -> bool:
    """Return whether the peer can read batches, or sends them."""
    return metadata is not None and any(tuple(item) == HEADER for item in metadata)


def batch(envelopes: Iterable[bytes]) -> Iterator[bytes]:
    """Yield messages that contain the envelopes in order, as few as possible."""
    pending: list[bytes] = []
    size = 0
    for envelope in envelopes:
        if pending and size + len(envelope) > MAX_MESSAGE_BYTES:
            yield Envelopes(envelopes=pending).SerializeToString()
            pending, size = [], 0
        pending.append(envelope)
        size += len(envelope)
    if pending:
        yield Envelopes(envelopes=pending).SerializeToString()


def unbatch(message: bytes) -> Sequence[bytes]:
    """Return the envelopes of a message.

    Raises:
        DecodeError: The message is not a batch.
    """
    return Envelopes.FromString(message).envelopes
