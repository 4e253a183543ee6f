"""A private nats-server with JetStream, or a cluster of them, on loopback."""

from __future__ import annotations

import json
import shutil
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.certificates import Authority, Certificate
from tests.eventually import eventually
from tests.testbed.install import search_path
from tests.testbed.nats_auth import AUTH_TIMEOUT, NO_AUTH
from tests.testbed.server import HOST, Server, Servers, Workspace, free_port
from tests.testbed.tcp_proxy import TcpProxy

COMPONENTS = ("nats-server",)
"""What has to be installed for a Nats."""

DEBIAN_COMPONENTS = ("nats-server-2.9",)
"""What has to be installed for Debian's own: older (no atomic batches), and nothing that has to be built."""


@dataclass(frozen=True)
class Node:
    """One server: its folder and ports (`advertised` is the one that clients are told of)."""

    name: str
    directory: Path
    port: int
    advertised: int
    cluster: int
    monitor: int


class Nats(Servers):
    """As a context manager it is started, and removed with all that it ran.

    `login`: configuration from nats_auth, by default everybody may do everything. TLS: where `authority` is given, with
    a certificate of it unless `certificate` is another; `mtls`: clients need one too. `proxied`: clients are sent
    through `proxies`, one a server, which can fail. `settings`: more of the configuration, as it stands in the file.
    `component`: which of the installed servers it is.
    """

    def __init__(
        self,
        servers: int = 1,
        *,
        auth: str = NO_AUTH,
        authority: Authority | None = None,
        certificate: Certificate | None = None,
        mtls: bool = False,
        proxied: bool = False,
        settings: str = "",
        component: str = COMPONENTS[0],
    ) -> None:
        super().__init__(Workspace("nats"))
        self._program = shutil.which("nats-server", path=search_path(component)) or "nats-server"
        self.proxies: list[TcpProxy] = []
        self._tls = ""
        if authority:
            shown = certificate or authority.issue("nats")
            trusted = f'ca_file: "{authority.certificate}", verify: {str(mtls).lower()}'
            own = f'cert_file: "{shown.certificate}", key_file: "{shown.key}"'
            self._tls = f"tls {{ {own}, {trusted}, timeout: {AUTH_TIMEOUT} }}\n"
        self._common_config = auth + self._tls + settings
        self.nodes = [self._create_node(number, proxied=proxied) for number in range(1, servers + 1)]
        for node in self.nodes:
            (node.directory / "nats.conf").write_text(self._config(node))
        self.servers = [self._create_server(node) for node in self.nodes]

    @property
    def urls(self) -> list[str]:
        """Where clients connect to, through the proxies if there are any."""
        scheme = "tls" if self._tls else "nats"
        return [f"{scheme}://{HOST}:{node.advertised}" for node in self.nodes]

    @property
    def url(self) -> str:
        """The same as one string, with commas."""
        return ",".join(self.urls)

    def server(self, name: str) -> Server:
        """One server by its name: n1, n2, ..."""
        return next(server for server in self.servers if server.name == name)

    def start(self) -> None:
        """Start those that do not run, and wait until all answer and the one that leads them knows the others."""
        super().start()
        if len(self.nodes) > 1:
            eventually(self._is_cluster_complete, "the servers of a cluster to know each other", within=60)

    def leader(self, stream: str, *, timeout: float = 60) -> Server:
        """The server that leads a stream; where there is none for the moment, wait for one."""
        found: list[str] = []

        def known() -> bool:
            # Each server has an opinion; one that was frozen or cut off may still hold an old one.
            leaders = [name for state in self._stream_states(stream) for name in _leader_name(state)]
            found[:] = [max(leaders, key=leaders.count)] if leaders else []
            return bool(found) and self.server(found[0]).running

        eventually(known, f"a leader of stream {stream}", within=timeout)
        return self.server(found[0])

    def monitor(self, path: str, node: Node | None = None, *, timeout: float = 30) -> dict[str, Any]:
        """What a server's monitoring says: `varz`, `connz`, `jsz?streams=true`, ..."""
        url = f"http://{HOST}:{(node or self.nodes[0]).monitor}/{path}"
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def close(self) -> None:
        """End and remove everything that this instance brought about."""
        for proxy in self.proxies:
            proxy.close()
        super().close()

    def _stream_states(self, stream: str) -> list[dict[str, Any]]:
        found = []
        for node, server in zip(self.nodes, self.servers, strict=True):
            if not server.running:
                continue
            try:
                accounts = self.monitor("jsz?accounts=true&streams=true", node, timeout=2)["account_details"]
            except (OSError, KeyError):  # it does not answer, or has no account yet
                continue
            details = [detail for account in accounts for detail in account.get("stream_detail", [])]
            found += [detail for detail in details if detail["name"] == stream]
        return found

    def _is_cluster_complete(self) -> bool:
        """Whether the leader has heard of all: one of which it has not gets no replica, and a stream may need it."""
        for node in self.nodes:
            try:
                cluster = self.monitor("jsz", node, timeout=2)["meta_cluster"]
            except (OSError, KeyError):
                return False
            if cluster.get("leader") == node.name:
                known = [each for each in cluster.get("replicas", ()) if each["current"] and not each.get("offline")]
                return len(known) == len(self.nodes) - 1
        return False

    def _create_node(self, number: int, *, proxied: bool) -> Node:
        name = f"n{number}"
        folder = self.directory / name
        folder.mkdir()
        port = advertised = free_port()
        if proxied:
            self.proxies.append(TcpProxy(HOST, port))
            advertised = self.proxies[-1].port
        return Node(name, folder, port, advertised, free_port(), free_port())

    def _config(self, node: Node) -> str:
        lines = [
            f"server_name: {node.name}",
            f"listen: {HOST}:{node.port}",
            f"client_advertise: {HOST}:{node.advertised}",
            f"http: {HOST}:{node.monitor}",
            f'jetstream {{ store_dir: "{node.directory}/jetstream" }}',
            self._common_config,
        ]
        if len(self.nodes) > 1:
            routes = ", ".join(f'"nats://{HOST}:{other.cluster}"' for other in self.nodes)
            lines.append(f"cluster {{ name: testbed, listen: {HOST}:{node.cluster}, routes: [{routes}] }}")
        return "\n".join(lines) + "\n"

    def _create_server(self, node: Node) -> Server:
        command = [self._program, "--config", f"{node.directory}/nats.conf"]
        return Server(node.name, self._workspace, command, is_ready=self._is_healthy(node))

    def _is_healthy(self, node: Node) -> Callable[[], bool]:
        def check() -> bool:
            try:
                return bool(self.monitor("healthz", node, timeout=2)["status"] == "ok")
            except urllib.error.HTTPError:  # 503: it answers, and is not ready
                return False

        return check


def _leader_name(state: dict[str, Any]) -> list[str]:
    cluster = state.get("cluster")  # a single server has none: it leads
    return ["n1"] if cluster is None else [name for name in [cluster.get("leader")] if name]
