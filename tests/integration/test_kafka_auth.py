"""Authentication, TLS and permissions of the Kafka sink: errors name the wrong setting and never contain a secret."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from bridge.core.errors import RejectedRecordError, TransientError
from sinks.kafka import sink as kafka_sink
from sinks.kafka.messages import Message, event_messages
from tests.certificates import Authority
from tests.integration.kafka_sinks import distinct_values, open_sink, record_data
from tests.integration.target_checks import publish_until_accepted
from tests.naming import assert_names, raises_naming
from tests.sample_records import EPOCH, record, records
from tests.testbed.kafka import COMPONENTS, LONG_SESSION_TIMEOUT, USERS, Kafka
from tests.testbed.kafka_config import Listener, unsecured_jwt

MECHANISMS = ["plain", "scram-sha-256", "scram-sha-512"]
SECRET = "hunter2-swordfish"  # noqa: S105 (not a real password)
USER = "bridge"


@pytest.fixture(scope="module")
def restricted_kafka(require: Callable[..., None], authority: Authority) -> Iterator[Kafka]:
    """Return a Kafka with a certificate for other hosts, whose users have no permissions unless granted."""
    require(*COMPONENTS)
    with Kafka(
        listeners=("sasl_plaintext", "ssl"),
        users={name: f"{name}-password" for name in ("writer", "owner", "least", "reader", "keeper", "stateful")},
        authority=authority,
        certificate=authority.issue("broker", hosts=("elsewhere.example", "127.0.0.9")),
        acls=True,
        settings=LONG_SESSION_TIMEOUT,
    ) as restricted_kafka:
        yield restricted_kafka


def auth(user: str = USER, **options: Any) -> dict[str, Any]:
    return {"mechanism": "scram-sha-256", "username": user, **options}


def tls(authority: Authority, **options: Any) -> dict[str, Any]:
    return {"enabled": True, "ca_file": str(authority.certificate), **options}


async def publish_error(peer: str, **options: Any) -> str:
    """Publish, and return the text of the error."""
    with pytest.raises(TransientError) as caught:
        async with open_sink(peer, "closed", **options) as sink:
            await sink.publish([record(1)])
    text = str(caught.value)
    error: BaseException | None = caught.value
    while error:
        assert SECRET not in str(error)
        assert SECRET not in repr(error)
        error = error.__cause__ or error.__context__
    return text


# --- authentication ---


@pytest.mark.parametrize(
    ("listener", "mechanism"), [*(("sasl_plaintext", each) for each in MECHANISMS), ("sasl_ssl", "scram-sha-512")]
)
async def test_kafka_sink_publishes_with_correct_password(
    kafka: Kafka, authority: Authority, listener: Listener, mechanism: str, tmp_path: Path
) -> None:
    topic = f"{listener}-{mechanism}"
    file = tmp_path / "password"
    file.write_text(f"{USERS[USER]}\n")
    secure: dict[str, Any] = {"tls": tls(authority)} if listener == "sasl_ssl" else {}
    bootstrap = kafka.bootstrap_for(listener)
    for credentials in (
        auth(mechanism=mechanism, password=USERS[USER]),
        auth(mechanism=mechanism, password_file=str(file)),
    ):
        async with open_sink(bootstrap, topic, auth=credentials, **secure) as sink:
            await sink.publish([record(1)])
    assert len(kafka.admin.records(topic)) == 2


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("user", [USER, "stranger"])
async def test_fault_32_kafka_password_is_wrong(kafka: Kafka, mechanism: str, user: str) -> None:
    credentials = auth(user, mechanism=mechanism, password=SECRET)
    text = await publish_error(kafka.bootstrap_for("sasl_plaintext"), auth=credentials)
    assert_names(text, f"user {user}", mechanism, "auth.password")


async def test_kafka_sink_accepts_token_file_and_reports_expired_token(kafka: Kafka, tmp_path: Path) -> None:
    file = tmp_path / "token"
    auth = {"mechanism": "oauthbearer", "token_file": str(file)}
    bootstrap = kafka.bootstrap_for("sasl_plaintext")
    file.write_text(unsecured_jwt(USER) + "\n")
    async with open_sink(bootstrap, "token", auth=auth) as sink:
        await sink.publish([record(1)])
    assert len(kafka.admin.records("token")) == 1
    for token in (unsecured_jwt(USER, seconds=-60), SECRET):
        file.write_text(token)
        assert_names(await publish_error(bootstrap, auth=auth), bootstrap, f"token_file {file}")
    file.write_text(" \n")
    assert_names(await publish_error(bootstrap, auth=auth), f"auth.token_file {file}")
    file.unlink()
    assert_names(await publish_error(bootstrap, auth=auth), f"auth.token_file {file}", "No such file or directory")


async def test_kafka_sink_accepts_token_of_command(kafka: Kafka, tmp_path: Path) -> None:
    file = tmp_path / "token"
    auth = {"mechanism": "oauthbearer", "token_command": ["/bin/cat", str(file)]}
    bootstrap = kafka.bootstrap_for("sasl_plaintext")
    file.write_text(unsecured_jwt(USER) + "\n")
    async with open_sink(bootstrap, "command", state_topic="command.state", auth=auth) as sink:
        await sink.publish([record(1)])
        await sink.close()
        file.write_text(SECRET)
        with raises_naming(TransientError, bootstrap, "auth.token_command /bin/cat"):
            await sink.publish([record(2)])
        file.write_text(unsecured_jwt(USER))
        await publish_until_accepted(sink, [record(2)])
    assert len(kafka.admin.records("command")) == 2
    file.unlink()
    assert_names(await publish_error(bootstrap, auth=auth), bootstrap, "auth.token_command /bin/cat", "No such file")


async def test_kafka_sink_reports_auth_unsupported_by_listener(restricted_kafka: Kafka, kafka: Kafka) -> None:
    bootstrap = kafka.bootstrap
    assert_names(await publish_error(bootstrap, auth=auth(password=SECRET)), bootstrap, "auth")
    sasl_bootstrap = restricted_kafka.bootstrap_for("sasl_plaintext")
    assert_names(await publish_error(sasl_bootstrap), sasl_bootstrap, "kafkas://", "tls.enabled", "(auth)")


async def test_fault_32_kafka_password_is_replaced(kafka: Kafka, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET)
    all_records = records(10)
    bootstrap = kafka.bootstrap_for("sasl_plaintext")
    with raises_naming(TransientError, "user bridge", "scram-sha-256", file):
        async with open_sink(bootstrap, "rotated", auth=auth(password_file=str(file))) as sink:
            pass
    async with open_sink(kafka, "rotated"):
        pass
    file.write_text(USERS[USER])
    async with open_sink(bootstrap, "rotated", auth=auth(password_file=str(file))) as sink:
        await sink.publish(all_records[:5])
        file.write_text(SECRET)
        await sink.close()  # as after any error: the next attempt rereads the file
        with raises_naming(TransientError, "user bridge", file):
            await sink.publish(all_records[5:])
        file.write_text(USERS[USER])
        await publish_until_accepted(sink, all_records[5:])
    assert [each.value for each in kafka.admin.records("rotated")] == record_data(all_records)


# --- TLS ---


async def test_kafka_sink_publishes_over_tls_and_mtls(kafka: Kafka, authority: Authority) -> None:
    client = authority.issue(USER, password=SECRET)
    own = {"cert_file": str(client.certificate), "key_file": str(client.key), "key_password": SECRET}
    async with open_sink(kafka.bootstrap_for("ssl"), "tls", tls=tls(authority)) as sink:
        await sink.publish([record(1)])
    async with open_sink(kafka.bootstrap_for("mtls"), "tls", tls=tls(authority, **own)) as sink:
        await sink.publish([record(2)])
    assert len(kafka.admin.records("tls")) == 2


async def test_fault_32_kafka_certificate_is_untrusted(kafka: Kafka, authority: Authority, tmp_path: Path) -> None:
    bootstrap = kafka.bootstrap_for("ssl")
    other = Authority(tmp_path / "other", "another authority")
    text = await publish_error(bootstrap, tls=tls(other))
    assert_names(text, bootstrap, "unable to get local issuer certificate", other.certificate)
    assert_names(await publish_error(bootstrap, tls={"enabled": True}), bootstrap, "tls.ca_file")
    assert authority.certificate != other.certificate


async def test_kafka_sink_distrusts_server_certificate_for_other_host(
    restricted_kafka: Kafka, authority: Authority
) -> None:
    bootstrap = restricted_kafka.bootstrap_for("ssl")
    assert_names(await publish_error(bootstrap, tls=tls(authority)), bootstrap, "IP address mismatch")
    bootstrap = bootstrap.replace("127.0.0.1", "localhost")
    assert_names(await publish_error(bootstrap, tls=tls(authority)), bootstrap, "Hostname mismatch")


async def test_kafka_sink_reports_missing_or_wrong_client_certificate(
    kafka: Kafka, authority: Authority, tmp_path: Path
) -> None:
    bootstrap = kafka.bootstrap_for("mtls")
    assert_names(await publish_error(bootstrap, tls=tls(authority)), bootstrap, "tls.cert_file")
    untrusted = Authority(tmp_path / "untrusted", "another authority").issue(USER)
    own = {"cert_file": str(untrusted.certificate), "key_file": str(untrusted.key)}
    text = await publish_error(bootstrap, tls=tls(authority, **own))
    assert_names(text, bootstrap, untrusted.certificate)


async def test_kafka_sink_reports_plaintext_and_tls_mismatch(kafka: Kafka, authority: Authority) -> None:
    assert_names(await publish_error(kafka.bootstrap, tls=tls(authority)), kafka.bootstrap, "TLS")
    tls_bootstrap = kafka.bootstrap_for("ssl")
    assert_names(await publish_error(tls_bootstrap), tls_bootstrap, "tls.enabled")


# --- servers ---


async def test_kafka_sink_reports_reason_for_each_unusable_server(kafka: Kafka) -> None:
    port = kafka.bootstrap.rpartition(":")[2]
    text = await publish_error(f"127.0.0.1:1,no.such.host.invalid:{port}")
    assert_names(text, "127.0.0.1:1: connection refused", f"no.such.host.invalid:{port}: ")
    async with open_sink(f"127.0.0.1:1,{kafka.bootstrap}", "second") as sink:
        await sink.publish([record(1)])


# --- permissions ---


def acl_settings(user: str) -> dict[str, Any]:
    return {"auth": auth(user, password=f"{user}-password")}


async def test_kafka_sink_needs_only_describe_and_write_permission(restricted_kafka: Kafka) -> None:
    """As documented in docs/kafka.md: Describe and Write on an existing topic."""
    bootstrap = restricted_kafka.bootstrap_for("sasl_plaintext")
    restricted_kafka.admin.create_topic("given")
    text = await publish_error(bootstrap, **acl_settings("least") | {"auto_create": False})
    assert_names(text, "user least", "topic closed", "Describe", "Write")
    restricted_kafka.admin.allow("User:least", "write", "given")  # implies Describe
    with capture_logs() as logs:
        async with open_sink(bootstrap, "given", **acl_settings("least")) as sink:
            await sink.publish([record(1)])
    (unreadable,) = [line for line in logs if line["event"] == "topic_config_unreadable"]
    assert_names(unreadable["hint"], "DescribeConfigs")
    assert len(restricted_kafka.admin.records("given")) == 1


async def test_kafka_sink_creates_topic_when_permitted(restricted_kafka: Kafka) -> None:
    bootstrap = restricted_kafka.bootstrap_for("sasl_plaintext")
    restricted_kafka.admin.allow("User:owner", "write", "owned")
    with raises_naming(TransientError, "topic owned", "user owner", "Create"):
        async with open_sink(bootstrap, "owned", **acl_settings("owner")):
            pass
    restricted_kafka.admin.allow("User:owner", "create", "owned")
    restricted_kafka.admin.allow("User:owner", "describe_configs", "owned")
    async with open_sink(bootstrap, "owned", **acl_settings("owner")) as sink:
        await sink.publish([record(1)])
    assert restricted_kafka.admin.describe("owned")["settings"]["cleanup.policy"] == "delete"


async def test_kafka_sink_fails_when_write_permission_is_missing(restricted_kafka: Kafka) -> None:
    bootstrap = restricted_kafka.bootstrap_for("sasl_plaintext")
    restricted_kafka.admin.create_topic("visible")
    restricted_kafka.admin.allow("User:reader", "describe", "visible")
    with raises_naming(TransientError, "user reader", "topic visible"):
        async with open_sink(bootstrap, "visible", **acl_settings("reader")) as sink:
            await sink.publish([record(1)])


async def test_kafka_sink_needs_read_permission_on_state_topic(restricted_kafka: Kafka) -> None:
    bootstrap = restricted_kafka.bootstrap_for("sasl_plaintext")
    for topic, policy in (("stream", "delete"), ("state", "compact")):
        restricted_kafka.admin.create_topic(topic, settings={"cleanup.policy": policy})
        restricted_kafka.admin.allow("User:stateful", "write", topic)
    with raises_naming(TransientError, "user stateful", "state_topic state", "Read"):
        async with open_sink(bootstrap, "stream", state_topic="state", **acl_settings("stateful")) as sink:
            await sink.publish([record(1)])
    restricted_kafka.admin.allow("User:stateful", "read", "state")
    async with open_sink(bootstrap, "stream", state_topic="state", **acl_settings("stateful")) as sink:
        await sink.publish([record(1)])
    assert len(restricted_kafka.admin.records("state")) == 1


async def test_kafka_sink_identifies_record_rejected_by_broker_rule(
    restricted_kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compacted topic rejects records without a key; this user may not read the topic's `cleanup.policy`."""
    bootstrap, all_records = restricted_kafka.bootstrap_for("sasl_plaintext"), records(1000)
    restricted_kafka.admin.create_topic("keyed", settings={"cleanup.policy": "compact"})
    restricted_kafka.admin.allow("User:keeper", "write", "keyed")

    def messages_without_key(*arguments: Any) -> list[Message]:
        messages = event_messages(*arguments)
        no_key: Any = None
        return [each._replace(key=no_key) if each.position == (EPOCH, 700) else each for each in messages]

    monkeypatch.setattr(kafka_sink, "event_messages", messages_without_key)
    async with open_sink(bootstrap, "keyed", **acl_settings("keeper")) as sink:
        with raises_naming(RejectedRecordError, "topic keyed") as caught:
            await sink.publish(all_records)
        assert caught.value.positions == {(EPOCH, 700)}
        assert [each.value for each in restricted_kafka.admin.records("keyed")] == record_data(all_records[:699])
        del all_records[699]
        await sink.publish(all_records)
    assert distinct_values(restricted_kafka.admin.records("keyed")) == record_data(all_records)
