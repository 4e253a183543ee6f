"""The testbed's Kafka: storage, authentication, permissions, failures and cleanup."""

from __future__ import annotations

import asyncio
import gc
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.abc import AbstractTokenProvider
from aiokafka.errors import KafkaError, TopicAlreadyExistsError, TopicAuthorizationFailedError

from tests.certificates import Authority, Certificate
from tests.eventually import eventually
from tests.integration.leaks import find_leaks
from tests.testbed import kcat
from tests.testbed.kafka import USERS, Kafka
from tests.testbed.kafka_config import MECHANISMS, Listener, unsecured_jwt
from tests.testbed.process import run

KafkaFactory = Callable[..., Kafka]

USER = "bridge"
RIGHT, WRONG = USERS[USER], "other"


class FixedTokenProvider(AbstractTokenProvider):  # type: ignore[misc]
    """Returns a fixed token."""

    def __init__(self, token: str) -> None:
        self._token = token

    async def token(self) -> str:
        return self._token


async def store(bootstrap: str, topic: str, *, seconds: int = 30, **options: Any) -> int:
    """Send one record with acks=all, and return its offset; ``seconds`` is the timeout of an attempt.

    The default is long: after an attempt that was only slow, the next one would store the record twice.
    """
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", request_timeout_ms=seconds * 1000, **options)
    try:
        async with asyncio.timeout(seconds + 10):
            await producer.start()
            return int((await producer.send_and_wait(topic, b"hello")).offset)
    finally:
        await producer.stop()


