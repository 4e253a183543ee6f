"""Who may publish to Kafka: every way of logging in, right and wrong. What is wrong is named, and never a secret."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.core.errors import RejectedRecordError, TransientError
from sinks.kafka.messages import Message, event_messages
from tests.certificates import Authority
from tests.integration.kafka_sinks import distinct_values, open_sink, publish_until_accepted, record_data
from tests.naming import assert_names, raises_naming
from tests.sample_records import EPOCH, record, records
from tests.testbed.kafka import LONG_SESSION_TIMEOUT, USERS, Kafka
from tests.testbed.kafka_config import Listener, unsecured_jwt

MECHANISMS = ["plain", "scram-sha-256", "scram-sha-512"]
SECRET = "hunter2-swordfish"  # noqa: S105 (it opens nothing)
USER = "bridge"


@pytest.fixture(scope="module")
def restricted_kafka(kafka: Kafka) -> Iterator[Kafka]:
    """A Kafka that allows nothing to those who log in, unless told so. (`kafka` sees to it that it is installed.)"""
    assert kafka.servers
    users = {name: f"{name}-password" for name in ("writer", "owner", "least", "nobody", "keeper", "stateful")}
    with Kafka(
        listeners=("sasl_plaintext",), users=users, acls=True, settings=LONG_SESSION_TIMEOUT
    ) as restricted_kafka:
        yield restricted_kafka


def auth(user: str = USER, **options: Any) -> dict[str, Any]:
    return {"mechanism": "scram-sha-256", "username": user, **options}


def tls(authority: Authority, **options: Any) -> dict[str, Any]:
    return {"enabled": True, "ca_file": str(authority.certificate), **options}


async def publish_error(peer: str, **options: Any) -> str:
    """What is said where publishing does not work."""
    with pytest.raises(TransientError) as caught:
        async with open_sink(peer, "closed", **options) as made:
            await made.publish([record(1)])
    text = str(caught.value)
    error: BaseException | None = caught.value
    while error:
        assert SECRET not in str(error)
        assert SECRET not in repr(error)
        error = error.__cause__ or error.__context__
    return text


# --- logins ---


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("listener", ["sasl_plaintext", "sasl_ssl"])
async def test_kafka_sink_publishes_with_correct_password(
    kafka: Kafka, authority: Authority, listener: Listener, mechanism: str, tmp_path: Path
) -> None:
    topic = f"{listener}-{mechanism}"
    file = tmp_path / "password"
    file.write_text(f"{USERS[USER]}\n")
    secure: dict[str, Any] = {"tls": tls(authority)} if listener == "sasl_ssl" else {}
    where = kafka.bootstrap_for(listener)
    for credentials in (
        auth(mechanism=mechanism, password=USERS[USER]),
        auth(mechanism=mechanism, password_file=str(file)),
    ):
        async with open_sink(where, topic, auth=credentials, **secure) as made:
            await made.publish([record(1)])
    assert len(kafka.admin.records(topic)) == 2


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("user", [USER, "stranger"])
async def test_kafka_sink_reports_wrong_user_or_password(kafka: Kafka, mechanism: str, user: str) -> None:
    credentials = auth(user, mechanism=mechanism, password=SECRET)
    text = await publish_error(kafka.bootstrap_for("sasl_plaintext"), auth=credentials)
    assert_names(text, f"user {user}", mechanism, "auth.password")


async def test_kafka_sink_accepts_token_file_and_reports_expired_token(kafka: Kafka, tmp_path: Path) -> None:
    file = tmp_path / "token"
    auth = {"mechanism": "oauthbearer", "token_file": str(file)}
    where = kafka.bootstrap_for("sasl_plaintext")
    file.write_text(unsecured_jwt(USER) + "\n")
    async with open_sink(where, "token", auth=auth) as made:
        await made.publish([record(1)])
    assert len(kafka.admin.records("token")) == 1
    for token in (unsecured_jwt(USER, seconds=-60), SECRET):
        file.write_text(token)
        assert_names(await publish_error(where, auth=auth), where, f"token_file {file}")
    file.write_text(" \n")
    assert_names(await publish_error(where, auth=auth), f"auth.token_file {file}")
    file.unlink()
    assert_names(await publish_error(where, auth=auth), f"auth.token_file {file}", "No such file or directory")


async def test_kafka_sink_reports_auth_unsupported_by_listener(restricted_kafka: Kafka, kafka: Kafka) -> None:
    where = kafka.bootstrap
    assert_names(await publish_error(where, auth=auth(password=SECRET)), where, "auth")
    for_logins = restricted_kafka.bootstrap_for("sasl_plaintext")
    assert_names(await publish_error(for_logins), for_logins, "kafkas://", "tls.enabled", "(auth)")


async def test_kafka_sink_rereads_replaced_password_file(kafka: Kafka, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET)
    whole = records(10)
    where = kafka.bootstrap_for("sasl_plaintext")
    with raises_naming(TransientError, "user bridge", "scram-sha-256", file):
        async with open_sink(where, "rotated", auth=auth(password_file=str(file))) as made:
            pass
    async with open_sink(kafka, "rotated"):
        pass
    file.write_text(USERS[USER])
    async with open_sink(where, "rotated", auth=auth(password_file=str(file))) as made:
        await made.publish(whole[:5])
        file.write_text(SECRET)
        await made.close()  # as after any error: the next attempt reads the file anew
        with raises_naming(TransientError, "user bridge", file):
            await made.publish(whole[5:])
        file.write_text(USERS[USER])
        await publish_until_accepted(made, whole[5:])
    assert [each.value for each in kafka.admin.records("rotated")] == record_data(whole)


# --- TLS ---


async def test_kafka_sink_publishes_over_tls_and_mtls(kafka: Kafka, authority: Authority) -> None:
    ours = authority.issue(USER, password=SECRET)
    own = {"cert_file": str(ours.certificate), "key_file": str(ours.key), "key_password": SECRET}
    async with open_sink(kafka.bootstrap_for("ssl"), "tls", tls=tls(authority)) as made:
        await made.publish([record(1)])
    async with open_sink(kafka.bootstrap_for("mtls"), "tls", tls=tls(authority, **own)) as made:
        await made.publish([record(2)])
    assert len(kafka.admin.records("tls")) == 2


async def test_kafka_sink_distrusts_server_of_unknown_authority(
    kafka: Kafka, authority: Authority, tmp_path: Path
) -> None:
    where = kafka.bootstrap_for("ssl")
    other = Authority(tmp_path / "other", "another authority")
    text = await publish_error(where, tls=tls(other))
    assert_names(text, where, "unable to get local issuer certificate", other.certificate)
    assert_names(await publish_error(where, tls={"enabled": True}), where, "tls.ca_file")
    assert authority.certificate != other.certificate


async def test_kafka_sink_distrusts_server_certificate_for_other_host(kafka_factory: Any, authority: Authority) -> None:
    certificate = authority.issue("broker", hosts=("elsewhere.example", "127.0.0.9"))
    kafka = kafka_factory(listeners=("ssl",), authority=authority, certificate=certificate)
    where = kafka.bootstrap_of("ssl")
    assert_names(await publish_error(where, tls=tls(authority)), where, "IP address mismatch")
    where = where.replace("127.0.0.1", "localhost")
    assert_names(await publish_error(where, tls=tls(authority)), where, "Hostname mismatch")


async def test_kafka_sink_reports_missing_or_wrong_client_certificate(
    kafka: Kafka, authority: Authority, tmp_path: Path
) -> None:
    where = kafka.bootstrap_for("mtls")
    assert_names(await publish_error(where, tls=tls(authority)), where, "tls.cert_file")
    strange = Authority(tmp_path / "strange", "another authority").issue(USER)
    own = {"cert_file": str(strange.certificate), "key_file": str(strange.key)}
    text = await publish_error(where, tls=tls(authority, **own))
    assert_names(text, where, strange.certificate)


async def test_kafka_sink_reports_missing_or_invalid_tls_files(
    kafka: Kafka, authority: Authority, tmp_path: Path
) -> None:
    where = kafka.bootstrap_for("mtls")
    ours, others = authority.issue(USER, password=SECRET), authority.issue("other")
    rubbish = tmp_path / "rubbish"
    rubbish.write_text(SECRET)
    cert, key = str(ours.certificate), str(ours.key)
    wrong: list[tuple[dict[str, Any], list[str]]] = [
        ({"ca_file": "/nowhere"}, ["tls.ca_file /nowhere", "No such file or directory"]),
        ({"ca_file": str(rubbish)}, [f"tls.ca_file {rubbish}"]),
        ({"cert_file": "/nowhere"}, ["tls.cert_file /nowhere"]),
        ({"cert_file": cert, "key_file": "/nowhere"}, ["tls.key_file /nowhere"]),
        ({"cert_file": cert, "key_file": key}, [f"tls.key_file {key}", "tls.key_password"]),
        ({"cert_file": cert, "key_file": key, "key_password": f"{SECRET}!"}, ["tls.key_password"]),
        ({"cert_file": cert, "key_file": key, "key_password_file": "/nowhere"}, ["tls.key_password_file /nowhere"]),
        ({"cert_file": cert, "key_file": str(others.key)}, [str(others.key), f"tls.cert_file {cert}"]),
        ({"cert_file": str(rubbish)}, [f"tls.cert_file {rubbish}", f"tls.key_file {rubbish}"]),
    ]
    for options, named in wrong:
        assert_names(await publish_error(where, tls=tls(authority) | options), *named)


async def test_kafka_sink_reports_plaintext_and_tls_mismatch(kafka: Kafka, authority: Authority) -> None:
    assert_names(await publish_error(kafka.bootstrap, tls=tls(authority)), kafka.bootstrap, "TLS")
    for_tls = kafka.bootstrap_for("ssl")
    assert_names(await publish_error(for_tls), for_tls, "tls.enabled")


# --- servers ---


async def test_kafka_sink_reports_reason_for_each_unusable_server(kafka: Kafka) -> None:
    port = kafka.bootstrap.rpartition(":")[2]
    text = await publish_error(f"127.0.0.1:1,no.such.host.invalid:{port}")
    assert_names(text, "127.0.0.1:1: connection refused", f"no.such.host.invalid:{port}: ")
    async with open_sink(f"127.0.0.1:1,{kafka.bootstrap}", "second") as made:
        await made.publish([record(1)])


# --- permissions ---


def acl_settings(user: str) -> dict[str, Any]:
    return {"auth": auth(user, password=f"{user}-password")}


async def test_kafka_sink_needs_only_describe_and_write_permission(restricted_kafka: Kafka) -> None:
    """As docs/kafka.md has it: Describe and Write on a topic that is there."""
    where = restricted_kafka.bootstrap_for("sasl_plaintext")
    restricted_kafka.admin.create_topic("given")
    text = await publish_error(where, **acl_settings("least") | {"auto_create": False})
    assert_names(text, "user least", "topic closed", "Describe", "Write")
    restricted_kafka.admin.allow("User:least", "write", "topic", "given")  # which lets it describe as well
    async with open_sink(where, "given", **acl_settings("least")) as made:
        await made.publish([record(1)])
    assert len(restricted_kafka.admin.records("given")) == 1


async def test_kafka_sink_creates_topic_when_permitted(restricted_kafka: Kafka) -> None:
    where = restricted_kafka.bootstrap_for("sasl_plaintext")
    restricted_kafka.admin.allow("User:owner", "write", "topic", "owned")
    with raises_naming(TransientError, "topic owned", "user owner", "Create"):
        async with open_sink(where, "owned", **acl_settings("owner")):
            pass
    restricted_kafka.admin.allow("User:owner", "create", "topic", "owned")
    restricted_kafka.admin.allow("User:owner", "describe_configs", "topic", "owned")
    async with open_sink(where, "owned", **acl_settings("owner")) as made:
        await made.publish([record(1)])
    assert restricted_kafka.admin.describe("owned")["settings"]["cleanup.policy"] == "delete"


async def test_kafka_sink_fails_when_write_permission_is_missing(restricted_kafka: Kafka) -> None:
    where = restricted_kafka.bootstrap_for("sasl_plaintext")
    restricted_kafka.admin.create_topic("seen")
    restricted_kafka.admin.allow("User:nobody", "describe", "topic", "seen")
    with raises_naming(TransientError, "user nobody", "topic seen"):
        async with open_sink(where, "seen", **acl_settings("nobody")) as made:
            await made.publish([record(1)])


async def test_kafka_sink_needs_read_permission_on_state_topic(restricted_kafka: Kafka) -> None:
    where = restricted_kafka.bootstrap_for("sasl_plaintext")
    for topic, policy in (("stream", "delete"), ("rows", "compact")):
        restricted_kafka.admin.create_topic(topic, settings={"cleanup.policy": policy})
        restricted_kafka.admin.allow("User:stateful", "write", "topic", topic)
    with raises_naming(TransientError, "user stateful", "state_topic rows", "Read"):
        async with open_sink(where, "stream", state_topic="rows", **acl_settings("stateful")) as made:
            await made.publish([record(1)])
    restricted_kafka.admin.allow("User:stateful", "read", "topic", "rows")
    async with open_sink(where, "stream", state_topic="rows", **acl_settings("stateful")) as made:
        await made.publish([record(1)])
    assert len(restricted_kafka.admin.records("rows")) == 1


async def test_kafka_sink_identifies_record_rejected_by_broker_rule(
    restricted_kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rule that is at hand: nothing without a key in a compacted topic, which this user may not see to be one."""
    where, whole = restricted_kafka.bootstrap_for("sasl_plaintext"), records(1000)
    restricted_kafka.admin.create_topic("ruled", settings={"cleanup.policy": "compact"})
    restricted_kafka.admin.allow("User:keeper", "write", "topic", "ruled")

    def without_a_key(*arguments: Any) -> list[Message]:
        made = event_messages(*arguments)
        nothing: Any = None
        return [each._replace(key=nothing) if each.position == (EPOCH, 700) else each for each in made]

    monkeypatch.setattr("sinks.kafka.sink.event_messages", without_a_key)
    async with open_sink(where, "ruled", **acl_settings("keeper")) as made:
        with raises_naming(RejectedRecordError, "topic ruled") as caught:
            await made.publish(whole)
        assert caught.value.positions == {(EPOCH, 700)}
        assert [each.value for each in restricted_kafka.admin.records("ruled")] == record_data(whole[:699])
        del whole[699]
        await made.publish(whole)
    assert distinct_values(restricted_kafka.admin.records("ruled")) == record_data(whole)
