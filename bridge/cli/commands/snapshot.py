"""``whalebridge snapshot``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bridge.cli import options, output
from bridge.cli.errors import FAILED, NOT_CONNECTED, WRONG_USAGE, CommandError

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_SECONDS = 45.0  # longer than the bridge waits for the snapshot

StateDir = Annotated[
    str | None,
    typer.Option("--state-dir", metavar="DIR", help="The state_dir of the running bridge. Default: as configured."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a line.")]


def snapshot(config: options.Config = None, state_dir: StateDir = None, as_json: AsJson = False) -> None:
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

    settings = options.load_settings(config=config, state_dir=state_dir and os.path.abspath(state_dir))
    if settings.state_dir is None:
        raise CommandError(
            "--state-dir is required to find the running bridge",
            exit_status=WRONG_USAGE,
        )
    response = _request_snapshot(Path(settings.state_dir))
    if as_json:
        output.write_json(response)
    else:
        count = response["containers"]
        output.write(f"snapshot {response['id']}: {count} container{'' if count == 1 else 's'}")


def _request_snapshot(directory: Path) -> dict[str, Any]:
    """Request a snapshot; return the response of the bridge.

    Raises:
        CommandError: The bridge does not respond, or has taken no snapshot.
    """
    import http.client
    import json

    from bridge.cli.control_client import ControlClient

    control = ControlClient(directory, TIMEOUT_SECONDS)
    try:
        status, body = control.post("/snapshot")
        response = json.loads(body)
    except FileNotFoundError as error:
        if not directory.is_dir():
            raise CommandError(
                f"directory {directory} does not exist; use the state_dir of the running bridge"
            ) from error
        text = f"no whalebridge is running with state_dir {directory}: {control.path.name} does not exist"
        raise CommandError(text, exit_status=NOT_CONNECTED) from error
    except NotADirectoryError as error:
        raise CommandError(f"{directory} is not a directory; use the state_dir of the running bridge") from error
    except ConnectionRefusedError as error:
        text = f"no whalebridge is running with state_dir {directory}: no process listens at {control.path.name}"
        raise CommandError(text, exit_status=NOT_CONNECTED) from error
    except PermissionError as error:
        text = f"{control.path}: permission denied; run as root or as the user of whalebridge"
        raise CommandError(text, exit_status=NOT_CONNECTED) from error
    except TimeoutError as error:
        text = f"{control.path}: no response within {TIMEOUT_SECONDS:g} s; see the log of the bridge"
        raise CommandError(text, exit_status=NOT_CONNECTED) from error
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise CommandError(f"{control.path}: invalid response: {error}", exit_status=NOT_CONNECTED) from error
    if status != http.client.OK:
        disconnected = status == http.client.SERVICE_UNAVAILABLE  # the bridge is not connected to containerd
        raise CommandError(f"{directory}: {response['error']}", exit_status=NOT_CONNECTED if disconnected else FAILED)
    return dict(response)
