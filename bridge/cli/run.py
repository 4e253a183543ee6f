"""``whalebridge run``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

from bridge.cli import options
from bridge.cli.failure import CommandError


def run(
    config: options.Config = None,
    containerd: options.Containerd = None,
    namespace: options.Include = None,
    exclude_namespace: options.Exclude = None,
    sink: options.Sinks = None,
    state_dir: options.StateDir = None,
    snapshot_interval: options.Interval = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
) -> None:
    """Publish what happens to containers, until SIGTERM or Ctrl-C.

    Without a sink, records go to standard output, one JSON document a line; log lines go to standard error. A
    containerd that is not there yet is waited for. Options override the environment (WHALEBRIDGE_LOG__LEVEL=debug),
    and that overrides the file; docs/configuration.md tells all settings. SIGHUP has them
    read anew.

    \b
    Examples:
      whalebridge run
      whalebridge run --containerd /run/k3s/containerd/containerd.sock --namespace k8s.io
      whalebridge run --config whalebridge.yaml
      whalebridge run --sink kafka://localhost:9092/containers --state-dir /var/lib/whalebridge
      whalebridge run --exclude-namespace 'test-*' --log-level warning | jq .type
    """
    read = options.of_run(
        config=config,
        containerd=containerd,
        include=namespace,
        exclude=exclude_namespace,
        sinks=sink,
        state_dir=state_dir,
        snapshot_interval=snapshot_interval,
        log_level=log_level,
        log_format=log_format,
    )
    settings = options.settled(read)
    import asyncio

    from bridge import app, malloc
    from bridge.core.errors import BridgeError
    from bridge.telemetry import logs

    malloc.keep_freed()
    writer = logs.configure(settings.log.level, settings.log.format)
    try:
        asyncio.run(app.run(settings, read))
    except BridgeError as error:
        raise CommandError.of(error) from error
    finally:
        writer.close()  # so that the last word is ours
