"""``whalebridge check``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

from typing import Annotated, Unpack

import typer

from bridge.cli import options
from bridge.cli.errors import WRONG_USAGE, CommandError


@options.shared
def check(
    settings_only: Annotated[
        bool, typer.Option("--settings-only", help="Check only the settings: connect to nothing, and create nothing.")
    ] = False,
    as_json: options.AsJson = False,
    **given: Unpack[options.RunOptions],
) -> None:
    """Check the configuration and the connections of run.

    Takes the options of run, and publishes no records. Reports all errors in the settings; then checks containerd,
    state_dir, http.listen (if set) and each sink concurrently, as run does before it publishes its first record.
    Topics, streams, files and state_dir that run would create are created and kept; a marker event is published on
    containerd. Takes up to 15 s. A running bridge is not disturbed.

    Exit status: 0 if run can start; 1 if run would fail; 2 if the settings are invalid; 3 if a connection failed and
    run would retry.

    \b
    Examples:
      whalebridge check
      whalebridge check --sink kafka://localhost:9092/containers --state-dir /var/lib/whalebridge
      whalebridge check --settings-only --config config.yaml
      whalebridge check --json | jq '.results[] | select(.status != "ok")'
    """
    from bridge.cli import check_results
    from bridge.cli.check_results import CheckResult

    try:
        settings = options.load_settings(**given)
    except CommandError as error:
        results = [CheckResult("error", "settings", line, exit_status=WRONG_USAGE) for line in error.lines]
    else:
        results = [CheckResult("ok", "settings", f"settings are valid; host name is {settings.host}")]
        if not settings_only:
            import asyncio

            from bridge.cli.preflight import run_preflight

            results += asyncio.run(run_preflight(settings))
    check_results.print_results(results, as_json=as_json)
    if status := max(result.exit_status for result in results):
        raise CommandError(exit_status=status)
