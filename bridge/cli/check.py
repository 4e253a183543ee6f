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
    """Try everything that run would use, and say what to do about what is found. Takes the options of run.

    First the settings, with all that is wrong with them; then, all at a time: containerd, state_dir, http.listen where
    it is set, and each sink, as far as run would go before its first record. No record is published. What run would
    create there (a topic, a stream, a file, state_dir) is created and left; a mark is published on containerd and
    waited for. It takes some 15 s at the most, and may be called while a bridge runs.

    Exit status: 0 where run can work; 2 for wrong settings; 3 where a connection failed, and run would try again for
    ever; 1 where run would not go on.

    \b
    Examples:
      whalebridge check
      whalebridge check --sink kafka://localhost:9092/containers --state-dir /var/lib/whalebridge
      whalebridge check --json | jq '.findings[] | select(.verdict != "ok")'
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
        found = [Finding("problem", "settings", line, status=WRONG_USAGE) for line in error.lines]
    else:
        import asyncio

        from bridge.cli.rehearsal import rehearse

        found = [Finding("ok", "settings", f"they are consistent; this host is called {settings.host}")]
        found += asyncio.run(rehearse(settings))
    findings.tell(found, as_json=as_json)
    if status := max(each.status for each in found):
        raise CommandError(status=status)
