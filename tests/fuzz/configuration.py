"""Fuzz target for the configuration: file, environment and options, separated by lines with ``SEPARATOR``.

The environment and the options have one value per line, as ``NAME=VALUE`` and ``PATH=VALUE``.
"""

from __future__ import annotations

import os
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from config.settings import SettingsError, load
from config.sinks import plugins
from config.sources import cli, env
from tests.documentation import setting_paths
from tests.fuzz.engine import Target
from tests.fuzz.mutation import mutate_text

SEPARATOR = b"\n%%\n"
_SECRET = "canary7f3a"  # noqa: S105 (a canary)
_VALUE = f"x@%{_SECRET}"
"""A secret, with characters that no name of a setting contains: names may appear in messages."""

_EXAMPLES = Path(__file__).parents[2] / "config" / "examples"
_DIRECTORY = "/dev/shm" if os.path.isdir("/dev/shm") else None
_SECRETS = f"""\
sinks:
  main:
    type: kafka
    bootstrap_servers: [h:9092, "[::1]:9092"]
    topic: t
    auth: {{username: u, password: "{_VALUE}"}}
    tls: {{enabled: true, cert_file: /c, key_file: /k, key_password: "{_VALUE}"}}
  other:
    type: nats
    servers: h
    subject_prefix: s
    auth:
      nkey_seed: "{_VALUE}"
labels: {{include: ["*"], redact: ["*x*"]}}
"""
_ENVIRONMENT = f"""\
WHALEBRIDGE_SINKS__N=nats://h/s
WHALEBRIDGE_SINKS__N__AUTH__USER=u
WHALEBRIDGE_SINKS__N__AUTH__PASSWORD={_VALUE}
WHALEBRIDGE_LOG__LEVEL=debug
WHALEBRIDGE_SNAPSHOT__INTERVAL=6h
WHALEBRIDGE_NAMESPACES__INCLUDE=a,b*
WHALEBRIDGE_SERVICE_HOST=1
"""
_OPTIONS = """\
sinks=kafka://h:9092/t
sinks=main=nats://h/s
sinks=file:/x
namespaces.include=k8s.io
containerd.address=/run/containerd/containerd.sock
snapshot.interval=15m
state_dir=/var/lib/whalebridge
log.format=json
"""
_find_plugins = plugins.names
_WORDS = (
    *(path.rpartition(".")[2] for path in sorted(setting_paths())),
    *(env.variable(path) for path in sorted(setting_paths())),
    *cli.FLAGS,
)
_TOKENS = (
    *(word.encode() for word in dict.fromkeys(_WORDS)),
    *rb"""null ~ [] {} [a] {a:b} "" '' & * ! !!binary << : - ? | > # @ ` %% --- ... off true 0 -1 1e9
    99999999999999999999
    00 1.5 0s 15m 999999999d kafka:// kafkas://h/t nats://h/s tls: file:/x file: stdout: stdout:// u:p@h [::1]:1 h:65536
    *a &a !a x=y a,b [!a] [[] \x85 \xef\xbb\xbf \xff \x00 \xf3\xa0\x81\xa1 \u0661""".split(),
    b"\xff",
    b"\x00",
    b"\xc2\x85",
    b"\xef\xbb\xbf",
    b"\n",
    b"\n  ",
    b"\n%%\n",
    b": ",
    b"\t",
    b" ",
)


def _samples() -> Sequence[bytes]:
    files = [*(path.read_bytes() for path in sorted(_EXAMPLES.glob("*.yaml"))), _SECRETS.encode(), b"sinks: stdout:\n"]
    return [*files, _SECRETS.encode() + _others(), b"log: {}\n" + _others()]


def _samples_without_file() -> Sequence[bytes]:
    """Return inputs that are parsed more quickly: most of the time goes into YAML."""
    lines = [*_ENVIRONMENT.encode().splitlines(), *_OPTIONS.encode().splitlines()]
    return [_others(), *(SEPARATOR + line + SEPARATOR + line for line in lines)]


def _others() -> bytes:
    return SEPARATOR + _ENVIRONMENT.encode() + SEPARATOR + _OPTIONS.encode()


def _load_settings(data: bytes) -> None:
    file, _, rest = data.partition(SEPARATOR)
    environment, _, options = rest.partition(SEPARATOR)
    with (
        _file(file) as path,
        patch.object(os, "environ", _environment(environment)),  # a dict, because os.environ itself is slow
        patch.object(plugins, "names", _plugin_names),
    ):
        try:
            load(_options(options), path)
        except SettingsError as error:
            _check_error(data, error)


def _check_error(data: bytes, error: SettingsError) -> None:
    assert error.errors
    assert all(isinstance(each, str) and each for each in error.errors)
    # Elsewhere than in a whole secret, as the name of a setting or of a sink, the text may appear in the message.
    if data.count(_VALUE.encode()) == data.count(_SECRET.encode()):
        assert _SECRET not in "".join(traceback.format_exception(error)) + repr(vars(error)), str(error)


@cache
def _plugin_names() -> list[str]:
    """Return the installed plugins; looking for them takes longer than all else."""
    return _find_plugins()


@contextmanager
def _file(content: bytes) -> Iterator[str | None]:
    if not content:
        yield None
        return
    with tempfile.NamedTemporaryFile(dir=_DIRECTORY, prefix="whalebridge-fuzz-") as file:
        file.write(content)
        file.flush()
        yield file.name


def _environment(lines: bytes) -> dict[str, str]:
    variables = {"PATH": "/usr/bin"}
    for line in lines.split(b"\n"):
        name, separator, value = os.fsdecode(line).partition("=")
        if separator and _SECRET not in name:  # messages name variables
            variables[name] = value
    return variables


def _options(lines: bytes) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for line in lines.split(b"\n"):
        path, _, value = os.fsdecode(line).partition("=")
        if path == "sinks":
            given.setdefault("sinks", []).append(value)
        elif path in cli.FLAGS:
            group, _, name = path.partition(".")
            if name:
                given.setdefault(group, {})[name] = [value] if group == "namespaces" else value
            else:
                given[group] = value
    return given


TARGETS = {
    "configuration": Target(_load_settings, _samples, _TOKENS, mutate_text),
    "environment": Target(_load_settings, _samples_without_file, _TOKENS, mutate_text),
}
