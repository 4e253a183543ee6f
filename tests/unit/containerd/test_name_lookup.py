"""Which container a person means."""

from __future__ import annotations

import pytest

from bridge.containerd.name_lookup import resolve
from bridge.core.containerd_model import ContainerKey, Metadata
from bridge.core.errors import AmbiguousError, NotFoundError
from bridge.core.identity import build_metadata
from bridge.core.labels import LabelRules
from tests.golden import Golden

RULES = LabelRules.keep_all()


def record(namespace: str, id_: str, name: str = "") -> Metadata:
    return build_metadata(ContainerKey(namespace, id_), {"nerdctl/name": name} if name else {}, RULES)


RECORDS = [
    record("default", "919f59"),
    record("shop", "919f59"),
    record("shop", "91aaaa", "web"),
    record("shop", "aaaaaa", "db"),
    record("test", "bbbbbb", "db"),
    record("test", "web2", "919f59"),
    record("test", "cc"),
    record("test", "cccc"),
]


@pytest.mark.parametrize(
    ("name_or_id", "key"),
    [
        ("919f59", ("default", "919f59")),  # a display id in full, although there is more of that name
        ("default/919f59", ("default", "919f59")),
        ("shop/919f59", ("shop", "919f59")),
        ("shop/919", ("shop", "919f59")),
        ("web", ("shop", "91aaaa")),  # a name in full comes before the beginning of an id
        ("shop/web", ("shop", "91aaaa")),
        ("test/db", ("test", "bbbbbb")),
        ("bb", ("test", "bbbbbb")),
        ("cc", ("test", "cc")),
        ("ccc", ("test", "cccc")),
    ],
)
def test_name_lookup_returns_single_match(name_or_id: str, key: tuple[str, str]) -> None:
    assert resolve(name_or_id, RECORDS).key == key


@pytest.mark.parametrize(
    ("name_or_id", "candidates"),
    [
        ("db", "shop/aaaaaa (db), test/bbbbbb (db)"),
        ("shop/91", "shop/919f59, shop/91aaaa (web)"),
        ("91", "919f59, shop/919f59, shop/91aaaa (web)"),
    ],
)
def test_name_lookup_raises_when_several_containers_match(name_or_id: str, candidates: str, golden: Golden) -> None:
    with golden.error("containers_found", f"several for {name_or_id!r}", AmbiguousError, repr(name_or_id), candidates):
        resolve(name_or_id, RECORDS)


def test_name_lookup_error_lists_only_first_matches(golden: Golden) -> None:
    with golden.error("containers_found", "very many", AmbiguousError, "30", "x/a0, ", "20 more"):
        resolve("a", [record("x", f"a{number}") for number in range(30)])


@pytest.mark.parametrize("name_or_id", ["", "shop/", "/", "nobody", "nowhere/919f59", "19f59", "shop/shop/web"])
def test_name_lookup_raises_when_no_container_matches(name_or_id: str, golden: Golden) -> None:
    with golden.error("containers_found", f"none for {name_or_id!r}", NotFoundError, repr(name_or_id)):
        resolve(name_or_id, RECORDS)