def tls_options(authority: Authority, own: Certificate | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if own:
        context.load_cert_chain(own.certificate, own.key)
    return context


def sasl(mechanism: str, password: str) -> dict[str, Any]:
    """Return options for the client; for OAUTHBEARER, a wrong password means an expired token."""
    if mechanism == "OAUTHBEARER":
        token = unsecured_jwt(USER, seconds=3600 if password == RIGHT else -3600)
        return {"sasl_mechanism": mechanism, "sasl_oauth_token_provider": FixedTokenProvider(token)}
    return {"sasl_mechanism": mechanism, "sasl_plain_username": USER, "sasl_plain_password": password}


async def test_testbed_kafka_stores_and_reads_records(kafka: Kafka) -> None:
    kafka.admin.create_topic("stored", settings={"retention.ms": "3600000"})
    for compression in (None, "gzip", "snappy", "lz4", "zstd"):
        await store(kafka.bootstrap, "stored", compression_type=compression)
    records = kafka.admin.records("stored")
    assert [(record.offset, record.value) for record in records] == [(offset, b"hello") for offset in range(5)]


def test_testbed_kafka_creates_changes_and_deletes_topics(kafka: Kafka) -> None:
    kafka.admin.create_topic("changing", partitions=2, settings={"retention.ms": "3600000"})
    with pytest.raises(TopicAlreadyExistsError, match="changing"):
        kafka.admin.create_topic("changing")
    assert len(kafka.admin.describe("changing")["partitions"]) == 2
    kafka.admin.alter_topic("changing", {"cleanup.policy": "compact"})
    settings = kafka.admin.describe("changing")["settings"]
    assert (settings["cleanup.policy"], settings["retention.ms"]) == ("compact", "604800000")
    kafka.admin.delete_topic("changing")
    assert "changing" not in kafka.admin.topics()


def test_testbed_kcat_writes_records(kafka: Kafka, tmp_path: Path, require: Callable[..., None]) -> None:
    require(*kcat.COMPONENTS)
    kafka.admin.create_topic("kcat")
    (tmp_path / "lines").write_text("one\ntwo\n")
    command = ["kcat", "-P", "-b", kafka.bootstrap, "-t", "kcat", "-l", str(tmp_path / "lines")]
    run(command, env=kcat.environment())
    assert [record.value for record in kafka.admin.records("kcat")] == [b"one", b"two"]


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # aiokafka leaves a rejected OAUTHBEARER connection open
@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("listener", ["sasl_plaintext", "sasl_ssl"])
async def test_testbed_kafka_checks_sasl_password(
    kafka: Kafka, authority: Authority, listener: Listener, mechanism: str
) -> None:
    topic = f"{listener}-{mechanism}"
    kafka.admin.create_topic(topic)
    options: dict[str, Any] = {"security_protocol": listener.upper()}
    options |= {"ssl_context": tls_options(authority)} if listener == "sasl_ssl" else {}
    bootstrap = kafka.bootstrap_for(listener)
    assert await store(bootstrap, topic, **options, **sasl(mechanism, RIGHT)) == 0
    with pytest.raises(KafkaError):
        await store(bootstrap, topic, seconds=3, **options, **sasl(mechanism, WRONG))
    gc.collect()  # reports open connections in this test, not in the next one


async def test_testbed_kafka_checks_tls_and_client_certificates(
    kafka: Kafka, authority: Authority, tmp_path: Path
) -> None:
    kafka.admin.create_topic("tls-and-mtls")
    own = tls_options(authority, authority.issue(USER, hosts=()))
    assert (
        await store(
            kafka.bootstrap_for("ssl"), "tls-and-mtls", security_protocol="SSL", ssl_context=tls_options(authority)
        )
        == 0
    )
    assert await store(kafka.bootstrap_for("mtls"), "tls-and-mtls", security_protocol="SSL", ssl_context=own) == 1
    contexts: dict[Listener, ssl.SSLContext] = {"ssl": tls_options(Authority(tmp_path)), "mtls": tls_options(authority)}
    for listener, wrong in contexts.items():
        with pytest.raises(KafkaError):
            await store(kafka.bootstrap_for(listener), "tls-and-mtls", security_protocol="SSL", ssl_context=wrong)


async def test_testbed_kafka_enforces_acls(kafka_factory: KafkaFactory, authority: Authority) -> None:
    kafka = kafka_factory(listeners=["sasl_plaintext", "mtls"], authority=authority, acls=True)
    kafka.admin.create_topic("events")
    sasl_options = {"security_protocol": "SASL_PLAINTEXT", **sasl("SCRAM-SHA-512", RIGHT)}
    tls_client = {
        "security_protocol": "SSL",
        "ssl_context": tls_options(authority, authority.issue("certified", hosts=())),
    }
    users: list[tuple[str, Listener, dict[str, Any]]] = [
        (f"User:{USER}", "sasl_plaintext", sasl_options),
        ("User:CN=certified", "mtls", tls_client),
    ]
    for principal, listener, options in users:
        with pytest.raises(TopicAuthorizationFailedError):
            await store(kafka.bootstrap_for(listener), "events", **options)
        kafka.admin.allow(principal, "write", "topic", "ev", prefixed=True)
        assert await store(kafka.bootstrap_for(listener), "events", **options) >= 0


async def test_testbed_kafka_keeps_records_across_restarts(kafka_factory: KafkaFactory) -> None:
    kafka = kafka_factory()
    kafka.admin.create_topic("events")
    assert await store(kafka.bootstrap, "events") == 0
    kafka.kill()
    kafka.start()
    assert await store(kafka.bootstrap, "events") == 1
    kafka.stop()
    kafka.start()
    assert await store(kafka.bootstrap, "events") == 2


async def test_testbed_kafka_fails_and_recovers_on_request(kafka_factory: KafkaFactory) -> None:
    kafka = kafka_factory(proxied=True)
    kafka.admin.create_topic("events")
    bootstrap = kafka.bootstrap_for("plaintext")
    assert await store(bootstrap, "events") == 0
    assert kafka.proxies[0].accepted > 1  # the bootstrap connection, and the one to the broker
    for fail, restore in (
        (kafka.suspend, kafka.resume),
        (kafka.proxies[0].refuse, kafka.proxies[0].restore),
        (kafka.proxies[0].drop_traffic, kafka.proxies[0].restore),
    ):
        fail()
        with pytest.raises((TimeoutError, KafkaError)):
            await store(bootstrap, "events", seconds=3)
        restore()
        assert await store(bootstrap, "events") > 0


async def test_testbed_kafka_cluster_elects_another_leader(kafka_factory: KafkaFactory) -> None:
    kafka = kafka_factory(3)
    kafka.admin.create_topic("events")
    eventually(lambda: in_sync(kafka) == 3, "three replicas")
    assert await store(kafka.bootstrap, "events") == 0
    first = kafka.leader("events")
    first.kill()
    assert kafka.leader("events") is not first
    assert await store(kafka.bootstrap, "events") == 1
    first.start()
    eventually(lambda: in_sync(kafka) == 3, "the broker to rejoin the ISR")


def in_sync(kafka: Kafka) -> int:
    return len(kafka.admin.describe("events")["partitions"][0]["isr"])


def test_testbed_kafka_leaves_nothing_behind(kafka_factory: KafkaFactory) -> None:
    kafka = kafka_factory()
    kafka.suspend()
    assert find_leaks(kafka.directory)
    kafka.close()
    assert find_leaks(kafka.directory) == []


def test_testbed_kafka_is_cleaned_up_when_tests_are_killed(kafka: Kafka) -> None:
    assert kafka
    start = "kafka = Kafka(); kafka.start(); print(kafka.directory, flush=True); input()"
    program = f"from tests.testbed.kafka import Kafka; {start}"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tests:
        assert tests.stdout is not None
        directory = Path(tests.stdout.readline().decode().strip())
        assert find_leaks(directory)
        tests.kill()
    eventually(lambda: not find_leaks(directory), "the cleanup")
