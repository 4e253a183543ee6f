"""What a Kafka broker is told: its listeners, who may log in, and how it is kept small and quick."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from tests.certificates import Authority, Certificate
from tests.testbed.server import HOST

Listener = Literal["plaintext", "ssl", "mtls", "sasl_plaintext", "sasl_ssl"]
LISTENERS: tuple[Listener, ...] = get_args(Listener)
MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER")

_PROTOCOLS: dict[Listener, str] = {
    "plaintext": "PLAINTEXT",
    "ssl": "SSL",
    "mtls": "SSL",
    "sasl_plaintext": "SASL_PLAINTEXT",
    "sasl_ssl": "SASL_SSL",
}
_SECURITY_PACKAGE = "org.apache.kafka.common.security"


@dataclass(frozen=True)
class Tls:
    """What TLS listeners show, and whose clients an mTLS listener lets in."""

    authority: Authority
    certificate: Certificate


@dataclass(frozen=True)
class Node:
    """One broker, which is a controller too: its folder and ports; `advertised` are those clients are sent to."""

    id: int
    directory: Path
    controller: int
    ports: Mapping[Listener, int]
    advertised: Mapping[Listener, int]


def properties(
    node: Node, nodes: Sequence[Node], users: Mapping[str, str], tls: Tls | None, *, acls: bool
) -> dict[str, str]:
    """The content of server.properties, but for what a test wants of its own."""
    listeners = {"CONTROLLER": node.controller} | {name.upper(): port for name, port in node.ports.items()}
    protocols = {name.upper(): _PROTOCOLS[name] for name in node.ports}
    found = {
        "process.roles": "broker,controller",
        "node.id": str(node.id),
        "log.dirs": f"{node.directory}/data",
        "controller.quorum.voters": ",".join(f"{other.id}@{HOST}:{other.controller}" for other in nodes),
        "controller.listener.names": "CONTROLLER",
        "inter.broker.listener.name": "PLAINTEXT",
        "listeners": ",".join(f"{name}://{HOST}:{port}" for name, port in listeners.items()),
        "advertised.listeners": ",".join(f"{name.upper()}://{HOST}:{port}" for name, port in node.advertised.items()),
        "listener.security.protocol.map": ",".join(
            f"{name}:{protocol}" for name, protocol in {"CONTROLLER": "PLAINTEXT", **protocols}.items()
        ),
        **_replication_settings(len(nodes)),
        **_fast_settings(len(nodes)),
    }
    for name in node.ports:
        found |= _auth_settings(name, users, tls)
    if acls:
        found |= {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",  # whoever comes without a login: the brokers, and the tests' own clients
        }
    return found


def scram_options(users: Mapping[str, str]) -> list[str]:
    """The options that make `StorageTool format` know the users."""
    return [
        option
        for user, password in users.items()
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        for option in ("--add-scram", f"{mechanism}=[name={user},password={password}]")
    ]


def unsecured_jwt(user: str, *, seconds: int = 3600) -> str:
    """A token for OAUTHBEARER that the testbed's broker believes; negative seconds: one that has expired."""
    now = time.time()
    claims = {"sub": user, "iat": now - 7200, "exp": now + seconds}
    header, payload = (_base64(json.dumps(part).encode()) for part in ({"alg": "none"}, claims))
    return f"{header}.{payload}."


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _replication_settings(brokers: int) -> dict[str, str]:
    replicas, in_sync = str(min(brokers, 3)), str(min(brokers, 2))
    internal = ("offsets.topic", "transaction.state.log", "share.coordinator.state.topic")
    return {
        "default.replication.factor": replicas,
        "min.insync.replicas": in_sync,
        **{f"{topic}.replication.factor": replicas for topic in internal},
        **{f"{topic}.num.partitions": "1" for topic in internal},
        "transaction.state.log.min.isr": in_sync,
        "share.coordinator.state.topic.min.isr": in_sync,
    }


def _fast_settings(brokers: int) -> dict[str, str]:
    """Small buffers, no waiting for more members of a group, and a dead broker is noticed in less than 9 s.

    A broker that was killed can come back only when that time is over.
    """
    return {
        "log.cleaner.dedupe.buffer.size": str(4 << 20),
        "group.initial.rebalance.delay.ms": "0",
        "broker.session.timeout.ms": "2000" if brokers == 1 else "5000",
        "broker.heartbeat.interval.ms": "500",
        "auto.create.topics.enable": "false",
    }


def _auth_settings(listener: Listener, users: Mapping[str, str], tls: Tls | None) -> dict[str, str]:
    prefix = f"listener.name.{listener}"
    found: dict[str, str] = {}
    if "SSL" in _PROTOCOLS[listener]:
        found |= _tls_settings(prefix, tls, verify=listener == "mtls")
    if "SASL" in _PROTOCOLS[listener]:
        known = "".join(f' user_{user}="{password}"' for user, password in users.items())
        logins = {
            "plain": f"{_SECURITY_PACKAGE}.plain.PlainLoginModule required{known};",
            "scram-sha-256": f"{_SECURITY_PACKAGE}.scram.ScramLoginModule required;",
            "scram-sha-512": f"{_SECURITY_PACKAGE}.scram.ScramLoginModule required;",
            "oauthbearer": (
                f'{_SECURITY_PACKAGE}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="b";'
            ),
        }
        found[f"{prefix}.sasl.enabled.mechanisms"] = ",".join(MECHANISMS)
        found |= {f"{prefix}.{mechanism}.sasl.jaas.config": login for mechanism, login in logins.items()}
    return found


def _tls_settings(prefix: str, tls: Tls | None, *, verify: bool) -> dict[str, str]:
    if tls is None:
        raise ValueError("a TLS listener needs an authority")
    return {
        f"{prefix}.ssl.keystore.type": "PEM",
        f"{prefix}.ssl.keystore.location": str(tls.certificate.combined),
        f"{prefix}.ssl.truststore.type": "PEM",
        f"{prefix}.ssl.truststore.location": str(tls.authority.certificate),
        f"{prefix}.ssl.client.auth": "required" if verify else "none",
    }
