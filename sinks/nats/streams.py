"""The stream for the records, and the bucket for the current state: created where they are missing, else checked.

What is there already is never changed: it may have been set up like that on purpose.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import structlog

from sinks.nats import configs, subjects
from sinks.nats.failures import AnsweredError

if TYPE_CHECKING:
    from nats.js.api import StreamConfig

    from config.sinks.nats import NatsSettings
    from sinks.nats.link import Link

NOT_FOUND = 10059
NAME_IN_USE = 10058  # with another configuration: somebody else was faster
OVERLAP = 10065
_log = structlog.get_logger(__name__)


class Stream(NamedTuple):
    """What is to be known of a stream.

    ``atomic``: whether it takes batches whole. ``max_message``: bytes of a message, -1 for any. ``expiring``: whether
    a single message can be told to go by itself. ``weaknesses``: what of it works less well than it could.
    """

    name: str
    atomic: bool
    max_message: int
    expiring: bool
    weaknesses: tuple[str, ...] = ()


async def ensure_stream(link: Link, settings: NatsSettings, pattern: str) -> Stream:
    """Return the stream for the subjects of ``pattern``.

    Raises:
        AnsweredError: There is none, or one that is not fit.
        TransientError: The connection failed.
    """
    config = await _ensure(link, settings, configs.stream(settings), create=settings.stream.auto_create)
    if mistakes := list(configs.mistakes(config, pattern)):
        raise AnsweredError(
            f"stream {config.name} at NATS {link.place.server} is not fit for the records: {'; '.join(mistakes)}. "
            f"Change it (nats stream edit {config.name}), or set stream.name to another one"
        )
    return _known(config)._replace(weaknesses=tuple(configs.weaknesses(config, pattern)))


async def ensure_bucket(link: Link, settings: NatsSettings, bucket: str) -> Stream:
    """Return the stream behind the bucket.

    Raises:
        AnsweredError: There is none, or something else is called like it.
        TransientError: The connection failed.
    """
    config = await _ensure(link, settings, configs.bucket(settings, bucket), create=settings.kv_bucket.auto_create)
    if not subjects.covered(f"$KV.{bucket}.>", config.subjects or []):
        raise AnsweredError(
            f"stream {config.name} at NATS {link.place.server} is no key-value bucket: "
            "set kv_bucket.name to another one"
        )
    return _known(config)


async def subjects_in(link: Link, settings: NatsSettings, stream: str, pattern: str) -> list[str]:
    """Return the subjects in a stream that fit ``pattern``."""
    found: list[str] = []
    while True:
        body = {"subjects_filter": pattern, "offset": len(found)}
        answer = await link.request(f"list what is in {stream}", settings.domain, f"STREAM.INFO.{stream}", body)
        page = (answer.get("state") or {}).get("subjects") or {}
        found += page
        if not page or len(found) >= answer.get("total", 0):
            return found


async def _ensure(link: Link, settings: NatsSettings, wanted: StreamConfig, *, create: bool) -> StreamConfig:
    for _ in range(2):
        if found := await _find(link, settings, wanted):
            return found
        if not create:
            raise AnsweredError(
                f"NATS at {link.place.server} has no stream {wanted.name}: create it (docs/nats.md tells how), or set "
                "auto_create to true"
            )
        if created := await _create(link, settings, wanted):
            return created
    raise AnsweredError(f"NATS at {link.place.server}: stream {wanted.name} comes and goes")


async def _find(link: Link, settings: NatsSettings, wanted: StreamConfig) -> StreamConfig | None:
    name = wanted.name or ""
    try:
        return (await link.ask(f"tell of stream {name}", link.jetstream(settings.domain).stream_info(name))).config
    except AnsweredError as error:
        if error.code == NOT_FOUND:
            return None
        raise


async def _create(link: Link, settings: NatsSettings, wanted: StreamConfig) -> StreamConfig | None:
    try:
        info = await link.ask(f"create stream {wanted.name}", link.jetstream(settings.domain).add_stream(wanted))
    except AnsweredError as error:
        if error.code == OVERLAP:
            raise AnsweredError(
                f"NATS at {link.place.server} does not create stream {wanted.name}, because another stream has "
                f"{', '.join(wanted.subjects or [])} or a part of it: set stream.name to that one, or another subject"
            ) from error
        if error.code == NAME_IN_USE:
            return None
        raise
    _log.info("stream_created", stream=wanted.name, server=link.place.server)
    return info.config


def _known(config: StreamConfig) -> Stream:
    limit = config.max_msg_size
    return Stream(
        config.name or "", bool(config.allow_atomic), -1 if limit is None else limit, bool(config.allow_msg_ttl)
    )
