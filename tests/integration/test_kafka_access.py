"""Who may publish to Kafka: every way of logging in, right and wrong. What is wrong is named, and never a secret."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.core.errors import RefusedRecordError, TransientError
from sinks.kafka.messages import Message, event_messages
from tests.certificates import Authority
from tests.integration.kafka_sinks import data, first_occurrences, insist, sink
from tests.naming import assert_names, raises_naming
from tests.sample_records import EPOCH, record, records
from tests.testbed.kafka import PATIENT, USERS, Kafka
from tests.testbed.kafka_config import Listener, unsecured_jwt

MECHANISMS = ["plain", "scram-sha-256", "scram-sha-512"]
SECRET = "hunter2-swordfish"  # noqa: S105 (it opens nothing)
USER = "bridge"


@pytest.fixture(scope="module")
def guarded(kafka: Kafka) -> Iterator[Kafka]:
    """A Kafka that allows nothing to those who log in, unless told so. (`kafka` sees to it that it is installed.)"""
    assert kafka.servers
    users = {name: f"{name}-password" for name in ("writer", "owner", "least", "nobody", "keeper", "stateful")}
    with Kafka(listeners=("sasl_plaintext",), users=users, acls=True, settings=PATIENT) as guarded:
        yield guarded


def login(user: str = USER, **options: Any) -> dict[str, Any]:
    return {"mechanism": "scram-sha-256", "username": user, **options}


def tls(authority: Authority, **options: Any) -> dict[str, Any]:
    return {"enabled": True, "ca_file": str(authority.certificate), **options}


async def refusal(where: str, **options: Any) -> str:
    """What is said where publishing does not work."""
    with pytest.raises(TransientError) as caught:
        async with sink(where, "closed", **options) as made:
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
async def test_a_user_with_the_right_password_publishes(
    kafka: Kafka, authority: Authority, listener: Listener, mechanism: str, tmp_path: Path
) -> None:
    topic = f"{listener}-{mechanism}"
    file = tmp_path / "password"
    file.write_text(f"{USERS[USER]}\n")
    secure: dict[str, Any] = {"tls": tls(authority)} if listener == "sasl_ssl" else {}
    where = kafka.bootstrap_of(listener)
    for auth in (login(mechanism=mechanism, password=USERS[USER]), login(mechanism=mechanism, password_file=str(file))):
        async with sink(where, topic, auth=auth, **secure) as made:
            await made.publish([record(1)])
    assert len(kafka.admin.records(topic)) == 2


@pytest.mark.parametrize("mechanism", MECHANISMS)
@pytest.mark.parametrize("user", [USER, "stranger"])
async def test_a_wrong_password_or_user_is_named(kafka: Kafka, mechanism: str, user: str) -> None:
    auth = login(user, mechanism=mechanism, password=SECRET)
    text = await refusal(kafka.bootstrap_of("sasl_plaintext"), auth=auth)
    assert_names(text, f"user {user}", mechanism, "auth.password")


async def test_a_token_from_a_file_publishes_and_an_expired_one_is_named(kafka: Kafka, tmp_path: Path) -> None:
    file = tmp_path / "token"
    auth = {"mechanism": "oauthbearer", "token_file": str(file)}
    where = kafka.bootstrap_of("sasl_plaintext")
    file.write_text(unsecured_jwt(USER) + "\n")
    async with sink(where, "token", auth=auth) as made:
        await made.publish([record(1)])
    assert len(kafka.admin.records("token")) == 1
    for token in (unsecured_jwt(USER, seconds=-60), SECRET):
        file.write_text(token)
        assert_names(await refusal(where, auth=auth), where, f"token_file {file}")
    file.write_text(" \n")
    assert_names(await refusal(where, auth=auth), f"auth.token_file {file}")
    file.unlink()
    assert_names(await refusal(where, auth=auth), f"auth.token_file {file}", "No such file or directory")


async def test_a_way_of_logging_in_that_the_broker_does_not_have_is_named(guarded: Kafka, kafka: Kafka) -> None:
    where = kafka.bootstrap
    assert_names(await refusal(where, auth=login(password=SECRET)), where, "auth")
    for_logins = guarded.bootstrap_of("sasl_plaintext")
    assert_names(await refusal(for_logins), for_logins, "kafkas://", "tls.enabled", "(auth)")


async def test_a_password_that_is_replaced_is_picked_up(kafka: Kafka, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET)
    whole = records(10)
    where = kafka.bootstrap_of("sasl_plaintext")
    with raises_naming(TransientError, "user bridge", "scram-sha-256", file):
        async with sink(where, "rotated", auth=login(password_file=str(file))) as made:
            pass
    async with sink(kafka, "rotated"):
        pass
    file.write_text(USERS[USER])
    async with sink(where, "rotated", auth=login(password_file=str(file))) as made:
        await made.publish(whole[:5])
        file.write_text(SECRET)
        await made.close()  # as after any error: the next attempt reads the file anew
        with raises_naming(TransientError, "user bridge", file):
            await made.publish(whole[5:])
        file.write_text(USERS[USER])
        await insist(made, whole[5:])
    assert [each.value for each in kafka.admin.records("rotated")] == data(whole)


# --- TLS ---


async def test_tls_and_a_certificate_of_our_own_publish(kafka: Kafka, authority: Authority) -> None:
    ours = authority.issue(USER, password=SECRET)
    own = {"cert_file": str(ours.certificate), "key_file": str(ours.key), "key_password": SECRET}
    async with sink(kafka.bootstrap_of("ssl"), "tls", tls=tls(authority)) as made:
        await made.publish([record(1)])
    async with sink(kafka.bootstrap_of("mtls"), "tls", tls=tls(authority, **own)) as made:
        await made.publish([record(2)])
    assert len(kafka.admin.records("tls")) == 2


async def test_a_server_of_an_authority_that_is_not_ours_is_not_trusted(
    kafka: Kafka, authority: Authority, tmp_path: Path
) -> None:
    where = kafka.bootstrap_of("ssl")
    other = Authority(tmp_path / "other", "another authority")
    text = await refusal(where, tls=tls(other))
    assert_names(text, where, "unable to get local issuer certificate", other.certificate)
    assert_names(await refusal(where, tls={"enabled": True}), where, "tls.ca_file")
    assert authority.certificate != other.certificate


async def test_a_server_whose_certificate_is_for_another_host_is_not_trusted(
    fresh_kafka: Any, authority: Authority
) -> None:
    certificate = authority.issue("broker", hosts=("elsewhere.example", "127.0.0.9"))
    kafka = fresh_kafka(listeners=("ssl",), authority=authority, certificate=certificate)
    where = kafka.bootstrap_of("ssl")
    assert_names(await refusal(where, tls=tls(authority)), where, "IP address mismatch")
    where = where.replace("127.0.0.1", "localhost")
    assert_names(await refusal(where, tls=tls(authority)), where, "Hostname mismatch")


async def test_a_missing_or_wrong_certificate_of_ours_is_named(
    kafka: Kafka, authority: Authority, tmp_path: Path
) -> None:
    where = kafka.bootstrap_of("mtls")
    assert_names(await refusal(where, tls=tls(authority)), where, "tls.cert_file")
    strange = Authority(tmp_path / "strange", "another authority").issue(USER)
    own = {"cert_file": str(strange.certificate), "key_file": str(strange.key)}
    text = await refusal(where, tls=tls(authority, **own))
    assert_names(text, where, strange.certificate)


async def test_files_that_are_missing_or_useless_are_named(kafka: Kafka, authority: Authority, tmp_path: Path) -> None:
    where = kafka.bootstrap_of("mtls")
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
        assert_names(await refusal(where, tls=tls(authority) | options), *named)


async def test_plain_text_and_tls_that_meet_are_told_of(kafka: Kafka, authority: Authority) -> None:
    assert_names(await refusal(kafka.bootstrap, tls=tls(authority)), kafka.bootstrap, "TLS")
    for_tls = kafka.bootstrap_of("ssl")
    assert_names(await refusal(for_tls), for_tls, "tls.enabled")


# --- servers ---


async def test_each_server_that_cannot_be_used_is_named_with_its_reason(kafka: Kafka) -> None:
    port = kafka.bootstrap.rpartition(":")[2]
    text = await refusal(f"127.0.0.1:1,no.such.host.invalid:{port}")
    assert_names(text, "127.0.0.1:1: connection refused", f"no.such.host.invalid:{port}: ")
    async with sink(f"127.0.0.1:1,{kafka.bootstrap}", "second") as made:
        await made.publish([record(1)])


# --- permissions ---


def acl(user: str) -> dict[str, Any]:
    return {"auth": login(user, password=f"{user}-password")}


async def test_the_least_that_brokers_must_allow(guarded: Kafka) -> None:
    """As docs/kafka.md has it: Describe and Write on a topic that is there."""
    where = guarded.bootstrap_of("sasl_plaintext")
    guarded.admin.create_topic("given")
    text = await refusal(where, **acl("least") | {"auto_create": False})
    assert_names(text, "user least", "topic closed", "Describe", "Write")
    guarded.admin.allow("User:least", "write", "topic", "given")  # which lets it describe as well
    async with sink(where, "given", **acl("least")) as made:
        await made.publish([record(1)])
    assert len(guarded.admin.records("given")) == 1


async def test_a_topic_is_created_by_whom_that_is_allowed(guarded: Kafka) -> None:
    where = guarded.bootstrap_of("sasl_plaintext")
    guarded.admin.allow("User:owner", "write", "topic", "owned")
    with raises_naming(TransientError, "topic owned", "user owner", "Create"):
        async with sink(where, "owned", **acl("owner")):
            pass
    guarded.admin.allow("User:owner", "create", "topic", "owned")
    guarded.admin.allow("User:owner", "describe_configs", "topic", "owned")
    async with sink(where, "owned", **acl("owner")) as made:
        await made.publish([record(1)])
    assert guarded.admin.describe("owned")["settings"]["cleanup.policy"] == "delete"


async def test_a_topic_that_may_only_be_seen_is_not_written(guarded: Kafka) -> None:
    where = guarded.bootstrap_of("sasl_plaintext")
    guarded.admin.create_topic("seen")
    guarded.admin.allow("User:nobody", "describe", "topic", "seen")
    with raises_naming(TransientError, "user nobody", "topic seen"):
        async with sink(where, "seen", **acl("nobody")) as made:
            await made.publish([record(1)])


async def test_the_least_for_the_current_state(guarded: Kafka) -> None:
    where = guarded.bootstrap_of("sasl_plaintext")
    for topic, policy in (("stream", "delete"), ("rows", "compact")):
        guarded.admin.create_topic(topic, settings={"cleanup.policy": policy})
        guarded.admin.allow("User:stateful", "write", "topic", topic)
    with raises_naming(TransientError, "user stateful", "state_topic rows", "Read"):
        async with sink(where, "stream", state_topic="rows", **acl("stateful")) as made:
            await made.publish([record(1)])
    guarded.admin.allow("User:stateful", "read", "topic", "rows")
    async with sink(where, "stream", state_topic="rows", **acl("stateful")) as made:
        await made.publish([record(1)])
    assert len(guarded.admin.records("rows")) == 1


async def test_what_the_brokers_own_rules_are_against_is_named(guarded: Kafka, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rule that is at hand: nothing without a key in a compacted topic, which this user may not see to be one."""
    where, whole = guarded.bootstrap_of("sasl_plaintext"), records(1000)
    guarded.admin.create_topic("ruled", settings={"cleanup.policy": "compact"})
    guarded.admin.allow("User:keeper", "write", "topic", "ruled")

    def without_a_key(*arguments: Any) -> list[Message]:
        made = event_messages(*arguments)
        nothing: Any = None
        return [each._replace(key=nothing) if each.position == (EPOCH, 700) else each for each in made]

    monkeypatch.setattr("sinks.kafka.sink.event_messages", without_a_key)
    async with sink(where, "ruled", **acl("keeper")) as made:
        with raises_naming(RefusedRecordError, "topic ruled") as caught:
            await made.publish(whole)
        assert caught.value.positions == {(EPOCH, 700)}
        assert [each.value for each in guarded.admin.records("ruled")] == data(whole[:699])
        del whole[699]
        await made.publish(whole)
    assert first_occurrences(guarded.admin.records("ruled")) == data(whole)
