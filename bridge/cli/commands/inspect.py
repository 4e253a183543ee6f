"""``whalebridge inspect``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Unpack

import typer

from bridge.cli import options, output

if TYPE_CHECKING:
    from bridge.cli.container_queries import ContainerInfo
    from config.settings import Settings


@options.shared
def inspect(
    name_or_id: Annotated[
        str, typer.Argument(metavar="NAME_OR_ID", help="NAMESPACE/ID, the prefix of an id, or a nerdctl name.")
    ],
    **given: Unpack[options.ContainerdOptions],
) -> None:
    """Print one running container as JSON.

    Identify the container by its id (NAMESPACE/ID, or ID alone in namespace default), by a unique prefix of the id, or
    by its nerdctl name. The JSON is the object "container" of records.

    \b
    Examples:
      whalebridge inspect web-1
      whalebridge inspect shop/919f59b77021
      whalebridge inspect web-1 | jq .labels
    """
    import asyncio

    import msgspec

    settings = options.load_settings(**given)
    output.write_json(msgspec.to_builtins(asyncio.run(_inspect(settings, name_or_id)).container))


async def _inspect(settings: Settings, name_or_id: str) -> ContainerInfo:
    from bridge.cli.container_queries import find, open_client

    async with open_client(settings) as client:
        return await find(client, settings.namespaces, name_or_id)
