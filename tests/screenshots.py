"""The pictures of the documents, from real output: `make screenshots`, as root.

Two private containerds with sample containers stand for the nodes node-1 and node-2. A bridge on each publishes to a
private NATS. The pictures in docs/images show the status page of node-1 in Chromium, and `whalebridge watch` and
`whalebridge fleet` on a terminal. The picture of the Grafana dashboard has the results of its queries in a real
Prometheus, with the metrics of a simulated fleet.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

from tests import dashboard_picture, fleet_metrics
from tests.bench.dashboard import DASHBOARD, RULES
from tests.bridge_process import BridgeProcess
from tests.documentation import ROOT
from tests.integration.commands import ENVIRONMENT, WHALEBRIDGE
from tests.integration.http_client import LOCAL, HttpClient
from tests.integration.terminal import Terminal
from tests.testbed import browser, containerd, image, nats, prometheus
from tests.testbed.components import InstallError
from tests.testbed.containerd import Containerd
from tests.testbed.install import install
from tests.testbed.nats import Nats
from tests.testbed.prometheus import Prometheus

DIRECTORY = ROOT / "docs" / "images"
VERSION: containerd.Version = "2.4"
COMPONENTS = (*containerd.components(VERSION), *nats.COMPONENTS, *browser.COMPONENTS, *prometheus.COMPONENTS)
COLUMNS = 132  # of the terminal
_SOCKET = "/run/containerd/containerd.sock"  # the default; each containerd of the testbed has its own /run/containerd
_GRAY, _RED, _GREEN, _YELLOW = (72, 79, 88), (255, 123, 114), (63, 185, 80), (210, 153, 34)
_BLUE, _MAGENTA, _CYAN, _WHITE = (121, 192, 255), (188, 140, 255), (86, 212, 221), (177, 186, 196)
_THEME = TerminalTheme((22, 27, 34), (201, 209, 217), [_GRAY, _RED, _GREEN, _YELLOW, _BLUE, _MAGENTA, _CYAN, _WHITE])
# A shell that exits at once on SIGTERM; as process 1, a plain `sleep` ignores it.
_SERVICE = ("sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")


class Sample(NamedTuple):
    """A container to run: of a service of a compose project, or of a pod, whose namespace is ``project``."""

    project: str
    name: str
    image: str
    pod: str = ""

    @property
    def namespace(self) -> str:
        return "k8s.io" if self.pod else "default"

    def labels(self) -> Iterator[str]:
        if self.pod:
            yield from ("io.cri-containerd.kind=container", f"io.kubernetes.container.name={self.name}")
            for key, value in (("name", self.pod), ("namespace", self.project), ("uid", f"uid-of-{self.pod}")):
                yield f"io.kubernetes.pod.{key}={value}"
        else:
            yield f"nerdctl/name={self.project}-{self.name}-1"
            yield f"com.docker.compose.project={self.project}"
            yield f"com.docker.compose.service={self.name}"


WEB = Sample("shop", "web", "docker.io/library/nginx:1.29")
DATABASE = Sample("shop", "db", "docker.io/library/postgres:17")
CACHE = Sample("shop", "cache", "docker.io/library/redis:8")
WORKER = Sample("shop", "worker", "registry.example/shop/worker:2.3")
GRAFANA = Sample("infra", "grafana", "docker.io/grafana/grafana:12.0")
LOKI = Sample("infra", "loki", "docker.io/grafana/loki:3.5")
API = Sample("billing", "api", "registry.example/billing/api:1.8", pod="api-0")
NODES = {
    "node-1": (WEB, DATABASE, CACHE, GRAFANA, LOKI, API),
    "node-2": (WORKER, API._replace(pod="api-1")),
}


class Node(NamedTuple):
    """A containerd with the names of its containers."""

    host: str
    engine: Containerd

    def run(self, sample: Sample) -> None:
        self.ctr(sample, "images", "tag", "--force", image.NAME, sample.image)
        labels = [f"--label={label}" for label in sample.labels()]
        self.ctr(sample, "run", "--detach", "--null-io", *labels, sample.image, self.id(sample), *_SERVICE)

    def ctr(self, sample: Sample, *command: str) -> None:
        self.engine.ctr(*command, namespace=sample.namespace)

    def id(self, sample: Sample) -> str:
        """Return the id of a container: of the length in which commands show ids, and the same in each run."""
        return hashlib.sha256(f"{self.host} {sample}".encode()).hexdigest()[:12]


def main() -> int:
    """Write the pictures, and return the exit status."""
    if os.geteuid() != 0:
        print("screenshots: root required; run: sudo make screenshots", file=sys.stderr)
        return 1
    DIRECTORY.mkdir(exist_ok=True)
    try:
        install(COMPONENTS)
    except InstallError as error:
        print(f"screenshots: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(prefix="whalebridge-") as directory, Nats() as server, ExitStack() as stack:
        nodes = [stack.enter_context(_node(host, samples)) for host, samples in NODES.items()]
        bridges = [stack.enter_context(_bridge(node, server, Path(directory, node.host))) for node in nodes]
        for bridge in bridges:
            bridge.wait_logged("synced")
        first = nodes[0]
        with _terminal(first, "watch", lines=22) as terminal:
            terminal.wait(lambda page: page.startswith("6 containers"), "containers")
            _change(first)
            terminal.wait(lambda page: "default/shop-cache-1" in page, "last event")
            _write_svg(terminal, "whalebridge watch", DIRECTORY / "watch.svg")
        sink = {"TYPE": "nats", "SERVERS": server.url.removeprefix("nats://"), "SUBJECT_PREFIX": "containers"}
        environment = {f"WHALEBRIDGE_SINKS__MAIN__{name}": value for name, value in sink.items()}
        with _terminal(first, "fleet", "main", lines=11, environment=environment) as terminal:
            terminal.wait(lambda page: "8 containers of 2 sources" in page and "paused" in page, "containers")
            _write_svg(terminal, "whalebridge fleet main", DIRECTORY / "fleet.svg")
        _write_png(HttpClient(bridges[0]).get("/").text, Path(directory), DIRECTORY / "status-page.png")
    write_dashboard(DIRECTORY / "dashboard.png")
    return 0


@contextmanager
def _node(host: str, samples: Sequence[Sample]) -> Iterator[Node]:
    with Containerd(VERSION) as engine:
        Path(engine.host_path(_SOCKET)).symlink_to(engine.address)  # so that the pictures show the usual path
        for namespace in {sample.namespace for sample in samples}:
            engine.import_image(namespace)
        node = Node(host, engine)
        for sample in samples:
            node.run(sample)
        yield node


@contextmanager
def _bridge(node: Node, server: Nats, directory: Path) -> Iterator[BridgeProcess]:
    directory.mkdir()
    sinks = [f"main={server.url}/containers", f"file:{directory}/events.jsonl"]
    bridge = BridgeProcess(
        _SOCKET,
        directory,
        sinks=sinks,
        state_dir=directory / "state",
        environment=LOCAL | {"WHALEBRIDGE_HOST": node.host},
    )
    bridge.command = node.engine.sandboxed_command(*bridge.command)
    with bridge:
        yield bridge


def _terminal(node: Node, *arguments: str, lines: int, environment: Mapping[str, str] | None = None) -> Terminal:
    command = node.engine.sandboxed_command(*WHALEBRIDGE, *arguments)
    return Terminal(command, ENVIRONMENT | dict(environment or {}), columns=COLUMNS, lines=lines)


def _change(node: Node) -> None:
    """Do something with the containers, which ends with CACHE paused and WEB started again."""
    node.ctr(GRAFANA, "tasks", "pause", node.id(GRAFANA))
    node.ctr(GRAFANA, "tasks", "resume", node.id(GRAFANA))
    node.ctr(WEB, "tasks", "kill", "--signal=SIGKILL", node.id(WEB))
    node.ctr(WEB, "tasks", "delete", "--force", node.id(WEB))
    node.ctr(WEB, "tasks", "start", "--detach", "--null-io", node.id(WEB))
    node.ctr(CACHE, "tasks", "pause", node.id(CACHE))


def _write_svg(terminal: Terminal, title: str, path: Path) -> None:
    """Write the page of a terminal as SVG, and end its command."""
    lines = terminal.colored_page.rstrip().splitlines()
    terminal.stop(signal.SIGINT)
    console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
    for line in lines:
        text = Text.from_ansi(line)
        text.rstrip()
        console.print(text)
    svg = console.export_svg(title=title, theme=_THEME, unique_id=path.stem)
    # Without rich's fonts, which a browser would load from another host, and its comment.
    path.write_text(re.sub(r"@font-face \{.*?\}\s*|<!--.*?-->\s*", "", svg, flags=re.DOTALL))


def _write_png(page: str, directory: Path, path: Path) -> None:
    """Write the status page as PNG, as high as the page is."""
    copy, measured = directory / "page.html", directory / "measured.html"
    copy.write_text(page)
    # The policy of the page itself allows no scripts.
    script = "document.title = document.documentElement.getBoundingClientRect().height"
    measured.write_text(f"{page}<script>{script}</script>")
    (height,) = re.findall(r"<title>([\d.]+)</title>", browser.render_dom(measured.as_uri(), directory / "profile"))
    browser.screenshot(copy.as_uri(), directory / "profile", path, height=math.ceil(float(height)))


def write_dashboard(path: Path, *, nodes: int = 120, minutes: int = 60) -> None:
    """Write the Grafana dashboard as PNG: the last ``minutes`` of ``nodes`` nodes in each cluster."""
    end, step = fleet_metrics.END, fleet_metrics.STEP
    interval = dashboard_picture.Interval(end - 60 * minutes, end, step)
    before = 12  # minutes, so that the first rates are complete
    samples = fleet_metrics.fleet_samples(nodes, minutes=minutes + before)
    with (
        tempfile.TemporaryDirectory(prefix="whalebridge-") as directory,
        Prometheus(samples, RULES, start=interval.start - 60 * before, end=end) as server,
    ):

        def query(expression: str, instant: bool) -> list[dict[str, Any]]:
            return server.query(expression, end) if instant else server.query_range(expression, *interval)

        page, height = dashboard_picture.draw(json.loads(DASHBOARD.read_text()), query, interval)
        copy = Path(directory, "page.html")
        copy.write_text(page)
        browser.screenshot(copy.as_uri(), Path(directory, "profile"), path, height=height)


if __name__ == "__main__":
    sys.exit(main())
