"""``whalebridge run``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

import os
from typing import Annotated

import typer

from bridge.cli import options
from bridge.cli.failure import CommandError

Sinks = Annotated[
    list[str] | None,
    typer.Option(
        "--sink",
        metavar="URL",
        help="Where records go; may be repeated: stdout: (the default), file:PATH, kafka://HOST:PORT/TOPIC, "
        "nats://HOST:PORT/SUBJECT.PREFIX; with TLS kafkas:// and tls://.",
    ),
]
StateDir = Annotated[
    str | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        help="Directory of whalebridge's own for what must outlive the process, records on their way among it. "
        "Default: none, they are in memory.",
    ),
]
Interval = Annotated[
    str | None,
    typer.Option(
        "--snapshot-interval",
        metavar="DURATION",
        help="How long after one snapshot the next is taken at the latest: 90s, 15m, 6h, 1d. Default: 6h.",
    ),
]
LogLevel = Annotated[
    str | None, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error. Default: info.")
]
LogFormat = Annotated[
    str | None,
    typer.Option(
        "--log-format",
        metavar="FORMAT",
        help="console, json, or auto: console on a terminal, json elsewhere. Default: auto.",
    ),
]


def run(
    containerd: options.Containerd = None,
    namespace: options.Include = None,
    exclude_namespace: options.Exclude = None,
    sink: Sinks = None,
    state_dir: StateDir = None,
    snapshot_interval: Interval = None,
    log_level: LogLevel = None,
    log_format: LogFormat = None,
) -> None:
    """Publish what happens to containers, until SIGTERM or Ctrl-C.

    Without a sink, records go to standard output, one JSON document a line; log lines go to standard error. A
    containerd that is not there yet is waited for. Each option can be set in the environment as well:
    WHALEBRIDGE_LOG__LEVEL=debug.

    \b
    Examples:
      whalebridge run
      whalebridge run --containerd /run/k3s/containerd/containerd.sock --namespace k8s.io
      whalebridge run --sink kafka://localhost:9092/containers --state-dir /var/lib/whalebridge
      whalebridge run --exclude-namespace 'test-*' --log-level warning | jq .type
    """
    settings = options.settings(
        containerd=containerd,
        include=namespace,
        exclude=exclude_namespace,
        sinks=sink,
        state_dir=state_dir and os.path.abspath(state_dir),
        snapshot={"interval": snapshot_interval},
        log={"level": log_level, "format": log_format},
    )
    import asyncio

    from bridge import app
    from bridge.core.errors import BridgeError
    from bridge.telemetry import logs

    writer = logs.configure(settings.log.level, settings.log.format)
    try:
        asyncio.run(app.run(settings))
    except BridgeError as error:
        raise CommandError.of(error) from error
    finally:
        writer.close()  # so that the last word is ours
