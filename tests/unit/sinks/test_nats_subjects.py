from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.core.events import Record
from sinks.nats.connection import place
from sinks.nats.subjects import MAX_TOKEN, Subjects, collide, covered, read_token, state_key, token

TEXT = st.text(st.characters(exclude_categories=()))  # lone surrogates too
SAFE = re.compile(r"[A-Za-z0-9_=-]+")


def record(host: str = "h", namespace: str = "n", project: str = "p") -> Record:
    return Record(1, 2, "started", "t", host, "e", namespace, f"{namespace}/id", project, b"{}")


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("web-1_A", "web-1_A"),
        ("", "_"),
        ("_", "_"),
        ("a.b", "a=2Eb"),
        ("*", "=2A"),
        (">", "=3E"),
        (" ", "=20"),
        ("\r\n", "=0D=0A"),
        ("=41", "=3D41"),
        ("ö", "=C3=B6"),
        ("容", "=E5=AE=B9"),
        ("\x00", "=00"),
    ],
)
def test_tokens(value: str, written: str) -> None:
    assert token(value) == written


@given(TEXT)
@example("." * 5000)
@example("a" * 197 + "é")
def test_a_token_is_safe_and_bounded(value: str) -> None:
    assert SAFE.fullmatch(token(value))
    assert len(token(value)) <= MAX_TOKEN


@given(TEXT)
def test_a_token_can_be_read(value: str) -> None:
    if len(token(value)) < MAX_TOKEN - 3:
        assert read_token(token(value)) == ("" if value == "_" else value)


@given(st.text(min_size=1), st.text(min_size=1))
def test_different_values_have_different_tokens(one: str, other: str) -> None:
    if one != other:
        assert token(one) != token(other)


@given(st.text(min_size=100, max_size=400), st.text(max_size=3))
def test_what_is_cut_ends_whole_and_is_told_apart_by_its_digest(value: str, more: str) -> None:
    for written in {token(value), token(value + more)}:
        kept, _, digest = written.partition("==")
        assert re.fullmatch(r"(?:=[0-9A-F]{2}|[A-Za-z0-9_-])*", kept)
        assert re.fullmatch(r"[0-9a-f]{16}", digest) or not digest
    if more:
        assert token(value) != token(value + more)


@given(TEXT, TEXT, TEXT)
def test_a_subject_always_fits_its_pattern(host: str, namespace: str, project: str) -> None:
    subjects = Subjects("pre.fix", "{host}.x.{namespace}.{type}.{project}")
    subject = subjects.of(record(host, namespace, project))
    assert covered(subject, [subjects.pattern])
    assert len(subject.split(".")) == 7
    assert len(subject) < 2048


def test_the_usual_subject() -> None:
    subjects = Subjects("whalebridge", "{host}.{namespace}.{type}")
    assert subjects.of(record("node-1.lan", "k8s.io")) == "whalebridge.node-1=2Elan.k8s=2Eio.started"
    assert subjects.of(record(namespace="")) == "whalebridge.h._.started"
    assert subjects.pattern == "whalebridge.*.*.*"


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("a.>", "a.*.*", True),
        ("a.b.>", "a.*.*", True),
        (">", "a.*", True),
        ("a", "a", True),
        ("a.*", "a.*.*", False),
        ("b.>", "a.*.*", False),
        ("a.b.c.d", "a.*.*", False),
        ("a.>", "a", False),
        ("*.b", "a.*", True),
    ],
)
def test_patterns_collide(one: str, other: str, together: bool) -> None:
    assert collide(one, other) is together
    assert collide(other, one) is together


@pytest.mark.parametrize(
    ("pattern", "by", "taken"),
    [
        ("a.*.*", ["a.>"], True),
        ("a.*.*", ["a.*.*"], True),
        ("a.*.*", ["b.>", ">"], True),
        ("a.*.*", ["a.b.>"], False),
        ("a.*.*", ["a.*"], False),
        ("a.*.*", [], False),
        ("a", ["a.>"], False),
        ("$KV.x.>", ["$KV.x.>"], True),
        ("$KV.x.>", ["$KV.x.*"], False),
    ],
)
def test_patterns_cover(pattern: str, by: list[str], taken: bool) -> None:
    assert covered(pattern, by) is taken


def test_keys_of_buckets() -> None:
    assert state_key("node-1", "c79d-1") == "node-1.c79d-1"
    assert state_key("node-1.lan", "", "k8s.io", "a/b c") == "node-1=2Elan._.k8s=2Eio.a=2Fb=20c"
    assert re.fullmatch(r"[-/_=\.a-zA-Z0-9]+", state_key("größe", "*", ">", "\x00"))  # what a bucket allows


@pytest.mark.parametrize(
    ("server", "where", "name"),
    [
        ("n1", "n1:4222", "n1"),
        ("n1:1", "n1:1", "n1"),
        ("10.0.0.1:1", "10.0.0.1:1", "10.0.0.1"),
        ("[::1]:1", "[::1]:1", "::1"),
        ("[::1]", "[::1]:4222", "::1"),
    ],
)
def test_places(server: str, where: str, name: str) -> None:
    assert place(server) == (where, name)
