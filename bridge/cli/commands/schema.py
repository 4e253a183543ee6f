"""``whalebridge schema``: JSON Schemas of the records and of the configuration file."""

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
    """Print the JSON Schema of published records.

    \b
    Example:
      whalebridge schema event > event.schema.json
    """
    from bridge.core.records import json_schema

    write_json(json_schema())


@app.command()
def config() -> None:
    """Print the JSON Schema of the configuration file.

    Editors use the schema to check and complete the file. For the YAML language server, which many editors use, begin
    the file with this line:

    \b
      # yaml-language-server: $schema=config.schema.json

    \b
    Example:
      whalebridge schema config > config.schema.json
    """
    from config.json_schema import json_schema

    write_json(json_schema())
