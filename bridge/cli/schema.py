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


@app.command()
def config() -> None:
    """Print the JSON Schema of the configuration file, with which an editor checks and completes it.

    For the YAML language server, which many editors use, the file's first line then is
    "# yaml-language-server: $schema=config.schema.json".

    \b
    Example:
      whalebridge schema config > config.schema.json
    """
    from config.schema import json_schema

    write_json(json_schema())
