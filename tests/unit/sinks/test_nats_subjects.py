from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bridge.core.records import Record
from sinks.nats.connection import parse_address
from sinks.nats.subjects import (
    MAX_TOKEN_LENGTH,
    SubjectBuilder,
    decode_token,
    encode_token,
    is_subset,
    overlaps,
    state_key,
)

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
def test_subject_token_encodes_special_characters(value: str, written: str) -> None:
    assert encode_token(value) == written


@given(TEXT)
@example("." * 5000)
@example("a" * 197 + "é")
def test_subject_token_is_safe_and_bounded(value: str) -> None:
    assert SAFE.fullmatch(encode_token(value))
    assert len(encode_token(value)) <= MAX_TOKEN_LENGTH


@given(TEXT)
def test_subject_token_can_be_decoded(value: str) -> None:
    if len(encode_token(value)) < MAX_TOKEN_LENGTH - 3:
        assert decode_token(encode_token(value)) == ("" if value == "_" else value)


@given(st.text(min_size=1), st.text(min_size=1))
def test_subject_tokens_of_different_values_differ(one: str, other: str) -> None:
    if one != other:
        assert encode_token(one) != encode_token(other)


@given(st.text(min_size=100, max_size=400), st.text(max_size=3))
def test_truncated_subject_token_ends_with_digest(value: str, more: str) -> None:
    for written in {encode_token(value), encode_token(value + more)}:
        kept, _, digest = written.partition("==")
        assert re.fullmatch(r"(?:=[0-9A-F]{2}|[A-Za-z0-9_-])*", kept)
        assert re.fullmatch(r"[0-9a-f]{16}", digest) or not digest
    if more:
        assert encode_token(value) != encode_token(value + more)


@given(TEXT, TEXT, TEXT)
def test_subject_always_matches_pattern(host: str, namespace: str, project: str) -> None:
    subjects = SubjectBuilder("pre.fix", "{host}.x.{namespace}.{type}.{project}")
    subject = subjects.build(record(host, namespace, project))
    assert is_subset(subject, [subjects.pattern])
    assert len(subject.split(".")) == 7
    assert len(subject) < 2048


def test_default_subject_contains_host_namespace_and_type() -> None:
    subjects = SubjectBuilder("whalebridge", "{host}.{namespace}.{type}")
    assert subjects.build(record("node-1.lan", "k8s.io")) == "whalebridge.node-1=2Elan.k8s=2Eio.started"
    assert subjects.build(record(namespace="")) == "whalebridge.h._.started"
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
def test_collide_detects_overlapping_patterns(one: str, other: str, together: bool) -> None:
    assert overlaps(one, other) is together
    assert overlaps(other, one) is together


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
def test_covered_detects_pattern_included_in_others(pattern: str, by: list[str], taken: bool) -> None:
    assert is_subset(pattern, by) is taken


def test_kv_key_has_only_allowed_characters() -> None:
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
def test_server_address_is_split_into_address_and_name(server: str, where: str, name: str) -> None:
    assert parse_address(server) == (where, name)
