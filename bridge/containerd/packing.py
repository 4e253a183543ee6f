"""Many events in one message, from our proxy to our bridge: to receive a message costs far more than the event in it.

A client that can read packed messages says so in the metadata of ``Events.Subscribe``, and the proxy that packs says so
in its answer's. containerd knows nothing of it and ignores the header; other clients of the proxy get what it sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from bridge.containerd.protos.envelopes_pb2 import Envelopes

HEADER = ("whalebridge-envelopes", "packed")
MESSAGE_BYTES = 1024 * 1024  # of envelopes; a single one that is larger travels alone


def is_packed(metadata: Iterable[tuple[str, str | bytes]] | None) -> bool:
    """Tell whether the other side can read packed messages, or sends them."""
    return metadata is not None and any(tuple(each) == HEADER for each in metadata)


def pack(envelopes: Iterable[bytes]) -> Iterator[bytes]:
    """Return as few messages as can hold the envelopes, in their order."""
    held: list[bytes] = []
    size = 0
    for envelope in envelopes:
        if held and size + len(envelope) > MESSAGE_BYTES:
            yield Envelopes(envelopes=held).SerializeToString()
            held, size = [], 0
        held.append(envelope)
        size += len(envelope)
    if held:
        yield Envelopes(envelopes=held).SerializeToString()


def unpack(message: bytes) -> Sequence[bytes]:
    """Return the envelopes of a message.

    Raises:
        DecodeError: It is none of ours.
    """
    return Envelopes.FromString(message).envelopes
