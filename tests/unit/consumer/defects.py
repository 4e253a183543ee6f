"""Defects that tests put into recorded topics: each one breaks a rule of the contract that the records can show."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from random import Random
from typing import Any, NamedTuple

import msgspec

Topic = list[bytes]
Document = dict[str, Any]
Position = tuple[str, str, int, int]
_OWN_POSITION = ("heartbeat", "source_retired")


class Defect(NamedTuple):
    """A damaged topic, and the position and kinds of which a finding must be."""

    topic: Topic
    position: Position
    kinds: tuple[str, ...]


class RecordedTopic:
    """A topic with what its records can show."""

    def __init__(self, topic: Sequence[bytes]) -> None:
        self.topic = list(topic)
        self.documents: list[Document] = [msgspec.json.decode(each) for each in topic]
        self.first: dict[Position, int] = {}  # index of the first copy of each record, except losses
        self.covered: set[Position] = set()  # by losses
        self._named: dict[tuple[str, str, int], int] = {}  # by epoch: the highest sequence that something proves
        self.second_bridge = any((each["snapshot"] or {}).get("reason") == "second_bridge" for each in self.documents)
        for index, document in enumerate(self.documents):
            position = position_of(document)
            self._name(position)
            if document["lost"]:
                epoch = position[:3]
                lost = document["lost"]
                self.covered |= {(*epoch, each) for each in range(lost["first"], lost["last"] + 1)}
            elif document["type"] not in _OWN_POSITION:
                self.first.setdefault(position, index)
                if previous := (document["snapshot"] or {}).get("previous"):
                    self._name((*position[:2], previous["epoch"], previous["sequence"]))
        epochs = {position[:3] for position in self.first}
        self.oldest = {min(each for each in epochs if each[:2] == epoch[:2]) for epoch in epochs}

    def is_provable(self, position: Position) -> bool:
        """Return whether the topic shows that there is a record at a position, even without its copies."""
        host, engine, epoch, sequence = position
        others = [each for each in self.first if each[:3] == (host, engine, epoch) and each != position]
        others += [each for each in self.covered if each[:3] == (host, engine, epoch)]
        begins_before = (host, engine, epoch) not in self.oldest or any(each < position for each in others)
        return (
            position not in self.covered
            and begins_before
            and any(each[:3] == position[:3] and each != position for each in self.first)
            and (any(each > position for each in others) or self.named_by_others(position) >= sequence)
        )

    def edit(self, position: Position, change: Callable[[Document], object]) -> Topic:
        """Return the topic with all copies of a record changed."""
        edited = []
        for data, document in zip(self.topic, self.documents, strict=True):
            if position_of(document) == position and document["type"] not in _OWN_POSITION:
                changed = msgspec.json.decode(data)
                change(changed)
                edited.append(msgspec.json.encode(changed))
            else:
                edited.append(data)
        return edited

    def _name(self, position: Position) -> None:
        self._named[position[:3]] = max(position[3], self._named.get(position[:3], 0))

    def last(self, epoch: tuple[str, str, int]) -> int:
        """Return the highest sequence of an epoch that anything names."""
        return self._named[epoch]

    def named_by_others(self, position: Position) -> int:
        """Return the highest sequence of an epoch that heartbeats and later epochs name."""
        named = [0]
        for document in self.documents:
            host, engine, epoch, sequence = position_of(document)
            if document["type"] == "heartbeat" and (host, engine, epoch) == position[:3]:
                named.append(sequence)
            previous = (document["snapshot"] or {}).get("previous")
            if previous and (host, engine, previous["epoch"]) == position[:3] and (host, engine) == position[:2]:
                named.append(previous["sequence"])
        return max(named)


def position_of(document: Document) -> Position:
    return document["host"], document["engine"]["id"], document["epoch"], document["sequence"]


# --- one function per kind: yields what it makes of a random place, or nothing if there is none ---


def remove(recorded: RecordedTopic, chance: Random) -> Iterator[Defect]:
    """Remove all copies of a record."""
    if places := [each for each in recorded.first if recorded.is_provable(each)]:
        position = chance.choice(places)
        topic = [
            data
            for data, document in zip(recorded.topic, recorded.documents, strict=True)
            if position_of(document) != position or document["type"] in _OWN_POSITION
        ]
        yield Defect(topic, position, ("missing",))


def alter(recorded: RecordedTopic, chance: Random) -> Iterator[Defect]:
    """Repeat a record with another value."""
    position, index = chance.choice(list(recorded.first.items()))
    document = msgspec.json.decode(recorded.topic[index])
    container = document["container"]
    if container is not None and chance.random() < 0.5:
        container["image"] += "x"
    else:
        document["timestamp"] = "2026-01-01T00:00:00Z"
    at = chance.randint(index + 1, len(recorded.topic))
    yield Defect([*recorded.topic[:at], msgspec.json.encode(document), *recorded.topic[at:]], position, ("altered",))


def swap(recorded: RecordedTopic, chance: Random) -> Iterator[Defect]:
    """Exchange two records that follow each other in a source."""
    places = sorted(recorded.first.items(), key=lambda each: each[1])
    pairs = []
    for number, (position, index) in enumerate(places):
        later = next((each for each in places[number + 1 :] if each[0][:2] == position[:2]), None)
        is_plain = later is not None and not recorded.covered & {position, later[0]} and position < later[0]
        if is_plain and later is not None and (later[0][:3] == position[:3] or not recorded.second_bridge):
            pairs.append((position, index, later[1]))
    if pairs:
        position, first, second = chance.choice(pairs)
        topic = list(recorded.topic)
        topic[first], topic[second] = topic[second], topic[first]
        yield Defect(topic, position, ("order",))


def bend_incarnation(recorded: RecordedTopic, chance: Random) -> Iterator[Defect]:
    """Give a record the incarnation of another run."""
    places = [
        position
        for position, index in recorded.first.items()
        if (recorded.documents[index]["container"] or {}).get("pid")
        and recorded.documents[index]["type"] in ("started", "present", "exited", "paused", "unpaused")
    ]
    if places:
        position = chance.choice(places)
        yield Defect(
            recorded.edit(position, lambda document: _bend(document, f"{document['container']['pid'] + 1}")),
            position,
            ("incarnation",),
        )


def bend_cycle(recorded: RecordedTopic, chance: Random) -> Iterator[Defect]:
    """Give the end of a run the incarnation of another run with the same pid."""
    places = []
    certain: set[tuple[str, str, int]] = set()
    if any(document["lost"] or document["type"] == "source_retired" for document in recorded.documents):
        return
    for position, index in sorted(recorded.first.items()):
        document = recorded.documents[index]
        if document["type"] == "snapshot_completed" and not document["snapshot"]["failed"]:
            certain.add(position[:3])
        if document["type"] in ("exited", "paused", "unpaused") and position[:3] in certain:
            places.append(position)
    if places:
        position = chance.choice(places)
        yield Defect(
            recorded.edit(position, lambda document: _bend(document, f"{document['container']['pid']}-77")),
            position,
            ("incarnation",),
        )


def _bend(document: Document, suffix: str) -> None:
    container = document["container"]
    container["incarnation"] = f"{container['incarnation'].rpartition(str(container['pid']))[0]}{suffix}"


def hide_loss(recorded: RecordedTopic, chance: Random) -> Iterator[Defect]:
    """Remove a loss, or let it begin later."""
    losses = {position_of(each): each["lost"] for each in recorded.documents if each["lost"]}
    for position, lost in chance.sample(sorted(losses.items()), len(losses)):
        epoch = position[:3]
        others = {each for each in recorded.first if each[:3] == epoch}
        ranges = [each for at, each in losses.items() if at[:3] == epoch and at != position]
        covered = {(*epoch, each) for one in ranges for each in range(one["first"], one["last"] + 1)}
        hidden = (*epoch, lost["first"])
        provable = any(each > position for each in others) and (epoch not in recorded.oldest or min(others) < hidden)
        if hidden in covered | others or not provable:
            continue
        if lost["first"] < lost["last"] and chance.random() < 0.5:
            topic = recorded.edit(position, lambda each: each["lost"].update(first=each["lost"]["first"] + 1))
        else:
            pairs = zip(recorded.topic, recorded.documents, strict=True)
            topic = [data for data, document in pairs if not (document["lost"] and position_of(document) == position)]
        yield Defect(topic, hidden, ("missing",))
        return


def hide_gap(recorded: RecordedTopic, chance: Random) -> Iterator[Defect]:
    """Remove a record, and number those after it in its epoch again."""
    places = [
        each
        for each in recorded.first
        if recorded.is_provable(each)
        and recorded.named_by_others(each) == recorded.last(each[:3])
        and not any(covered[:3] == each[:3] for covered in recorded.covered)
    ]
    if not places:
        return
    position = chance.choice(places)
    topic = []
    for data, document in zip(recorded.topic, recorded.documents, strict=True):
        at = position_of(document)
        if document["type"] in _OWN_POSITION or at[:3] != position[:3] or at < position:
            topic.append(data)
        elif at > position:
            topic.append(msgspec.json.encode({**msgspec.json.decode(data), "sequence": at[3] - 1}))
    yield Defect(topic, (*position[:3], recorded.last(position[:3])), ("missing",))


def move_epoch(recorded: RecordedTopic, chance: Random) -> Iterator[Defect]:
    """Let an epoch name another record as the last one before it."""
    places = []
    for position, index in recorded.first.items():
        previous = (recorded.documents[index]["snapshot"] or {}).get("previous")
        if previous and (*position[:2], previous["epoch"], previous["sequence"]) in recorded.first:
            places.append((position, previous))
    if not places:
        return
    position, previous = chance.choice(places)
    by = chance.choice([1, -1])
    named = previous["sequence"] + by
    topic = recorded.edit(position, lambda each: each["snapshot"]["previous"].update(sequence=named))
    if by == 1:
        yield Defect(topic, (*position[:2], previous["epoch"], previous["sequence"] + 1), ("missing",))
    else:
        yield Defect(topic, position, ("snapshot",))


def miscount(recorded: RecordedTopic, chance: Random) -> Iterator[Defect]:
    """Change the number of snapshot records that the end of a snapshot states."""
    places = []
    for position, index in recorded.first.items():
        if recorded.documents[index]["type"] == "snapshot_completed":
            snapshot_id = recorded.documents[index]["snapshot"]["id"]
            starts = [
                each
                for each, at in recorded.first.items()
                if each[:3] == position[:3]
                and recorded.documents[at]["type"] == "snapshot_started"
                and recorded.documents[at]["snapshot"]["id"] == snapshot_id
            ]
            span = {(*position[:3], each) for start in starts for each in range(start[3], position[3] + 1)}
            if starts and not span & recorded.covered and span <= recorded.first.keys():
                places.append(position)
    if places:
        position = chance.choice(places)
        count = recorded.documents[recorded.first[position]]["snapshot"]["containers"] + 1
        topic = recorded.edit(position, lambda each: each["snapshot"].update(containers=count))
        yield Defect(topic, position, ("snapshot",))


KINDS = (remove, alter, swap, bend_incarnation, bend_cycle, hide_loss, hide_gap, move_epoch, miscount)
