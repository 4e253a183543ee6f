"""``whalebridge schema``: schemas of the records, the topics and streams, and the configuration file."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

import typer

from bridge.cli.output import write_json

app = typer.Typer(rich_markup_mode=None)


@app.callback()
def schema() -> None:
    """Print a JSON Schema, or an AsyncAPI document."""


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
def asyncapi() -> None:
    """Print the AsyncAPI 3 document of topics and streams.

    It describes their messages, with keys and headers, for sinks with the encoding json, which is the default.

    \b
    Example:
      whalebridge schema asyncapi > asyncapi.json
    """
    from bridge.cli.asyncapi import asyncapi_document

    write_json(asyncapi_document())


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
