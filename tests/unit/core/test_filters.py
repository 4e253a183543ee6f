from __future__ import annotations

from typing import Any

import pytest

from bridge.core.filters import ContainerFilter, NamespaceFilter

WEB: dict[str, Any] = {
    "kind": "container",
    "name": "shop-web-1",
    "id": "919f59b77021",
    "project": "shop",
    "labels": {"team": "red", "env": "prod", "app.kubernetes.io/name": "web"},
}


@pytest.mark.parametrize(
    ("filters", "published"),
    [
        ({}, True),
        ({"kinds": ["sandbox"]}, False),
        ({"kinds": ["sandbox", "container"]}, True),
        ({"kinds": []}, False),
        ({"names": (["shop-*"], [])}, True),
        ({"names": (["919f*"], [])}, True),
        ({"names": (["Shop-*"], [])}, False),
        ({"names": (["shop"], [])}, False),
        ({"names": (["*"], ["*-web-*"])}, False),
        ({"names": (["shop-*"], ["919f59b77021"])}, False),
        ({"names": ([], [])}, False),
        ({"projects": (["s?op"], [])}, True),
        ({"projects": (["other"], [])}, False),
        ({"projects": (["*"], ["shop"])}, False),
        ({"labels": (["team"], [])}, True),
        ({"labels": (["team=red"], [])}, True),
        ({"labels": (["team=r*"], [])}, True),
        ({"labels": (["team=blue"], [])}, False),
        ({"labels": (["team=blue", "env"], [])}, True),
        ({"labels": (["app.kubernetes.io/*=web"], [])}, True),
        ({"labels": (["nothing"], [])}, False),
        ({"labels": (["team="], [])}, False),
        ({"labels": ([], ["env=prod"])}, False),
        ({"labels": ([], ["env=test"])}, True),
        ({"labels": (["team"], ["team"])}, False),
        ({"names": (["shop-*"], []), "projects": (["other"], [])}, False),
    ],
)
def test_container_matches_when_all_filters_match(filters: dict[str, Any], published: bool) -> None:
    assert ContainerFilter(**filters)(**WEB) is published


def test_unknown_container_properties_are_empty() -> None:
    bare: dict[str, Any] = {"kind": "container", "name": "919f", "project": ""}
    assert ContainerFilter()(**bare)
    assert ContainerFilter(labels=((), ("team",)))(**bare)
    assert not ContainerFilter(labels=(("*",), ()))(**bare)
    assert not ContainerFilter(projects=(("?*",), ()))(**bare)


@pytest.mark.parametrize(
    ("include", "exclude", "watched", "ignored"),
    [
        (["*"], [], ["default", "k8s.io", "shop.eu-1"], ["moby"]),
        (["shop*", "default"], [], ["shop", "shop.eu", "default"], ["k8s.io", "my-shop", "moby", "Shop"]),
        (["*"], ["test*", "k8s.io"], ["default", "contest"], ["test", "test.1", "k8s.io", "moby"]),
        (["moby"], [], ["moby"], ["default"]),
        (["*", "moby"], ["test"], ["default", "moby"], ["test"]),
        (["m*", "mob[y]"], [], ["mine"], ["moby"]),
        (["moby"], ["moby"], [], ["moby"]),
        (["?"], [], ["a"], ["", "ab"]),
        ([], [], [], ["default", "moby"]),
    ],
)
def test_namespace_matches_globs_and_moby_only_when_named(
    include: list[str], exclude: list[str], watched: list[str], ignored: list[str]
) -> None:
    is_watched = NamespaceFilter(include, exclude)
    assert [name for name in watched + ignored if is_watched(name)] == watched


def test_all_namespaces_except_moby_match_by_default() -> None:
    is_watched = NamespaceFilter()
    assert is_watched("default")
    assert not is_watched("moby")
