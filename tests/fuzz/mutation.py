"""Mutates valid inputs. Deterministic: the same seed and the same samples yield the same inputs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import TypeAlias

from tests.simulator.wire import varint

Mutate: TypeAlias = Callable[["Mutator", bytes], bytes]
"""Returns a mutated copy of an input."""

MAX_BYTES = 4096  # longer inputs are slow, and find nothing that shorter ones do not
_MUTATIONS = (1, 1, 2, 4)  # of one input
_MAX_LEVELS = 4  # of nested protobuf messages
_WORD = re.compile(rb"[A-Za-z0-9_.+-]+")
_NUMBERS = (0, 1, 2, 127, 128, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1, 253_402_300_800)
_BYTES = (0, 1, 9, 10, 13, 27, 32, 34, 92, 127, 128, 155, 192, 255)


class Mutator:
    """Generates inputs from ``samples``: valid ones, and those that have found something.

    Args:
        seed: Determines all random choices.
        samples: The inputs to mutate.
        tokens: What the parser treats specially.
        mutate: How to mutate an input: ``mutate_bytes``, ``mutate_text`` or ``mutate_protobuf``.
    """

    def __init__(self, seed: int, samples: Sequence[bytes], tokens: Sequence[bytes], mutate: Mutate) -> None:
        self._random = Random(seed)  # noqa: S311 (no secret)
        self._samples = samples
        self._tokens = tokens or (b"",)
        self._mutate = mutate

    def inputs(self) -> Iterator[bytes]:
        """Yield mutated samples without end."""
        while True:
            data = self.choose(self._samples)
            for _ in range(_MUTATIONS[self.below(len(_MUTATIONS))]):
                data = self._mutate(self, data)
            yield data[:MAX_BYTES]

    def below(self, limit: int) -> int:
        """Return a random number from 0 to before ``limit``; faster than ``randrange``."""
        return int(self._random.random() * limit)

    def choose(self, items: Sequence[bytes]) -> bytes:
        """Return one of ``items``."""
        return items[self.below(len(items))]

    def token(self) -> bytes:
        """Return a token."""
        return self.choose(self._tokens)

    def other(self) -> bytes:
        """Return a part of a sample."""
        sample = self.choose(self._samples)
        return sample[self.below(len(sample) + 1) :]


def mutate_bytes(mutator: Mutator, data: bytes) -> bytes:
    """Change a few bytes, or insert, remove, repeat or splice some."""
    below = mutator.below
    at = below(len(data) + 1)
    end = min(len(data), at + 1 + below(8))
    middle, rest = b"", data[at:]
    match below(9):
        case 0 if at < len(data):
            middle, rest = bytes([data[at] ^ 1 << below(8)]), data[at + 1 :]
        case 1:
            middle, rest = bytes([_BYTES[below(len(_BYTES))]]), data[at + 1 :]
        case 2:
            middle = bytes([below(256)])
        case 3:
            rest = data[end:]
        case 4:
            middle = data[at:end]
        case 5:
            rest = b""
        case 6:
            rest = mutator.other()
        case 7:
            middle, rest = mutator.token(), data[end:]
        case _:
            middle = mutator.token()
    return data[:at] + middle + rest


def mutate_text(mutator: Mutator, data: bytes) -> bytes:
    """Replace a word by a token, exchange or repeat lines, or mutate bytes."""
    match mutator.below(5):
        case 0 | 1:
            if words := list(_WORD.finditer(data)):
                start, end = words[mutator.below(len(words))].span()
                return data[:start] + mutator.token() + data[end:]
        case 2:
            lines = data.split(b"\n")
            one, other = mutator.below(len(lines)), mutator.below(len(lines))
            if mutator.below(2):
                lines[one], lines[other] = lines[other], lines[one]
            else:
                lines.insert(one, lines[other])
            return b"\n".join(lines)
    return mutate_bytes(mutator, data)


def mutate_protobuf(mutator: Mutator, data: bytes) -> bytes:
    """Change, remove, repeat or move a field of a protobuf message at any level, with all lengths corrected.

    One in eight inputs is mutated without regard to fields.
    """
    return mutate_bytes(mutator, data) if mutator.below(8) == 0 else _mutate_message(mutator, data, _MAX_LEVELS)


def _mutate_message(mutator: Mutator, data: bytes, levels: int) -> bytes:
    fields = parse_fields(data) if levels else None
    if not fields:
        return mutate_bytes(mutator, data)
    at = mutator.below(len(fields))
    number, value = fields[at]
    match mutator.below(12):
        case 0:
            del fields[at]
        case 1:
            fields.insert(mutator.below(len(fields) + 1), fields[at])
        case 2:
            fields.insert(0, fields.pop(at))
        case 3:
            fields[at] = (mutator.below(12), value)
        case 4:
            fields[at] = (number, _NUMBERS[mutator.below(len(_NUMBERS))])
        case _ if isinstance(value, int):
            fields[at] = (number, _NUMBERS[mutator.below(len(_NUMBERS))] if mutator.below(2) else value ^ 1)
        case 5:
            fields[at] = (number, mutator.token())
        case _:
            fields[at] = (number, _mutate_message(mutator, value, levels - 1))
    return encode_fields(fields)


# --- protobuf's wire format ---

Field: TypeAlias = tuple[int, "int | bytes"]
"""Number and value of a field: a varint, or the bytes of text or of a message."""

_VARINT, _LENGTH_DELIMITED = 0, 2
_FIXED_SIZES = {1: 8, 5: 4}
_MAX_VARINT_BYTES = 10


def parse_fields(data: bytes) -> list[Field] | None:
    """Return the fields of a message in order; None if it is none. Fixed-size numbers become bytes."""
    fields: list[Field] = []
    at = 0
    try:
        while at < len(data):
            tag, at = _parse_varint(data, at)
            number, kind = tag >> 3, tag & 7
            if number == 0:
                return None
            if kind == _VARINT:
                value, at = _parse_varint(data, at)
                fields.append((number, value))
                continue
            size = _FIXED_SIZES.get(kind)
            if kind == _LENGTH_DELIMITED:
                size, at = _parse_varint(data, at)
            if size is None or at + size > len(data):
                return None
            fields.append((number, data[at : at + size]))
            at += size
    except IndexError:
        return None
    return fields


def encode_fields(fields: Sequence[Field]) -> bytes:
    """Encode a message."""
    parts: list[bytes] = []
    for number, value in fields:
        if isinstance(value, int):
            parts += varint(number << 3), varint(value)
        else:
            parts += varint(number << 3 | _LENGTH_DELIMITED), varint(len(value)), value
    return b"".join(parts)


def _parse_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    for size in range(_MAX_VARINT_BYTES):
        byte = data[at + size]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number & (1 << 64) - 1, at + size + 1
        shift += 7
    raise IndexError
