"""Test which container a name or id selects."""

from __future__ import annotations

import pytest

from bridge.containerd.container_lookup import resolve
from bridge.core.container_metadata import build_metadata
from bridge.core.containerd_model import ContainerKey, Metadata
from bridge.core.errors import AmbiguousError, NotFoundError
from bridge.core.label_rules import LabelRules
from tests.golden import Golden

RULES = LabelRules.keep_all()


def metadata(namespace: str, id_: str, name: str = "") -> Metadata:
    return build_metadata(ContainerKey(namespace, id_), {"nerdctl/name": name} if name else {}, RULES)


CONTAINERS = [
    metadata("default", "919f59"),
    metadata("shop", "919f59"),
    metadata("shop", "91aaaa", "web"),
    metadata("shop", "aaaaaa", "db"),
    metadata("test", "bbbbbb", "db"),
    metadata("test", "web2", "919f59"),
    metadata("test", "cc"),
    metadata("test", "cccc"),
]


@pytest.mark.parametrize(
    ("name_or_id", "key"),
    [
        ("919f59", ("default", "919f59")),  # a full display id, although other containers have the same id or name
        ("default/919f59", ("default", "919f59")),
        ("shop/919f59", ("shop", "919f59")),
        ("shop/919", ("shop", "919f59")),
        ("web", ("shop", "91aaaa")),  # a full name takes precedence over an id prefix
        ("shop/web", ("shop", "91aaaa")),
        ("test/db", ("test", "bbbbbb")),
        ("bb", ("test", "bbbbbb")),
        ("cc", ("test", "cc")),
        ("ccc", ("test", "cccc")),
    ],
)
def test_name_lookup_returns_single_match(name_or_id: str, key: tuple[str, str]) -> None:
    assert resolve(name_or_id, CONTAINERS).key == key


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
        resolve(name_or_id, CONTAINERS)


def test_name_lookup_error_lists_only_first_matches(golden: Golden) -> None:
    with golden.error("containers_found", "thirty matches", AmbiguousError, "30", "x/a0, ", "20 more"):
        resolve("a", [metadata("x", f"a{number}") for number in range(30)])


@pytest.mark.parametrize("name_or_id", ["", "shop/", "/", "missing", "nowhere/919f59", "19f59", "shop/shop/web"])
def test_name_lookup_raises_when_no_container_matches(name_or_id: str, golden: Golden) -> None:
    with golden.error("containers_found", f"none for {name_or_id!r}", NotFoundError, repr(name_or_id)):
        resolve(name_or_id, CONTAINERS)
