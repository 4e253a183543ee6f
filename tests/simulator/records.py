"""Create many containers through containerd's API, with specs of any size, and labels that are not valid UTF-8."""

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
    """Encode a container as clients of containerd do; labels are bytes, because containerd 1.6 accepts any bytes."""
    entries = (wire.field(2, wire.field(1, key) + wire.field(2, value)) for key, value in labels.items())
    fields = (wire.field(1, id_), *entries, wire.field(3, IMAGE), wire.field(4, wire.field(1, RUNTIME)))
    return b"".join(fields) + wire.spec(spec_bytes)


async def create_containers(
    address: str, namespace: str, ids: Iterable[str], *, labels: Mapping[bytes, bytes] | None = None, spec_bytes: int
) -> None:
    """Create containers without tasks."""
    semaphore = asyncio.Semaphore(_MAX_CONCURRENT)
    async with grpc.aio.insecure_channel(target(address), options=channel_options()) as channel:
        create: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(_CREATE)

        async def create_one(id_: str) -> None:
            async with semaphore:
                request = wire.field(1, encode_container(id_, labels or {}, spec_bytes))
                await create(request, timeout=60, metadata=((NAMESPACE_HEADER, namespace),))

        await asyncio.gather(*map(create_one, ids))
