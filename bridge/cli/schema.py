"""``whalebridge schema``: what programs can rely on, for programs."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

import typer

from bridge.cli.output import write_json

app = typer.Typer(rich_markup_mode=None)


@app.callback()
def schema() -> None:
    """Print a JSON Schema."""


@app.command()
def event() -> None:
    """Print the JSON Schema of the records that whalebridge publishes.

    \b
    Example:
      whalebridge schema event > event.schema.json
    """
    from bridge.core.events import json_schema

    write_json(json_schema())
