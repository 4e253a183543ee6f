"""The state of all containers of all sources, for programs that read a topic, stream or file (docs/consumers.md).

Importing this module loads neither a broker's library nor those of the bridge; reading does.
"""

# ruff: noqa: PLC0415 (imports of readers are lazy)

from __future__ import annotations

import logging
import os
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, NamedTuple

import msgspec
from msgspec import Struct

from bridge.consumer.projection import Change, Projection, SavedSource, SourceInfo, SourceProjection
from bridge.consumer.record_decoder import Container, DecodedRecord, InvalidMessageError, Source, decode

if TYPE_CHECKING:
    from bridge.consumer.record_reader import Reader, StartPosition
    from config.sinks import SinkSettings

_FORMAT = 1
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)  # brokers interpret earlier times differently
_CLOCK_TOLERANCE = timedelta(minutes=5)  # a broker's clock may differ from a node's by this
_logger = logging.getLogger("bridge.consumer")


class Running(NamedTuple):
    """A container that is running as far as is known; its state is unknown if its source is ``stale``."""

    source: Source
    id: str
    container: Container
    stale: bool


class _SavedState(Struct, frozen=True):
    """The stored state: positions by the target that was read, and all sources."""

    format: int
    positions: dict[str, dict[str, int]]
    sources: list[SavedSource]


class State:
    """What is known from the records so far."""

    def __init__(self) -> None:
        self.positions: dict[str, dict[str, int]] = {}
        """Where ``follow`` continues, by target."""
        self._projection = Projection()

    def apply(self, record: DecodedRecord, data: bytes = b"") -> Change | None:
        """Apply a record and return its change; None for a repeated record, and for a heartbeat.

        With the record's ``data``, repetitions that differ are noticed: see ``SourceInfo.altered``.
        """
        return self._projection.apply(record, data)

    def containers(
        self,
        *,
        project: str | None = None,
        pod: str | None = None,
        host: str | None = None,
        now: datetime | None = None,
    ) -> list[Running]:
        """Return the running containers, of all projects, pods and hosts, or of one; a pod is NAMESPACE/NAME."""
        moment = now or datetime.now(UTC)
        found = []
        for source, projection in self._projection.sources.items():
            if host is not None and source.host != host:
                continue
            stale = bool(projection.is_stale(moment))
            found += [
                Running(source, id_, container, stale)
                for id_, container in projection.running.items()
                if project in (None, container.project) and pod in (None, pod_name(container))
            ]
        return found

    def sources(self, *, now: datetime | None = None) -> list[SourceInfo]:
        """Return what is known of each source."""
        moment = now or datetime.now(UTC)
        return [projection.info(source, moment) for source, projection in self._projection.sources.items()]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Store the state, with the positions, in a file, which is replaced at once.

        Raises:
            OSError: The file cannot be written; the old one is unchanged.
        """
        sources = [each.save(source) for source, each in self._projection.sources.items()]
        document = msgspec.json.encode(_SavedState(_FORMAT, self.positions, sources))
        temporary = f"{os.fspath(path)}.new"
        with open(temporary, "wb") as file:
            file.write(document)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> State:
        """Return the state in a file; an empty one if there is no file.

        Raises:
            OSError: The file cannot be read.
            ValueError: The file was not written by ``save``, or by that of another version.
        """
        state = cls()
        try:
            with open(path, "rb") as file:
                saved = msgspec.json.decode(file.read(), type=_SavedState)
        except FileNotFoundError:
            return state
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"{os.fspath(path)} is not a state that this version can read: {error}") from error
        if saved.format != _FORMAT:
            raise ValueError(f"{os.fspath(path)} has format {saved.format}; this version reads format {_FORMAT}")
        state.positions = saved.positions
        for each in saved.sources:
            state._projection.sources[Source(each.host, each.engine)] = SourceProjection.load(each)
        return state

    def forget(self, source: Source) -> None:
        """Forget a source, which another process reads from now on."""
        self._projection.sources.pop(source, None)

    def start_from(self, entries: list[DecodedRecord]) -> None:
        """Start from the entries of a state topic or bucket."""
        self._projection.start_from(entries)

    @property
    def start_position(self) -> StartPosition:
        """Where to begin reading a target that has no positions.

        A state from a table ends at its oldest watermark. A state that has records of another target says nothing about
        this one.
        """
        if self.positions:
            return "beginning"
        oldest = min((each.watermark for each in self.sources()), default=_EARLIEST)
        return "beginning" if oldest < _EARLIEST + _CLOCK_TOLERANCE else oldest - _CLOCK_TOLERANCE


def pod_name(container: Container) -> str | None:
    """Return NAMESPACE/NAME of a container's pod; None if it has none."""
    return None if container.pod is None else f"{container.pod.namespace}/{container.pod.name}"


def _warn(text: str) -> None:
    _logger.warning("%s", text)  # of the program that uses this library; whalebridge itself passes ``notify``


