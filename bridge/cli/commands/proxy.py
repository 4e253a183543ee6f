"""``whalebridge proxy``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

import os
import re
from typing import Annotated, Literal

import typer

from bridge.cli import options
from bridge.cli.errors import FAILED, CommandError

DEFAULT_CONTAINERD = "/run/containerd/containerd.sock"
DEFAULT_LISTEN = "/run/whalebridge-proxy/containerd.sock"
_MAX_GROUP = 2**32 - 2  # of Linux; the next number stands for none


def proxy(
    containerd: options.Containerd = None,
    listen: Annotated[str, typer.Option(metavar="PATH", help="Socket to listen on.")] = DEFAULT_LISTEN,
    socket_mode: Annotated[
        str, typer.Option(metavar="MODE", help="Socket file mode (octal): 0600, 0660 or 0666.")
    ] = "0660",
    socket_group: Annotated[
        str | None, typer.Option(metavar="GROUP", help="Group of the socket file: a name or a number.")
    ] = None,
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], typer.Option(help="Minimum log level.")
    ] = "info",
    log_format: Annotated[
        Literal["auto", "console", "json"],
        typer.Option(help="console, json, or auto (console on a terminal, otherwise json)."),
    ] = "auto",
) -> None:
    """Serve a restricted containerd socket until SIGTERM or Ctrl-C.

    Access to containerd's socket is equivalent to root on the node. The proxy has this access, and serves a second
    socket that allows only the calls that a bridge needs, without the specs of containers. The bridge, which has
    network access, then needs only the second socket. The proxy reads no configuration file and no environment
    variables. See docs/proxy.md.

    \b
    Examples:
      whalebridge proxy --listen /run/whalebridge-proxy/containerd.sock --socket-group whalebridge
      whalebridge proxy --containerd /run/k3s/containerd/containerd.sock --listen /run/proxy/containerd.sock
      whalebridge run --containerd /run/whalebridge-proxy/containerd.sock
    """
    mode, group = _parse_mode(socket_mode), _parse_group(socket_group)
    import asyncio

    from bridge.containerd.proxy import server
    from bridge.core.errors import BridgeError
    from bridge.telemetry import logs

    writer = logs.configure(log_level, log_format)
    try:
        asyncio.run(server.serve(containerd or DEFAULT_CONTAINERD, os.path.abspath(listen), mode=mode, group=group))
    except BridgeError as error:
        raise CommandError(str(error), exit_status=FAILED) from error
    finally:
        writer.close()


def _parse_mode(text: str) -> int:
    if re.fullmatch("0?[0-7]{3}", text) is None:
        raise typer.BadParameter("not an octal mode; use for example 0660", param_hint="--socket-mode")
    return int(text, 8)


def _parse_group(text: str | None) -> int | None:
    if text is None:
        return None
    if re.fullmatch("[0-9]{1,10}", text) and int(text) <= _MAX_GROUP:
        return int(text)
    import grp

    try:
        return grp.getgrnam(text).gr_gid
    except KeyError:
        raise typer.BadParameter(f"group {text} does not exist", param_hint="--socket-group") from None
