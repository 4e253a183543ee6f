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
"""Components that must be installed."""

DEBIAN_COMPONENTS = ("nats-server-2.9",)
"""Components of Debian's NATS, which is older (no atomic batches) and does not have to be compiled."""


@dataclass(frozen=True)
class Node:
    """One server: its directory and ports; clients connect to `advertised`."""

    name: str
    directory: Path
    port: int
    advertised: int
    cluster: int
    monitor: int


class Nats(Servers):
    """Servers that run within the context.

    `auth` is configuration from nats_auth; the default allows everything. `authority` enables TLS; `certificate`
    replaces the certificate that the authority issues. With `mtls`, clients need a certificate, too. With `proxied`,
    clients connect through `proxies`, one per server, which can fail. `settings` is additional configuration, in the
    format of the file. `component` selects one of the installed servers.
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
            server_certificate = certificate or authority.issue("nats")
            ca_settings = f'ca_file: "{authority.certificate}", verify: {str(mtls).lower()}'
            certificate_settings = (
                f'cert_file: "{server_certificate.certificate}", key_file: "{server_certificate.key}"'
            )
            self._tls = f"tls {{ {certificate_settings}, {ca_settings}, timeout: {AUTH_TIMEOUT} }}\n"
        self._common_config = auth + self._tls + settings
        self.nodes = [self._create_node(number, proxied=proxied) for number in range(1, servers + 1)]
        for node in self.nodes:
            (node.directory / "nats.conf").write_text(self._config(node))
        self.servers = [self._create_server(node) for node in self.nodes]

    @property
    def urls(self) -> list[str]:
        """Return the URLs for clients: of the proxies, if there are any."""
        scheme = "tls" if self._tls else "nats"
        return [f"{scheme}://{HOST}:{node.advertised}" for node in self.nodes]

    @property
    def url(self) -> str:
        """Return the URLs for clients, separated by commas."""
        return ",".join(self.urls)

    def server(self, name: str) -> Server:
        """Return a server by its name: n1, n2, ..."""
        return next(server for server in self.servers if server.name == name)

    def start(self) -> None:
        """Start the servers that do not run; wait until all are ready, and the cluster's leader knows the others."""
        super().start()
        if len(self.nodes) > 1:
            eventually(self._is_cluster_complete, "the leader of the cluster to know all servers", within=60)

    def leader(self, stream: str, *, timeout: float = 60) -> Server:
        """Return the running server that leads a stream; wait until there is a leader."""
        leader = ""

        def has_leader() -> bool:
            nonlocal leader
            # The servers can disagree: one that was suspended or disconnected may have an old state.
            names = [name for state in self._stream_states(stream) for name in _leader_name(state)]
            leader = max(names, key=names.count) if names else ""
            return bool(leader) and self.server(leader).running

        eventually(has_leader, f"a leader of stream {stream}", within=timeout)
        return self.server(leader)

    def monitor(self, path: str, node: Node | None = None, *, timeout: float = 30) -> dict[str, Any]:
        """Return a document of a server's monitoring endpoint: `varz`, `connz`, `jsz?streams=true`, ..."""
        url = f"http://{HOST}:{(node or self.nodes[0]).monitor}/{path}"
        with urllib.request.urlopen(url, timeout=timeout) as response:
            document: dict[str, Any] = json.load(response)
        return document

    def close(self) -> None:
        """Stop and remove everything that this instance started or created."""
        for proxy in self.proxies:
            proxy.close()
        super().close()

    def _stream_states(self, stream: str) -> list[dict[str, Any]]:
        states = []
        for node, server in zip(self.nodes, self.servers, strict=True):
            if not server.running:
                continue
            try:
                accounts = self.monitor("jsz?accounts=true&streams=true", node, timeout=2)["account_details"]
            except (OSError, KeyError):  # the server does not respond, or has no account yet
                continue
            details = [detail for account in accounts for detail in account.get("stream_detail", [])]
            states += [detail for detail in details if detail["name"] == stream]
        return states

    def _is_cluster_complete(self) -> bool:
        """Return whether the leader knows all servers; it places no replicas on servers that it does not know."""
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
        directory = self.directory / name
        directory.mkdir()
        port = advertised = free_port()
        if proxied:
            self.proxies.append(TcpProxy(HOST, port))
            advertised = self.proxies[-1].port
        return Node(name, directory, port, advertised, free_port(), free_port())

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
            except urllib.error.HTTPError:  # 503: the server responds, but is not ready
                return False

        return check


def _leader_name(state: dict[str, Any]) -> list[str]:
    cluster = state.get("cluster")  # a single server has no cluster, and is the leader
    return ["n1"] if cluster is None else [name for name in [cluster.get("leader")] if name]
