"""A private Prometheus with given samples, and an Alertmanager, on loopback."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from tests.testbed.components import cache_directory
from tests.testbed.install import search_path
from tests.testbed.process import run
from tests.testbed.server import HOST, Server, Servers, Workspace, free_port

COMPONENTS = ("prometheus",)
ALERTMANAGER_COMPONENTS = ("alertmanager",)


def promtool(*arguments: str, directory: Path) -> str:
    """Run promtool in a directory; return its output."""
    env = {**os.environ, "PATH": search_path(*COMPONENTS)}
    return run(["promtool", *arguments], env=env, directory=directory, timeout=600).stdout


class Prometheus(Servers):
    """A Prometheus that scrapes nothing, and has the given samples: lines of OpenMetrics with timestamps.

    It also has what the recording rules and alerts of the file ``rules`` find in them from ``start`` to ``end``, in
    seconds since 1970. An alert fires as soon as its expression has a result.
    """

    def __init__(self, samples: Iterable[str], rules: Path, *, start: float, end: float) -> None:
        super().__init__(Workspace("prometheus"))
        self._samples = samples
        self._recording = [f"--start={start}", f"--end={end}", "rules.yml"]
        (self.directory / "prometheus.yml").write_text("{}")
        (self.directory / "rules.yml").write_text(json.dumps(_with_recorded_alerts(yaml.safe_load(rules.read_text()))))
        self._url = f"http://{HOST}:{(port := free_port())}"
        command = [
            "prometheus",
            f"--config.file={self.directory}/prometheus.yml",
            f"--storage.tsdb.path={self.directory}/data",
            "--storage.tsdb.retention.time=100y",
            "--query.timeout=10m",
            f"--web.listen-address={HOST}:{port}",
        ]
        self.servers = [_server("prometheus", self._workspace, command, COMPONENTS, f"{self._url}/-/ready")]

    def start(self) -> None:
        """Store the samples, start the server, and record."""
        with (self.directory / "samples").open("w") as file:
            file.writelines(f"{line}\n" for line in self._samples)
            file.write("# EOF\n")
        promtool("tsdb", "create-blocks-from", "openmetrics", "samples", "data", directory=self.directory)
        super().start()
        options = [f"--url={self._url}", "--output-dir=recorded", *self._recording]
        promtool("tsdb", "create-blocks-from", "rules", *options, directory=self.directory)
        self.stop()  # it finds new blocks when it starts
        for block in (self.directory / "recorded").iterdir():
            block.rename(self.directory / "data" / block.name)
        super().start()

    def query(self, expression: str, at: float) -> list[dict[str, Any]]:
        """Return the series of a query at a time, each with a ``value``."""
        return self._query("query", {"query": expression, "time": at})

    def query_range(self, expression: str, start: float, end: float, step: float) -> list[dict[str, Any]]:
        """Return the series of a query in an interval, each with ``values``; times in seconds."""
        return self._query("query_range", {"query": expression, "start": start, "end": end, "step": step})

    def _query(self, kind: str, parameters: dict[str, object]) -> list[dict[str, Any]]:
        try:
            response = _request(f"{self._url}/api/v1/{kind}", urllib.parse.urlencode(parameters).encode())
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters['query']}: {error.read().decode()}") from None
        result = response["data"]["result"]
        assert isinstance(result, list)
        return result


def _with_recorded_alerts(rules: dict[str, Any]) -> dict[str, Any]:
    """Return rules with alerts as recording rules of Prometheus' own series: promtool does not evaluate alerts."""
    for group in rules["groups"]:
        for rule in group["rules"]:
            if name := rule.pop("alert", None):
                labels = {**rule["labels"], "alertname": name, "alertstate": "firing"}
                expression = rule["expr"]
                rule.clear()
                rule |= {"record": "ALERTS", "expr": f"({expression}) * 0 + 1", "labels": labels}
    return rules


# Debian's Alertmanager reads its templates from /usr/share, regardless of its configuration.
_WITH_TEMPLATES = 'mount -t overlay -o "lowerdir=$0:/usr/share" overlay /usr/share && exec "$@"'
_SHARE = str(cache_directory() / "debian" / "alertmanager" / "usr" / "share")


class Alertmanager(Servers):
    """An Alertmanager with the given configuration; needs root."""

    def __init__(self, configuration: str) -> None:
        super().__init__(Workspace("alertmanager"))
        (self.directory / "alertmanager.yml").write_text(configuration)
        self._url = f"http://{HOST}:{(port := free_port())}"
        command = [
            *("unshare", "--mount", "--propagation", "slave", "sh", "-c", _WITH_TEMPLATES, _SHARE),
            "prometheus-alertmanager",
            f"--config.file={self.directory}/alertmanager.yml",
            f"--storage.path={self.directory}/data",
            f"--web.listen-address={HOST}:{port}",
            "--cluster.listen-address=",
        ]
        url = f"{self._url}/-/ready"
        self.servers = [_server("alertmanager", self._workspace, command, ALERTMANAGER_COMPONENTS, url)]

    def post(self, alerts: Sequence[Mapping[str, str]]) -> None:
        """Send alerts, given by their labels."""
        _request(f"{self._url}/api/v2/alerts", json.dumps([{"labels": labels} for labels in alerts]).encode())

    def active(self) -> list[dict[str, str]]:
        """Return the labels of the alerts that are not inhibited."""
        alerts = _request(f"{self._url}/api/v2/alerts?inhibited=false")
        return [alert["labels"] for alert in alerts]


def _server(name: str, workspace: Workspace, command: list[str], components: Sequence[str], url: str) -> Server:
    program = ["env", f"PATH={search_path(*components)}", *command]
    return Server(name, workspace, program, is_ready=lambda: _responds(url))


def _responds(url: str) -> bool:
    try:
        _request(url)
    except (OSError, http.client.HTTPException):
        return False
    return True


def _request(url: str, data: bytes | None = None) -> Any:
    headers = {"Content-Type": "application/json" if data is not None and data.startswith(b"[") else _FORM}
    request = urllib.request.Request(url, data, headers)  # noqa: S310 (on loopback)
    with urllib.request.urlopen(request, timeout=600) as response:  # noqa: S310
        body = response.read()
    return json.loads(body) if body.startswith((b"{", b"[")) else None


_FORM = "application/x-www-form-urlencoded"
