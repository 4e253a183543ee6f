"""Test the errors of the Kafka sink: class, named settings, and text in a golden file."""

from __future__ import annotations

import socket
import ssl
from datetime import timedelta
from typing import Any, NamedTuple

import pytest
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
)

from bridge.core.errors import TransientError
from config.sinks.kafka import KafkaSettings
from sinks.kafka import errors
from sinks.kafka.admin import AdminClient, CompactionError, Partition, Topic
from tests.golden import Golden
from tests.virtual_time import VirtualClock

SERVER = "k1:9092"
SASL = {"mechanism": "scram-sha-256", "username": "bridge", "password": "s3cret"}
TLS = {"enabled": True, "ca_file": "/run/ca.pem"}
CERTIFICATE = TLS | {"cert_file": "/run/cert.pem"}


def settings(**options: Any) -> KafkaSettings:
    return KafkaSettings.model_validate({"bootstrap_servers": SERVER, "topic": "events", **options})


def certificate_error(code: int, message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_code, error.verify_message = code, message
    return error


def alert(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("case", "error", "options", "named"),
    [
        ("timeout", TimeoutError(), {}, []),
        ("unknown host", socket.gaierror(-2, "Name or service not known"), {}, ["Name or service not known"]),
        ("no listener", ConnectionRefusedError(111, "Connection refused"), {}, ["no listener"]),
        ("unreachable", OSError(101, "Network is unreachable"), {}, ["Network is unreachable"]),
        ("closed", KafkaConnectionError("x"), {}, ["kafkas://", "tls.enabled", "(auth)"]),
        ("closed, sasl", KafkaConnectionError("x"), {"auth": SASL}, ["kafkas://", "tls.enabled"]),
        ("closed, tls", KafkaConnectionError("x"), {"tls": TLS}, ["TLS", "(auth)"]),
        ("closed, tls and sasl", KafkaConnectionError("x"), {"tls": TLS, "auth": SASL}, ["TLS"]),
        (
            "authentication failed",
            SaslAuthenticationFailed(),
            {"auth": SASL},
            ["user bridge", "scram-sha-256", "auth.password"],
        ),
        ("mechanism", UnsupportedSaslMechanismError(), {"auth": SASL}, ["auth.mechanism"]),
        ("authentication not supported", IllegalSaslStateError(), {"auth": SASL}, ["auth"]),
        (
            "certificate of another host",
            certificate_error(62, "Hostname mismatch"),
            {"tls": TLS},
            ["Hostname mismatch"],
        ),
        ("not trusted", certificate_error(20, "unable to get issuer"), {"tls": TLS}, ["/run/ca.pem"]),
        ("not trusted, no ca", certificate_error(20, "no issuer"), {"tls": {"enabled": True}}, ["tls.ca_file"]),
        ("certificate required", alert("TLSV13_ALERT_CERTIFICATE_REQUIRED"), {"tls": TLS}, ["tls.cert_file"]),
        ("certificate rejected", alert("TLSV1_ALERT_UNKNOWN_CA"), {"tls": CERTIFICATE}, ["/run/cert.pem"]),
        ("no tls", alert("WRONG_VERSION_NUMBER"), {"tls": TLS}, ["TLS", "wrong version number"]),
    ],
)
def test_kafka_connect_error_names_server_and_setting(
    case: str, error: Exception, options: dict[str, Any], named: list[str], golden: Golden
) -> None:
    text = errors.describe_connect_error(error, SERVER, settings(**options))
    assert text.startswith(f"{SERVER}: ")
    assert [name for name in named if name not in text] == []
    assert "s3cret" not in text
    golden.entry("kafka_errors", f"connecting, {case}", text)


@pytest.mark.parametrize(
    ("error", "named"),
    [
        (TopicAuthorizationFailedError(), ["topic events", "Describe", "Write"]),
        (ClusterAuthorizationFailedError(), ["IdempotentWrite"]),
    ],
)
def test_kafka_permission_error_names_user_and_operation(error: Exception, named: list[str], golden: Golden) -> None:
    text = errors.describe_denial(error, "events", settings(auth=SASL)) or ""
    assert [name for name in ["user bridge", *named] if name not in text] == []
    golden.entry("kafka_errors", f"not allowed, {type(error).__name__}", text)
    assert errors.describe_denial(UnknownTopicOrPartitionError(), "events", settings()) is None


@pytest.mark.parametrize(
    ("case", "options", "named"),
    [
        ("user", {"auth": SASL}, "bridge"),
        ("token", {"auth": {"mechanism": "oauthbearer", "token_file": "/run/token"}}, "token"),
        ("certificate", {"tls": CERTIFICATE}, "certificate"),
        ("nothing", {}, "anonymous"),
    ],
)
def test_kafka_principal_names_user_or_credential(
    case: str, options: dict[str, Any], named: str, golden: Golden
) -> None:
    assert named in errors.principal(settings(**options))
    golden.entry("kafka_errors", f"identity, {case}", errors.principal(settings(**options)))


class Response(NamedTuple):
    """A response to a request for metadata, for the creation of a topic, or for its configs."""

    topics: tuple[Any, ...] = ()
    brokers: tuple[Any, ...] = ((1, "k1", 9092),)
    topic_errors: tuple[Any, ...] = ()
    resources: tuple[Any, ...] = ()


class FakeConnection:
    """Return the given responses in turn."""

    def __init__(self, *responses: Response) -> None:
        self._responses = list(responses)

    async def send(self, _: Any) -> Response:
        return self._responses.pop(0)


EXISTING = Response(topics=((0, "events", False, [(0, 0, 1, [1], [1])]),))
MISSING = Response(topics=((UnknownTopicOrPartitionError.errno, "events", False, []),))


@pytest.mark.parametrize(
    ("case", "options", "responses", "named"),
    [
        (
            "auto_create disabled",
            {"auto_create": False},
            [MISSING],
            ["create", "--topic events --partitions 1", "delete"],
        ),
        (
            "create not allowed",
            {"auth": SASL},
            [MISSING, Response(topic_errors=(("events", TopicAuthorizationFailedError.errno, None),))],
            ["user bridge", "Create", "--topic events"],
        ),
        (
            "too many replicas",
            {"replication_factor": 3},
            [MISSING, Response(topic_errors=(("events", 38, "Replication factor: 3 larger than brokers: 1."),))],
            ["Replication factor: 3", "--topic events"],
        ),
        (
            "describe not allowed",
            {"auth": SASL},
            [Response(topics=((TopicAuthorizationFailedError.errno, "events", False, []),))],
            ["user bridge", "Describe", "Write"],
        ),
        ("no brokers", {}, [Response(brokers=())], [SERVER]),
        (
            "no brokers, token",
            {"auth": {"mechanism": "oauthbearer", "token_file": "/run/token"}},
            [Response(brokers=())],
            [SERVER, "/run/token"],
        ),
    ],
)
async def test_unusable_kafka_topic_error_names_topic_and_remedy(
    case: str, options: dict[str, Any], responses: list[Response], named: list[str], golden: Golden
) -> None:
    cluster = AdminClient(settings(**options), FakeConnection(*responses), SERVER)
    with golden.error("kafka_errors", f"topic, {case}", TransientError, *named):
        await cluster.ensure_topic("events", VirtualClock(), is_compacted=False)


@pytest.mark.parametrize(
    ("retention_ms", "policy", "retention"),
    [
        ("60000", "delete", timedelta(minutes=1)),
        ("60000", "compact,delete", timedelta(minutes=1)),
        ("60000", "compact", None),
        ("-1", "delete", None),
        ("9223372036854775807", "delete", None),  # Java's Long.MAX_VALUE, a usual value for "never"
    ],
)
async def test_kafka_retention_is_none_when_records_never_expire(
    retention_ms: str, policy: str, retention: timedelta | None
) -> None:
    configs = [("cleanup.policy", policy), ("retention.ms", retention_ms)]
    described = Response(resources=((0, "", 2, "events", configs),))
    cluster = AdminClient(settings(), FakeConnection(EXISTING, described), SERVER)
    topic = await cluster.ensure_topic("events", VirtualClock(), is_compacted="compact" in policy)
    assert topic.retention == retention


@pytest.mark.parametrize(
    ("topic_kind", "policy"), [("event", "compact"), ("event", "compact,delete"), ("state", "delete")]
)
async def test_wrong_kafka_cleanup_policy_raises_compaction_error(
    topic_kind: str, policy: str, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fake_topic(*_: object) -> Topic:
        return Topic("events", {0: Partition(SERVER, 1, 1)}, None, policy)

    cluster = AdminClient(settings(), FakeConnection(), SERVER)
    monkeypatch.setattr(cluster, "_ensure_topic", fake_topic)
    with golden.error(
        "kafka_errors", f"cleanup.policy {policy} of the {topic_kind} topic", CompactionError, "cleanup.policy", policy
    ):
        await cluster.ensure_topic("events", VirtualClock(), is_compacted=topic_kind == "state")
