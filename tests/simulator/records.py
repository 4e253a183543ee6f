"""Makes records on a containerd by its API: thousands quickly, with specs as large as one likes, and odd labels."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping

import grpc

from bridge.containerd.methods import NAMESPACE_HEADER, channel_options, target
from tests.simulator import wire
from tests.simulator.state import IMAGE, RUNTIME

_CREATE = "/containerd.services.containers.v1.Containers/Create"
_MAX_CONCURRENT = 32


def encode_container(id_: str, labels: Mapping[bytes, bytes], spec_bytes: int) -> bytes:
    """Encode a record as a client of containerd does; labels are bytes as containerd 1.6 takes any."""
    entries = (wire.field(2, wire.field(1, key) + wire.field(2, value)) for key, value in labels.items())
    fields = (wire.field(1, id_), *entries, wire.field(3, IMAGE), wire.field(4, wire.field(1, RUNTIME)))
    return b"".join(fields) + wire.spec(spec_bytes)


async def create_containers(
    address: str, namespace: str, ids: Iterable[str], *, labels: Mapping[bytes, bytes] | None = None, spec_bytes: int
) -> None:
    """Make records without tasks."""
    slots = asyncio.Semaphore(_MAX_CONCURRENT)
    async with grpc.aio.insecure_channel(target(address), options=channel_options()) as channel:
        create: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_CREATE)

        async def one(id_: str) -> None:
            async with slots:
                asked = wire.field(1, encode_container(id_, labels or {}, spec_bytes))
                await create(asked, timeout=60, metadata=((NAMESPACE_HEADER, namespace),))

        await asyncio.gather(*map(one, ids))
