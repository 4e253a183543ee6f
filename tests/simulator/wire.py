"""Encoders for protobuf's wire format, for fields that the reduced messages of ``bridge`` do not contain."""

from __future__ import annotations

_LENGTH_DELIMITED = 2


def varint(number: int) -> bytes:
    """Encode a non-negative number."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])


def field(number: int, value: bytes | str) -> bytes:
    """Encode a field that holds bytes, text or a message."""
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | _LENGTH_DELIMITED) + varint(len(data)) + data


def any_message(type_url: str, value: bytes) -> bytes:
    """Encode a google.protobuf.Any."""
    return field(1, type_url) + field(2, value)


def spec(size: int) -> bytes:
    """Encode field ``spec`` of a container as JSON of about ``size`` bytes."""
    return field(
        5, any_message("types.containerd.io/opencontainers/runtime-spec/1/Spec", b'{"x":"' + b"y" * size + b'"}')
    )
