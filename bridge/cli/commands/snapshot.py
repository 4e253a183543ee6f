"""``whalebridge snapshot``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge.cli import options, output
from bridge.cli.errors import FAILED, NOT_CONNECTED, WRONG_USAGE, CommandError

if TYPE_CHECKING:
    import socket
    from pathlib import Path

TIMEOUT_SECONDS = 45.0  # longer than the bridge waits for the snapshot
_MAX_RESPONSE_BYTES = 65536


def snapshot(
    config: options.Config = None,
    state_dir: Annotated[
        str | None, typer.Option(metavar="DIR", help="The state_dir of the running bridge. Default: as configured.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a line.")] = False,
) -> None:
    """Request a snapshot from the bridge on this node.

    The bridge publishes a record per running container. The command connects to the control socket in the bridge's
    state_dir, which usually requires root, and returns when the snapshot is persisted; delivery to sinks is
    asynchronous.

    \b
    Examples:
      whalebridge snapshot --state-dir /var/lib/whalebridge
      whalebridge snapshot --json | jq -r .id
    """
    from pathlib import Path

    from bridge.outbox.state_directory import CONTROL_SOCKET

    settings = options.load_settings(config=config, state_dir=state_dir and os.path.abspath(state_dir))
    if settings.state_dir is None:
        raise CommandError("--state-dir is required to find the running bridge", exit_status=WRONG_USAGE)
    response = _request_snapshot(Path(settings.state_dir, CONTROL_SOCKET))
    if as_json:
        output.write_json(response)
    else:
        count = response["containers"]
        output.write(f"snapshot {response['id']}: {count} container{'' if count == 1 else 's'}")


def _request_snapshot(control: Path) -> dict[str, Any]:
    """Request a snapshot at the control socket; return the response of the bridge.

    Raises:
        CommandError: The bridge does not respond, or has taken no snapshot.
    """
    import http.client
    import json

    connection = http.client.HTTPConnection("localhost")
    try:
        connection.sock = connect(control)
        connection.request("POST", "/snapshot")
        response = connection.getresponse()
        status, document = response.status, json.loads(response.read(_MAX_RESPONSE_BYTES))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _describe(control, error) from error
    finally:
        connection.close()
    if status != http.client.OK:
        disconnected = status == http.client.SERVICE_UNAVAILABLE  # the bridge is not connected to containerd
        text = f"{control.parent}: {document['error']}"
        raise CommandError(text, exit_status=NOT_CONNECTED if disconnected else FAILED)
    return dict(document)


def connect(path: Path) -> socket.socket:
    """Connect through the directory's descriptor, because the path may be too long for a socket address."""
    import socket

    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(TIMEOUT_SECONDS)
        connection.connect(f"/proc/self/fd/{directory}/{path.name}")
    except OSError:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection


def _describe(control: Path, error: Exception) -> CommandError:
    directory = control.parent
    match error:
        case FileNotFoundError() if not directory.is_dir():
            return CommandError(f"directory {directory} does not exist; use the state_dir of the running bridge")
        case NotADirectoryError():
            return CommandError(f"{directory} is not a directory; use the state_dir of the running bridge")
        case FileNotFoundError():
            text = f"no whalebridge is running with state_dir {directory}: {control.name} does not exist"
        case ConnectionRefusedError():
            text = f"no whalebridge is running with state_dir {directory}: no process listens at {control.name}"
        case PermissionError():
            text = f"{control}: permission denied; run as root or as the user of whalebridge"
        case TimeoutError():
            text = f"{control}: no response within {TIMEOUT_SECONDS:g} s; see the log of the bridge"
        case _:
            text = f"{control}: invalid response: {error}"
    return CommandError(text, exit_status=NOT_CONNECTED)
