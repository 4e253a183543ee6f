"""``whalebridge list``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from bridge.cli import options, output
from bridge.cli.errors import NOT_CONNECTED, CommandError

if TYPE_CHECKING:
    from bridge.cli.container_queries import ContainerListing
    from config.settings import Settings


@options.shared
def list_(as_json: options.AsJson = False, **given: Unpack[options.ContainerdOptions]) -> None:
    """List running containers.

    On a terminal, ids are shortened and the table fits the width; otherwise each container is one complete line.
    The status is running, paused, or unknown if the container's shim does not respond to containerd.

    \b
    Examples:
      whalebridge list
      whalebridge list --namespace k8s.io
      whalebridge list --json | jq '.[] | .container.name'
    """
    import asyncio

    settings = options.load_settings(**given)
    listing = asyncio.run(_list(settings))
    if as_json:
        import msgspec

        output.write_json([msgspec.to_builtins(each._asdict()) for each in listing.containers])
    else:
        from bridge.cli import container_table

        output.write(container_table.render(listing.containers))
    if listing.failures:
        raise CommandError(*listing.failures, exit_status=NOT_CONNECTED)


async def _list(settings: Settings) -> ContainerListing:
    from bridge.cli.container_queries import list_running, open_client
    from bridge.core.filters import NamespaceFilter

    include, exclude = settings.namespaces.include, settings.namespaces.exclude
    required = [glob for glob in include if not set("*?[") & set(glob)]
    async with open_client(settings) as client:
        listing = await list_running(client, NamespaceFilter(include, exclude), required)
    kinds = settings.containers.kinds
    return listing._replace(containers=[each for each in listing.containers if each.container.kind in kinds])
