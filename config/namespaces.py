"""Which of containerd's namespaces are watched."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase

DOCKER_NAMESPACE = "moby"


class NamespaceFilter:
    """Decides by globs; pure, and a plain callable to those who ask.

    A namespace is watched if a glob of ``include`` fits and none of ``exclude`` does. Docker's namespace ``moby`` is
    left out as well, because Docker has an API of its own that knows more, unless ``include`` names it literally.
    """

    def __init__(self, include: Iterable[str] = ("*",), exclude: Iterable[str] = ()) -> None:
        self._include = tuple(include)
        self._exclude = tuple(exclude)
        if DOCKER_NAMESPACE not in self._include:
            self._exclude += (DOCKER_NAMESPACE,)

    def __call__(self, namespace: str) -> bool:
        """Tell whether ``namespace`` is watched."""
        return _fits(namespace, self._include) and not _fits(namespace, self._exclude)


def _fits(namespace: str, globs: tuple[str, ...]) -> bool:
    return any(fnmatchcase(namespace, glob) for glob in globs)
