from __future__ import annotations

import pytest

from bridge.core import identity
from config import namespaces
from config.namespaces import NamespaceFilter


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
def test_globs_decide_and_moby_is_left_out_unless_named(
    include: list[str], exclude: list[str], watched: list[str], ignored: list[str]
) -> None:
    is_watched = NamespaceFilter(include, exclude)
    assert [name for name in watched + ignored if is_watched(name)] == watched


def test_all_but_moby_is_the_default() -> None:
    is_watched = NamespaceFilter()
    assert is_watched("default")
    assert not is_watched("moby")


def test_docker_namespace_is_the_one_that_the_core_knows() -> None:
    assert namespaces.DOCKER_NAMESPACE == identity.DOCKER_NAMESPACE
