"""``whalebridge doctor``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from bridge.cli import options
from bridge.cli.errors import FAILED, WRONG_USAGE, CommandError

if TYPE_CHECKING:
    from bridge.cli.check_results import CheckResult


def doctor(
    containerd: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Additional socket that must be usable; may be repeated."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Find containerd sockets on this node and check access.

    Checks access, version, event delivery and namespaces at the well-known paths, including those of k3s, rke2,
    microk8s, k0s and Bottlerocket, and of users' rootless containerds. Changes nothing, but publishes a marker event,
    as run does.

    The status of each line is ok, not_found (no socket at a well-known path), warning or error. Exit status: 0 if a
    containerd can be used and there is no error, else 1.

    \b
    Examples:
      whalebridge doctor
      whalebridge doctor --containerd /host/run/containerd/containerd.sock
      whalebridge doctor --json | jq '.results[] | select(.status == "error")'
    """
    import asyncio

    from bridge.cli import check_results
    from bridge.containerd.socket_probe import socket_path
    from bridge.core.errors import UnreachableError

    try:
        required = [socket_path(address) for address in containerd or ()]
    except UnreachableError as error:
        raise CommandError(str(error), exit_status=WRONG_USAGE) from error
    results, usable = asyncio.run(_check_sockets(required))
    check_results.print_results(results, as_json=as_json, usable=usable)
    if any(result.exit_status for result in results):
        raise CommandError(exit_status=FAILED)


async def _check_sockets(required: Sequence[str]) -> tuple[list[CheckResult], list[str]]:
    """Check all sockets concurrently; return the results, and the sockets that ``run`` can use."""
    import asyncio

    from bridge.cli.check_results import CheckResult
    from bridge.cli.containerd_checks import check_containerd
    from bridge.cli.socket_checks import inspect_socket, known_sockets
    from bridge.core.filters import NamespaceFilter

    known = known_sockets()
    sockets = {
        path: inspect_socket(path, required=path in required, known=known.get(path))
        for path in dict.fromkeys([*required, *known])
    }
    first: dict[tuple[int, int], str] = {}
    for path, (_, identity) in sockets.items():
        if identity is not None:
            first.setdefault(identity, path)
    checks = await asyncio.gather(*(check_containerd(path, NamespaceFilter()) for path in first.values()))
    checked = dict(zip(first.values(), checks, strict=True))
    results: list[CheckResult] = []
    for path, (socket_results, identity) in sockets.items():
        if identity is not None and path not in checked:
            results.append(CheckResult("ok", path, f"the same socket as {first[identity]}"))
            continue
        results += [*socket_results, *checked.get(path, [])]
    usable = [
        path for path, socket_results in checked.items() if not any(result.exit_status for result in socket_results)
    ]
    if not usable:
        hint = "start containerd, or set the path of its socket (--containerd PATH)"
        results.append(CheckResult("error", "containerd", "no usable containerd found", hint, FAILED))
    return results, usable