def follow(
    target: str,
    state: State | None = None,
    *,
    wait: bool = True,
    group: str | None = None,
    config: str | None = None,
    notify: Callable[[str], None] = _warn,
) -> AsyncGenerator[Change, None]:
    """Yield the changes of a topic, stream or file from its beginning, or from where ``state`` ends.

    Each change is applied to ``state`` before it is yielded, so a state that is saved then contains it. A consumer that
    saves the state together with its results gets the effect of exactly once.

    With ``group``, readers share the partitions of a Kafka topic. ``state`` has the sources of those partitions that
    this reader has at the moment, from all of their records; it starts empty, because the topic has it. A change is
    yielded to one reader, and again, to this or another one, if the first was interrupted before it requested the next.

    Args:
        target: A URL as for ``whalebridge tail``, or the id of a configured sink.
        state: The state to update; by default a new one.
        wait: Whether to wait for new records at the end, or stop there.
        group: Id of a consumer group of Kafka.
        config: Path of the configuration file, for a target that is an id.
        notify: Gets a line when reading is interrupted or resumed, and about messages that are not records.

    Raises:
        ValueError: The target cannot be read, or not by a group.
        TransientError: The first attempt failed, or a reader that does not wait lost its connection.
        FatalError: The target does not exist or cannot be read.
    """
    state = State() if state is None else state
    if group is None:
        return _follow(target, state, config, notify, wait=wait)
    if state.positions or state.sources() or not wait:
        raise ValueError("a reader of a group starts with an empty state and waits for new records")
    return _follow_group(target, state, group, config, notify)


async def _follow(
    target: str, state: State, config: str | None, notify: Callable[[str], None], *, wait: bool
) -> AsyncGenerator[Change, None]:
    from bridge.clock import SystemClock
    from bridge.consumer.record_reader import read_records

    reader = _create_reader(target, state.start_position, config, wait=wait)
    # Also before the first batch is processed: a state that is saved then does not end at its watermark.
    reader.position = state.positions.setdefault(target, {})
    async with aclosing(read_records(reader, SystemClock(), notify)) as batches:
        async for batch in batches:
            for each in batch:
                change = state.apply(each.record, each.data)
                if change is not None:
                    yield change
            # Not earlier: until the last change is processed, the batch has to be read again after a restart.
            state.positions[target] = reader.position


async def _follow_group(
    target: str, state: State, group: str, config: str | None, notify: Callable[[str], None]
) -> AsyncGenerator[Change, None]:
    from bridge.clock import SystemClock
    from bridge.consumer import reader_factory
    from bridge.consumer.record_reader import read_records

    clock = SystemClock()
    reader = reader_factory.create_group_reader(target, _configured_sinks(config), clock, group, state.forget)
    async with aclosing(read_records(reader, clock, notify)) as batches:
        async for batch in batches:
            for each in batch:
                if not reader.begin(each):
                    break
                change = state.apply(each.record, each.data)
                if change is not None and reader.is_new(each.message):
                    yield change
                await reader.end(each.message)


async def load_table(target: str, *, config: str | None = None) -> State:
    """Return the state in a state topic (``kafka://HOST:PORT/TOPIC``) or bucket (``nats://HOST:PORT/BUCKET``).

    The target may also be the id of a configured sink with a ``state_topic`` or ``kv_bucket``. ``follow`` continues
    with the records after it.

    Raises:
        ValueError: The target has no such table.
        TransientError: The table cannot be read now.
        FatalError: The table does not exist or cannot be read.
    """
    from bridge.clock import SystemClock
    from bridge.consumer import reader_factory
    from bridge.consumer.record_reader import read

    reader = reader_factory.create_table_reader(target, _configured_sinks(config), SystemClock())
    entries: dict[tuple[str, bytes], bytes] = {}
    async with aclosing(read(reader, SystemClock())) as batches:
        async for batch in batches:
            for message in batch:
                entries[message.location, message.key] = message.data
    state = State()
    state.start_from([each for data in entries.values() if data and (each := _decode_entry(data))])
    return state


def _decode_entry(data: bytes) -> DecodedRecord | None:
    try:
        entry = decode(data)[0]
    except InvalidMessageError as error:
        _warn(f"entry skipped: {error}")
        return None
    if not entry.is_table_entry:
        _warn("entry skipped: it has no snapshot_id; use the state topic, not the topic of the records")
        return None
    return entry


def _create_reader(target: str, start_position: StartPosition, config: str | None, *, wait: bool) -> Reader:
    from bridge.clock import SystemClock
    from bridge.consumer import reader_factory

    settings = reader_factory.resolve(target, _configured_sinks(config))
    if getattr(settings, "mode", None) == "core":  # stores no records
        start_position = "end"
    return reader_factory.create_reader(settings, SystemClock(), start_position=start_position, follow=wait)


def _configured_sinks(config: str | None) -> Callable[[], Mapping[str, SinkSettings]]:
    def load() -> Mapping[str, SinkSettings]:
        from config.settings import load

        return load(path=config).sinks

    return load
