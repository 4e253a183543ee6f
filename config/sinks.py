"""Where records go: the settings of each type of sink, and the URLs that stand for them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator

from config.fields import Section, numbered, setting

SCHEMES = ("stdout",)


class StdoutSettings(Section):
    """Standard output: one JSON document a line."""

    type: Literal["stdout"] = setting("stdout", "The type of this sink.", reason="It is what makes it this one.")


SinkSettings: TypeAlias = StdoutSettings


def from_url(url: str) -> dict[str, Any]:
    """Return the settings that a sink's URL stands for.

    Raises:
        ValueError: It stands for none. The text never repeats more of the URL than its scheme: there may be a
            password in the rest.
    """
    scheme, colon, rest = url.strip().partition(":")
    known = ", ".join(f"{name}:" for name in SCHEMES)
    if not colon:
        raise ValueError(f"a sink is written as a URL, with a colon after its scheme; known schemes: {known}")
    if scheme.lower() not in SCHEMES:
        raise ValueError(f"unknown scheme {scheme[:20]!r}; known schemes: {known}")
    if rest:
        raise ValueError("nothing may follow the colon of stdout:")
    return {"type": "stdout"}


def _sinks(value: object) -> object:
    """Read a list from the environment: URLs parted by blanks (there are commas in some), or numbered from 0."""
    return value.split() if isinstance(value, str) else numbered(value)


def _sink(value: object) -> object:
    return from_url(value) if isinstance(value, str) else value


def _useful(sinks: tuple[SinkSettings, ...]) -> tuple[SinkSettings, ...]:
    if not sinks:
        raise ValueError("name one sink at least, such as stdout:")
    if len(set(sinks)) < len(sinks):
        raise ValueError("the same sink is named twice")
    return sinks


Sinks = Annotated[
    tuple[Annotated[SinkSettings, BeforeValidator(_sink)], ...], BeforeValidator(_sinks), AfterValidator(_useful)
]
