"""Which container a person means."""

from __future__ import annotations

import pytest

from bridge.containerd.resolve import resolve
from bridge.core.errors import AmbiguousError, NotFoundError
from bridge.core.identity import describe
from bridge.core.labels import LabelRules
from bridge.core.model import ContainerKey, Metadata

RULES = LabelRules.keep_all()


def record(namespace: str, id_: str, name: str = "") -> Metadata:
    return describe(ContainerKey(namespace, id_), {"nerdctl/name": name} if name else {}, RULES)


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
def test_one_is_meant(name_or_id: str, key: tuple[str, str]) -> None:
    assert resolve(name_or_id, RECORDS).key == key


@pytest.mark.parametrize(
    ("name_or_id", "candidates"),
    [
        ("db", "'db' fits 2 containers: shop/aaaaaa (db), test/bbbbbb (db): "),
        ("shop/91", "'shop/91' fits 2 containers: shop/919f59, shop/91aaaa (web): "),
        ("91", "'91' fits 3 containers: 919f59, shop/919f59, shop/91aaaa (web): "),
    ],
)
def test_several_are_meant(name_or_id: str, candidates: str) -> None:
    with pytest.raises(AmbiguousError) as caught:
        resolve(name_or_id, RECORDS)
    assert str(caught.value) == f"{candidates}give a longer id, or NAMESPACE/ID"


def test_of_very_many_some_are_named() -> None:
    with pytest.raises(AmbiguousError, match=r"fits 30 containers: x/a0, .* and 20 more: "):
        resolve("a", [record("x", f"a{number}") for number in range(30)])


@pytest.mark.parametrize("name_or_id", ["", "shop/", "/", "nobody", "nowhere/919f59", "19f59", "shop/shop/web"])
def test_none_is_meant(name_or_id: str) -> None:
    with pytest.raises(NotFoundError, match="there is no container"):
        resolve(name_or_id, RECORDS)
