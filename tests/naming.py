"""Assertions that a text names things (paths, addresses, topics, users, settings, codes), in any wording."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TypeVar

import pytest

_E = TypeVar("_E", bound=BaseException)


def assert_names(text: object, *things: object) -> None:
    """Assert that the text contains each of the things."""
    assert [str(each) for each in things if str(each) not in str(text)] == [], text


@contextlib.contextmanager
def raises_naming(kind: type[_E] | tuple[type[_E], ...], *things: object) -> Iterator[pytest.ExceptionInfo[_E]]:
    """Expect an error whose text names each of the things."""
    with pytest.raises(kind) as caught:
        yield caught
    assert_names(caught.value, *things)
