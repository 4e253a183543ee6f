"""Digests that the names of images pointed to when containers were created, from containerd's image service.

A digest is certain only from a call that begins after the container was created. What was read before would not do,
even if no event reports a change of the image since then: containerd publishes an event after the change, and the event
of a container's creation may overtake that of an earlier change of its image (docs/performance.md, "Measured once").
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog
from msgspec import Struct, field

from bridge.core.container_metadata import with_image_digest, with_known_digest
from bridge.core.containerd_model import ContainerKey, Image, Metadata
from bridge.core.errors import BridgeError, UnreadableError
from bridge.core.ports import Clock, EngineClient
from bridge.core.time import from_seconds, to_seconds
from bridge.task_groups import task_group

CALL_SECONDS = 1.0  # for one call, which containerd serves with one database read; a slower image service is hung
LISTING_SECONDS = 10.0  # for all images of a listing
RETRY_SECONDS = 300.0  # until the next call on the same connection, after one has failed
_MAX_CALLS = 16  # at a time, for a listing
_log = structlog.get_logger(__name__)


class _Reads(Struct, eq=False):
    """The reads of one image for containers that wait for it: how many have begun, and the result of the last one."""

    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    begun: int = 0
    image: Image | None = None
    waiting: int = 0


class ImageDigests:
    """Find the digests of containers' images; ``known`` returns the known metadata of a container.

    Without the image service, digests are unknown, and nothing else changes: a call that hangs or fails is the last one
    for a while.
    """

    def __init__(self, client: EngineClient, clock: Clock, known: Callable[[ContainerKey], Metadata | None]) -> None:
        self._client = client
        self._clock = clock
        self._known = known
        self._reads: dict[tuple[str, str], _Reads] = {}
        self._failing = False
        self._retry_at = 0

    async def add(self, metadata: Metadata) -> Metadata:
        """Return a container's metadata, which was just fetched, with the digest of its image, if it is certain."""
        if not self._needs_digest(metadata):
            return metadata
        image = await self._read_from_now(metadata.key.namespace, metadata.image)
        return with_image_digest(metadata, image, self._clock.now().wall)

    async def complete(self, containers: dict[ContainerKey, Metadata]) -> None:
        """Add digests to listed containers, with one call for each image of containers whose digest is not known."""
        self._retry_at = 0  # containerd, or a proxy in front of it, may have been replaced
        by_image: dict[tuple[str, str], list[Metadata]] = {}
        for each in containers.values():
            if self._needs_digest(each):
                by_image.setdefault((each.key.namespace, each.image), []).append(each)
        queue = iter(by_image.items())
        deadline = self._clock.now().monotonic + from_seconds(LISTING_SECONDS)

        async def read_images() -> None:
            for (namespace, name), group in queue:
                image = await self._read(namespace, name)
                now = self._clock.now()
                containers.update((each.key, with_image_digest(each, image, now.wall)) for each in group)
                if now.monotonic >= deadline or self._is_suspended():
                    return

        async with task_group() as tasks:
            for _ in range(min(_MAX_CALLS, len(by_image))):
                tasks.create_task(read_images())

    def _needs_digest(self, metadata: Metadata) -> bool:
        if not metadata.image or metadata.created_at is None or not metadata.in_scope:
            return False
        return with_known_digest(metadata, self._known(metadata.key)).image_digest is None

    async def _read_from_now(self, namespace: str, name: str) -> Image | None:
        """Return an image as read by a call that begins after this moment; those who wait for the same one share it."""
        key = (namespace, name)
        reads = self._reads.setdefault(key, _Reads())
        begun_before = reads.begun
        reads.waiting += 1
        try:
            async with reads.lock:
                if reads.begun == begun_before:
                    reads.begun, reads.image = reads.begun + 1, None
                    reads.image = await self._read(namespace, name)
                return reads.image
        finally:
            reads.waiting -= 1
            if not reads.waiting:
                del self._reads[key]

    async def _read(self, namespace: str, name: str) -> Image | None:
        if self._is_suspended():
            return None
        called_at = self._clock.now().monotonic
        try:
            image = await self._client.image(namespace, name, CALL_SECONDS)
        except BridgeError as error:
            is_hung = to_seconds(self._clock.now().monotonic - called_at) >= CALL_SECONDS
            if isinstance(error, UnreadableError) or is_hung:  # otherwise, the connection is about to end
                self._note_failure(error)
            return None
        if self._failing and called_at >= self._retry_at:  # otherwise, another call has failed since this one began
            self._failing = False
            _log.info("image_digests_available")
        return image

    def _is_suspended(self) -> bool:
        return self._failing and self._clock.now().monotonic < self._retry_at

    def _note_failure(self, error: BridgeError) -> None:
        """Do without digests for a while; log the first of several failures."""
        if not self._failing:
            hint = "new containers have no image_digest; see containerd's log, or update the proxy"
            _log.warning("image_digests_unavailable", error=str(error), hint=hint)
        self._failing, self._retry_at = True, self._clock.now().monotonic + from_seconds(RETRY_SECONDS)
