"""A private Kafka: one broker or a cluster, on loopback, in KRaft mode (each broker is also a controller)."""

from __future__ import annotations

import base64
import os
import re
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace

from aiokafka.errors import KafkaError

from tests.certificates import Authority, Certificate
from tests.eventually import eventually
from tests.testbed.components import cache_directory
from tests.testbed.kafka_admin import KafkaAdmin, broker_ready_check
from tests.testbed.kafka_config import Listener, Node, Tls, properties, scram_options
from tests.testbed.process import run
from tests.testbed.server import HOST, Server, Servers, Workspace, free_port
from tests.testbed.tcp_proxy import TcpProxy

COMPONENTS = ("kafka",)
"""Components that must be installed."""

USERS = {"bridge": "bridge-secret", "reader": "reader-secret"}
"""Default users: passwords by name."""

LONG_SESSION_TIMEOUT = {"broker.session.timeout.ms": "60000"}
"""Settings of a broker that is never killed, so that a pause of 2 s, as on a loaded machine, has no consequences.

Otherwise the cluster removes the broker for a moment: clients find no broker, and partitions have no leader.
"""

_FAST_JVM_OPTIONS = ("-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")


class Kafka(Servers):
    """Brokers that run within the context.

    `listeners` always include `plaintext`, for the brokers themselves and for `admin`. With `acls`, clients of
    `plaintext` are allowed everything, and others only what `admin.allow` permits (principals: `User:NAME` of `users`,
    or `User:CN=NAME` of an mTLS certificate). TLS listeners need `authority`; `certificate` replaces the valid
    certificate of the brokers. With `proxied`, plaintext clients connect through `proxies`, one per broker, which can
    fail. By default, the options of `java` are those for a start in 2 s.
    """

    def __init__(
        self,
        brokers: int = 1,
        *,
        listeners: Sequence[Listener] = ("plaintext",),
        users: Mapping[str, str] = USERS,
        authority: Authority | None = None,
        certificate: Certificate | None = None,
        acls: bool = False,
        proxied: bool = False,
        settings: Mapping[str, str] | None = None,
        java: Sequence[str] = (),
    ) -> None:
        super().__init__(Workspace("kafka"))
        self.proxies: list[TcpProxy] = []
        self._tls = Tls(authority, certificate or authority.issue("broker")) if authority else None
        self._users, self._acls, self._settings = users, acls, dict(settings or {})
        self._java = java or fast_jvm_options()
        names = tuple(dict.fromkeys(("plaintext", *listeners)))
        self.nodes = [self._create_node(number, names, proxied=proxied) for number in range(1, brokers + 1)]
        self.servers = [self._create_server(node) for node in self.nodes]
        self.admin = KafkaAdmin(self.bootstrap)

    @property
    def bootstrap(self) -> str:
        """Return HOST:PORT of every broker's plaintext listener (not of the proxies), separated by commas."""
        return ",".join(f"{HOST}:{node.ports['plaintext']}" for node in self.nodes)

    def bootstrap_for(self, listener: Listener) -> str:
        """Return HOST:PORT of every broker for a listener, or of the proxies."""
        return ",".join(f"{HOST}:{node.advertised[listener]}" for node in self.nodes)

    def broker(self, number: int) -> Server:
        """Return a broker by its node id; the first is 1."""
        return self.servers[number - 1]

    def leader(self, topic: str, partition: int = 0, *, timeout: float = 30) -> Server:
        """Return the running broker that leads a partition; wait until there is a leader."""
        leader = -1

        def has_leader() -> bool:
            nonlocal leader
            try:
                leader = self.admin.leader(topic, partition)
            except (KafkaError, TimeoutError):  # the client chose a broker that does not run
                return False
            return leader > 0 and self.broker(leader).running

        eventually(has_leader, f"a leader of {topic}/{partition}", within=timeout)
        return self.broker(leader)

    def start(self) -> None:
        """Start all brokers, after formatting their storage if they never ran, and wait until all are ready."""
        if not (self.nodes[0].directory / "data").exists():
            self._format()
        super().start()

    def erase(self) -> None:
        """Remove the data of all brokers, which do not run; the next start makes a new cluster."""
        for node in self.nodes:
            shutil.rmtree(node.directory / "data")

    def move(self, number: int) -> None:
        """Give a broker that does not run another port for its plaintext listener, which has no proxy."""
        node, port = self.nodes[number - 1], free_port()
        node = self.nodes[number - 1] = replace(
            node,
            ports={name: port if name == "plaintext" else old for name, old in node.ports.items()},
            advertised={name: port if name == "plaintext" else old for name, old in node.advertised.items()},
        )
        self._write_properties(node)
        self.servers[number - 1] = self._create_server(node)
        self.admin = KafkaAdmin(self.bootstrap)

    def close(self) -> None:
        """Stop and remove everything that this instance started or created."""
        for proxy in self.proxies:
            proxy.close()
        super().close()

    def _create_node(self, number: int, listeners: Sequence[Listener], *, proxied: bool) -> Node:
        directory = self.directory / f"broker-{number}"
        directory.mkdir()
        ports = {name: free_port() for name in listeners}
        advertised = dict(ports)
        if proxied:
            self.proxies.append(TcpProxy(HOST, ports["plaintext"]))
            advertised["plaintext"] = self.proxies[-1].port
        return Node(number, directory, free_port(), ports, advertised)

    def _create_server(self, node: Node) -> Server:
        ready = broker_ready_check(f"{HOST}:{node.ports['plaintext']}", node.id)
        return Server(f"broker-{node.id}", self._workspace, self._command("kafka.Kafka", node), is_ready=ready)

    def _command(self, program: str, node: Node, *arguments: str) -> list[str]:
        quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
        java = ["java", *self._java, quiet, "-cp", jars(), program]
        return [*java, *arguments, f"{node.directory}/server.properties"]

    def _format(self) -> None:
        for node in self.nodes:
            self._write_properties(node)
        first, *others = self.nodes
        options = [*scram_options(self._users), "--cluster-id", _random_uuid(), "--config"]
        run(self._command("kafka.tools.StorageTool", first, "format", *options))
        for node in others:  # only two lines differ, and each call of the tool takes almost a second
            data = shutil.copytree(first.directory / "data", node.directory / "data")
            meta = (data / "meta.properties").read_text()
            meta = re.sub(r"^node\.id=.*$", f"node.id={node.id}", meta, flags=re.MULTILINE)
            meta = re.sub(r"^directory\.id=.*$", f"directory.id={_random_uuid()}", meta, flags=re.MULTILINE)
            (data / "meta.properties").write_text(meta)

    def _write_properties(self, node: Node) -> None:
        content = properties(node, self.nodes, self._users, self._tls, acls=self._acls) | self._settings
        lines = (f"{key}={value}\n" for key, value in content.items())
        (node.directory / "server.properties").write_text("".join(lines))


def jars() -> str:
    """Return the class path of Kafka and of what it needs."""
    return f"{cache_directory()}/kafka/libs/*"


def fast_jvm_options() -> tuple[str, ...]:
    """Return options of Java with an archive of Kafka's classes, which saves almost half of the CPU time of a start.

    The archive is made at the first start after the installation of Kafka. Another version of Java ignores it.
    """
    archive = cache_directory() / "kafka" / "classes.jsa"
    if not archive.exists():
        made = archive.with_name(f"classes-{os.getpid()}.jsa")
        with Kafka(java=(*_FAST_JVM_OPTIONS, f"-XX:ArchiveClassesAtExit={made}")) as kafka:
            kafka.admin.create_topic("classes")
            kafka.stop()
        made.replace(archive)
    return (*_FAST_JVM_OPTIONS, f"-XX:SharedArchiveFile={archive}")


def _random_uuid() -> str:
    """Return a UUID in Kafka's format; its tool would parse one with a leading "-" as an option."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text
