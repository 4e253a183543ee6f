"""``whalebridge run``."""

# ruff: noqa: PLC0415 (imports are lazy, so that help and version are quick)

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from bridge.cli import options, output
from bridge.cli.errors import CommandError

if TYPE_CHECKING:
    from bridge.core.ports import Sink
    from config.settings import Settings


@options.shared
def run(**given: Unpack[options.RunOptions]) -> None:
    """Watch containerd and publish events until SIGTERM or Ctrl-C.

    Without a sink, records go to standard output: readable lines on a terminal, otherwise one JSON document per line,
    as with --sink stdout:. Logs go to standard error. If containerd is not available, run waits for it.

    Options override environment variables (WHALEBRIDGE_LOG__LEVEL=debug), and environment variables override the
    configuration file. See docs/configuration.md for all settings. SIGHUP reloads them.

    \b
    Examples:
      whalebridge run
      whalebridge run --containerd /run/k3s/containerd/containerd.sock --namespace k8s.io
      whalebridge run --config whalebridge.yaml
      whalebridge run --sink kafka://localhost:9092/containers --state-dir /var/lib/whalebridge
      whalebridge run --exclude-namespace 'test-*' --log-level warning | jq .type
    """
    from bridge.telemetry import logs  # isort: skip # first, because it imports structlog without rich
    from bridge.settings_reload import ConfigFile
    from config.sources import yaml

    load = options.settings_loader(**given)
    config_file = ConfigFile(options.config_path(**given) or yaml.DEFAULT)
    settings = options.load_or_exit(load)
    import asyncio

    from bridge import app, memory_tuning, signal_mask
    from bridge.core.errors import BridgeError

    memory_tuning.retain_freed_memory()
    memory_tuning.collect_garbage_rarely()
    writer = logs.configure(settings.log.level, settings.log.format)

    async def run_app() -> None:
        await app.run(settings, load, config_file, _terminal_sink(settings))
        signal_mask.block()  # another signal during the exit would print an error, or change the exit status

    try:
        asyncio.run(run_app())
    except BridgeError as error:
        raise CommandError.from_error(error) from error
    finally:
        writer.close()  # flush the last log lines before an error is printed


def _terminal_sink(settings: Settings) -> dict[str, Sink] | None:
    """Return a sink that prints readable lines if no sink is configured and standard output is a terminal."""
    if "sinks" in settings.model_fields_set or not output.is_terminal():
        return None
    from bridge.cli.record_format import format_record
    from bridge.consumer.record_decoder import decode
    from sinks.stdout import StdoutSink

    colored = output.is_colored()

    def format_line(data: bytes) -> str:
        return format_record(decode(data)[0], colored=colored, with_host=False)

    return {id_: StdoutSink(format_line=format_line) for id_ in settings.sinks}
