"""Configuration of a Kafka broker: listeners, users, and settings for small memory and fast tests."""

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
    """Certificate of the TLS listeners, and the authority that an mTLS listener trusts."""

    authority: Authority
    certificate: Certificate


@dataclass(frozen=True)
class Node:
    """One broker, which is also a controller: its directory, ports and advertised ports by listener."""

    id: int
    directory: Path
    controller: int
    ports: Mapping[Listener, int]
    advertised: Mapping[Listener, int]


def properties(
    node: Node, nodes: Sequence[Node], users: Mapping[str, str], tls: Tls | None, *, acls: bool
) -> dict[str, str]:
    """Return the default content of server.properties, to which a test can add settings."""
    listeners = {"CONTROLLER": node.controller} | {name.upper(): port for name, port in node.ports.items()}
    protocols = {name.upper(): _PROTOCOLS[name] for name in node.ports}
    settings = {
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
        settings |= _auth_settings(name, users, tls)
    if acls:
        settings |= {
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",  # clients without credentials: the brokers, and the admin client
        }
    return settings


def scram_options(users: Mapping[str, str]) -> list[str]:
    """Return the options of `StorageTool format` that create the users."""
    return [
        option
        for user, password in users.items()
        for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        for option in ("--add-scram", f"{mechanism}=[name={user},password={password}]")
    ]


def unsecured_jwt(user: str, *, seconds: int = 3600) -> str:
    """Return a token for OAUTHBEARER that the testbed's brokers accept; negative `seconds` make an expired token."""
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
    """Return settings for small buffers, no rebalance delay, and detection of a dead broker in less than 9 s.

    A killed broker can rejoin the cluster only after that time.
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
    settings: dict[str, str] = {}
    if "SSL" in _PROTOCOLS[listener]:
        settings |= _tls_settings(prefix, tls, verify=listener == "mtls")
    if "SASL" in _PROTOCOLS[listener]:
        plain_users = "".join(f' user_{user}="{password}"' for user, password in users.items())
        logins = {
            "plain": f"{_SECURITY_PACKAGE}.plain.PlainLoginModule required{plain_users};",
            "scram-sha-256": f"{_SECURITY_PACKAGE}.scram.ScramLoginModule required;",
            "scram-sha-512": f"{_SECURITY_PACKAGE}.scram.ScramLoginModule required;",
            "oauthbearer": (
                f'{_SECURITY_PACKAGE}.oauthbearer.OAuthBearerLoginModule required unsecuredLoginStringClaim_sub="b";'
            ),
        }
        settings[f"{prefix}.sasl.enabled.mechanisms"] = ",".join(MECHANISMS)
        settings |= {f"{prefix}.{mechanism}.sasl.jaas.config": login for mechanism, login in logins.items()}
    return settings


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
