"""``whalebridge check``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

from bridge.cli import options
from bridge.cli.failure import WRONG_USAGE, CommandError


def check(
    config: options.Config = None,
    containerd: options.Containerd = None,
    namespace: options.Include = None,
    exclude_namespace: options.Exclude = None,
    sink: options.Sinks = None,
    state_dir: options.StateDir = None,
    snapshot_interval: options.Interval = None,
    log_level: options.LogLevel = None,
    log_format: options.LogFormat = None,
    as_json: options.AsJson = False,
) -> None:
    """Check the configuration and every connection that run would use, without publishing. Takes the options of run.

    Reports all errors in the settings; then checks containerd, state_dir, http.listen (if set) and each sink
    concurrently, up to the first record. Topics, streams, files and state_dir that run would create are created and
    kept; a marker event is published on containerd. Takes up to 15 s. A running bridge is not disturbed.

    Exit status: 0 if run can start; 1 if run would fail; 2 if the settings are invalid; 3 if a connection failed and
    run would retry.

    \b
    Examples:
      whalebridge check
      whalebridge check --sink kafka://localhost:9092/containers --state-dir /var/lib/whalebridge
      whalebridge check --json | jq '.results[] | select(.status != "ok")'
    """
    from bridge.cli import findings
    from bridge.cli.findings import Finding

    try:
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
    except CommandError as error:
        found = [Finding("error", "settings", line, status=WRONG_USAGE) for line in error.lines]
    else:
        import asyncio

        from bridge.cli.rehearsal import rehearse

        found = [Finding("ok", "settings", f"settings are valid; host name is {settings.host}")]
        found += asyncio.run(rehearse(settings))
    findings.tell(found, as_json=as_json)
    if status := max(each.status for each in found):
        raise CommandError(status=status)
