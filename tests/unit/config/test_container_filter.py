from __future__ import annotations

from typing import Any

import pytest

from config.containers import ContainerFilter

WEB: dict[str, Any] = {
    "kind": "container",
    "name": "shop-web-1",
    "id": "919f59b77021",
    "project": "shop",
    "labels": {"team": "red", "env": "prod", "app.kubernetes.io/name": "web"},
}


@pytest.mark.parametrize(
    ("conditions", "published"),
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
def test_every_condition_has_to_let_a_container_through(conditions: dict[str, Any], published: bool) -> None:
    assert ContainerFilter(**conditions)(**WEB) is published


def test_what_is_not_known_is_empty() -> None:
    bare: dict[str, Any] = {"kind": "container", "name": "919f", "project": ""}
    assert ContainerFilter()(**bare)
    assert ContainerFilter(labels=((), ("team",)))(**bare)
    assert not ContainerFilter(labels=(("*",), ()))(**bare)
    assert not ContainerFilter(projects=(("?*",), ()))(**bare)
