"""Authentication, TLS and permissions of the NATS sink: errors name the wrong setting and never contain a secret."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bridge.clock import SystemClock
from bridge.core.errors import TransientError
from sinks.nats.sink import NatsSink
from tests.certificates import Authority
from tests.integration.nats_reading import NatsFactory, settings, wait_connection_ended
from tests.integration.target_checks import publish_until_accepted
from tests.naming import assert_names, raises_naming
from tests.sample_records import record, records
from tests.testbed import nats_auth
from tests.testbed.nats import Nats
from tests.testbed.nats_auth import AUTH_TIMEOUT, Key, Operator, Permissions

SECRET = "s3cr3t-\\\"'"  # noqa: S105 (used by the testbed only)
WRONG = "wr0ng"


async def check_publish(peer: Nats, **options: Any) -> None:
    sink = NatsSink(settings(peer, **options), SystemClock())
    try:
        await sink.start()
        await sink.publish(records(3))
    finally:
        await sink.close()


async def publish_error(peer: Nats, **options: Any) -> str:
    with pytest.raises(TransientError) as caught:
        await check_publish(peer, **options)
    text = str(caught.value)
    for secret in (SECRET, WRONG):
        assert secret not in text
        assert secret not in repr(caught.value.__cause__)
    return text


def file(directory: Path, content: str) -> str:
    path = directory / "secret"
    path.write_text(content)
    return str(path)


# --- authentication ---


async def test_nats_sink_authenticates_with_token(nats_factory: NatsFactory, tmp_path: Path) -> None:
    peer = nats_factory(auth=nats_auth.token_config(SECRET))
    await check_publish(peer, auth={"token": SECRET})
    await check_publish(peer, auth={"token_file": file(tmp_path, SECRET + "\n")})
    wrong = await publish_error(peer, auth={"token_file": file(tmp_path, WRONG)})
    assert_names(wrong, "Authorization Violation", f"auth.token_file {tmp_path}/secret")
    command = ["/bin/cat", f"{tmp_path}/secret"]
    wrong = await publish_error(peer, auth={"token_command": command})
    assert_names(wrong, "Authorization Violation", "auth.token_command /bin/cat")
    file(tmp_path, SECRET + "\n")
    await check_publish(peer, auth={"token_command": command})
    missing = await publish_error(peer, auth={"token_command": ["/bin/cat", "/nonexistent"]})
    assert_names(missing, "auth.token_command /bin/cat", "No such file")
    assert_names(await publish_error(peer, auth={"token": WRONG}), "Authorization Violation", "auth.token")
    assert_names(await publish_error(peer), "Authorization Violation", "auth")


async def test_nats_sink_authenticates_with_user_and_password(nats_factory: NatsFactory, tmp_path: Path) -> None:
    peer = nats_factory(auth=nats_auth.users_config({"bridge": SECRET}))
    await check_publish(peer, auth={"user": "bridge", "password": SECRET})
    await check_publish(peer, auth={"user": "bridge", "password_file": file(tmp_path, SECRET)})
    wrong = await publish_error(peer, auth={"user": "bridge", "password": WRONG})
    assert_names(wrong, "Authorization Violation", "auth.user", "auth.password")
    assert "Authorization Violation" in await publish_error(peer, auth={"user": "other", "password": SECRET})


async def test_nats_sink_authenticates_with_nkey(nats_factory: NatsFactory, tmp_path: Path) -> None:
    key, other = Key.generate(), Key.generate()
    peer = nats_factory(auth=nats_auth.nkey_config(key))
    await check_publish(peer, auth={"nkey_seed": key.seed})
    await check_publish(peer, auth={"nkey_seed_file": file(tmp_path, key.seed + "\n")})
    wrong = await publish_error(peer, auth={"nkey_seed_file": file(tmp_path, other.seed)})
    assert_names(wrong, "Authorization Violation", f"auth.nkey_seed_file {tmp_path}/secret")
    assert other.seed not in wrong
    for useless in ("nonsense", "SUnonsense", key.seed[:-8], key.public):
        path = file(tmp_path, useless)
        text = await publish_error(peer, auth={"nkey_seed_file": path})
        assert_names(text, f"auth.nkey_seed_file {path}", "SU")
        assert_names(await publish_error(peer, auth={"nkey_seed": useless}), "auth.nkey_seed ")


async def test_nats_sink_authenticates_with_creds_file(nats_factory: NatsFactory, tmp_path: Path) -> None:
    operator, untrusted = Operator(), Operator()
    peer = nats_factory(auth=operator.config())
    path = tmp_path / "bridge.creds"
    auth = {"creds_file": str(path)}
    operator.write_creds(path)
    await check_publish(peer, auth=auth)
    operator.write_creds(path, seconds=-60)
    assert_names(await publish_error(peer, auth=auth), f"auth.creds_file {path}")
    untrusted.write_creds(path)
    assert_names(await publish_error(peer, auth=auth), "Authorization Violation", f"auth.creds_file {path}")
    for useless in ("", "nonsense", "-----BEGIN NATS USER JWT-----\neyJ0\n"):
        path.write_text(useless)
        assert_names(await publish_error(peer, auth=auth), f"auth.creds_file {path}", "JWT")
    path.write_text("-----BEGIN NATS USER JWT-----\neyJ0\n-----BEGIN USER NKEY SEED-----\nSUnonsense\n")
    assert_names(await publish_error(peer, auth=auth), f"auth.creds_file {path}", "SU")
    path.unlink()
    assert_names(await publish_error(peer, auth=auth), f"auth.creds_file {path}", "No such file or directory")
    path.write_bytes(b"\xff\xfe")
    assert_names(await publish_error(peer, auth=auth), f"auth.creds_file {path}")


async def test_fault_32_nats_credentials_expire(nats_factory: NatsFactory, tmp_path: Path) -> None:
    operator = Operator()
    peer = nats_factory(auth=operator.config())
    # Ten seconds are enough for the steps below on a slow machine.
    path = operator.write_creds(tmp_path / "bridge.creds", seconds=10)
    sink = NatsSink(settings(peer, auth={"creds_file": str(path)}), SystemClock())
    await sink.start()
    await sink.publish(records(3))
    await wait_connection_ended(sink)
    await asyncio.sleep(1.5)  # the server accepts credentials until the end of the second in which they expire
    with raises_naming(TransientError, f"auth.creds_file {path}"):
        await sink.publish([record(4)])
    operator.write_creds(path)
    await sink.publish([record(4)])
    await sink.close()


def replace(path: Path, content: str) -> None:
    path.write_text(content)


async def test_nats_sink_rereads_replaced_token_file_when_reconnecting(
    nats_factory: NatsFactory, tmp_path: Path
) -> None:
    peer = nats_factory(auth=nats_auth.token_config(SECRET))
    path = Path(file(tmp_path, WRONG))
    sink = NatsSink(settings(peer, auth={"token_file": str(path)}), SystemClock())
    with raises_naming(TransientError, f"auth.token_file {path}"):
        await sink.start()
    replace(path, SECRET)
    await sink.start()
    await sink.publish(records(3))
    replace(path, WRONG)
    await sink.publish([record(4)])  # the connection is still authenticated
    await asyncio.to_thread(peer.stop)
    await asyncio.to_thread(peer.start)
    await wait_connection_ended(sink)
    with raises_naming(TransientError, f"auth.token_file {path}"):
        await sink.publish([record(5)])
    replace(path, SECRET)
    await sink.publish([record(5)])
    await sink.close()


# --- TLS ---


async def test_nats_sink_verifies_server_certificate(
    nats_factory: NatsFactory, authority: Authority, tmp_path: Path
) -> None:
    peer = nats_factory(authority=authority)
    trusted = {"enabled": True, "ca_file": str(authority.certificate)}
    await check_publish(peer, tls=trusted)
    wrong = Authority(tmp_path / "wrong")
    text = await publish_error(peer, tls=trusted | {"ca_file": str(wrong.certificate)})
    assert_names(text, "certificate", "tls.ca_file")
    assert_names(await publish_error(peer, tls={"enabled": True}), "certificate", "tls.ca_file")
    # The server requires TLS; the sink uses the system certificates.
    assert_names(await publish_error(peer), "certificate", "tls.ca_file")


@pytest.mark.parametrize(
    ("options", "expected"), [({"hosts": ["elsewhere"]}, "mismatch|not valid"), ({"expired": True}, "expired")]
)
async def test_nats_sink_distrusts_certificate_for_other_host_or_time(
    nats_factory: NatsFactory, authority: Authority, options: dict[str, Any], expected: str
) -> None:
    peer = nats_factory(authority=authority, certificate=authority.issue("nats", **options))
    text = await publish_error(peer, tls={"enabled": True, "ca_file": str(authority.certificate)})
    assert_names(text, "certificate", "tls.ca_file")
    assert any(word in text for word in expected.split("|"))


async def test_nats_sink_authenticates_with_client_certificate(
    nats_factory: NatsFactory, authority: Authority, tmp_path: Path
) -> None:
    peer = nats_factory(authority=authority, mtls=True)
    trusted = {"enabled": True, "ca_file": str(authority.certificate)}
    client = authority.issue("bridge")
    own = {"cert_file": str(client.certificate), "key_file": str(client.key)}
    await check_publish(peer, tls=trusted | own)
    await check_publish(peer, tls=trusted | {"cert_file": str(client.combined)})
    locked = authority.issue("bridge", password=SECRET)
    own_locked = {"cert_file": str(locked.certificate), "key_file": str(locked.key)}
    await check_publish(peer, tls=trusted | own_locked | {"key_password": SECRET})
    await check_publish(peer, tls=trusted | own_locked | {"key_password_file": file(tmp_path, SECRET)})
    assert_names(await publish_error(peer, tls=trusted), "tls.cert_file")
    untrusted = Authority(tmp_path / "stranger").issue("bridge")
    own_untrusted = {"cert_file": str(untrusted.certificate), "key_file": str(untrusted.key)}
    text = await publish_error(peer, tls=trusted | own_untrusted)
    assert_names(text, f"tls.cert_file {untrusted.certificate}")


async def test_nats_sink_sends_nothing_in_clear_text_with_tls_enabled(
    nats_factory: NatsFactory, authority: Authority
) -> None:
    peer = nats_factory(auth=nats_auth.token_config(SECRET))
    tls = {"enabled": True, "ca_file": str(authority.certificate)}
    text = await publish_error(peer, auth={"token": SECRET}, tls=tls)
    assert_names(text, "TLS")
    assert "Authorization Violation" not in text
    assert await publish_error(peer, auth={"token": WRONG}, tls=tls) == text


async def test_nats_sink_uses_tls_when_optional_on_server(nats_factory: NatsFactory, authority: Authority) -> None:
    peer = nats_factory(authority=authority, settings="allow_non_tls: true\n")
    tls = {"enabled": True, "ca_file": str(authority.certificate)}
    sink = NatsSink(settings(peer, tls=tls, connection_name="whalebridge-node-1"), SystemClock())
    await sink.start()
    [connection] = peer.monitor("connz")["connections"]
    assert connection["tls_version"]
    assert connection["name"] == "whalebridge-node-1"
    await sink.close()


async def test_nats_sink_supports_tls_handshake_first(nats_factory: NatsFactory, authority: Authority) -> None:
    certificate = authority.issue("nats")

    def tls_config(timeout: int) -> str:
        own = f'cert_file: "{certificate.certificate}", key_file: "{certificate.key}"'
        return f"tls {{ {own}, handshake_first: true, timeout: {timeout} }}\n"

    tls = {"enabled": True, "ca_file": str(authority.certificate)}
    await check_publish(nats_factory(settings=tls_config(AUTH_TIMEOUT)), tls=tls | {"handshake_first": True})
    # The server times out after 2 s.
    assert "handshake_first" in await publish_error(nats_factory(settings=tls_config(2)), tls=tls)


# --- permissions; test_nats_docs has the documented lists ---

SINK = Permissions(
    publish=["events.>", "$JS.API.STREAM.INFO.WHALEBRIDGE_EVENTS", "$JS.API.STREAM.CREATE.WHALEBRIDGE_EVENTS"],
    subscribe=["_INBOX.>"],
)


@pytest.mark.parametrize(
    ("missing", "denied_action"),
    [
        ("events.>", r'publish to "events.node-1.shop.started"'),
        ("$JS.API.STREAM.INFO.WHALEBRIDGE_EVENTS", r'publish to "$js.api.stream.info.whalebridge_events"'),
        ("$JS.API.STREAM.CREATE.WHALEBRIDGE_EVENTS", r'publish to "$js.api.stream.create.whalebridge_events"'),
        ("_INBOX.>", r'subscription to "_inbox.'),
    ],
)
async def test_fault_32_nats_permission_is_missing(nats_factory: NatsFactory, missing: str, denied_action: str) -> None:
    def without(subjects: Any) -> list[str]:
        return [subject for subject in subjects if subject != missing] or ["nothing"]

    allowed = Permissions(publish=without(SINK.publish), subscribe=without(SINK.subscribe))
    peer = nats_factory(auth=nats_auth.users_config({"bridge": SECRET}, {"bridge": allowed}))
    text = await publish_error(peer, auth={"user": "bridge", "password": SECRET})
    assert_names(text, f"permissions violation for {denied_action}", "docs/nats.md")


async def test_nats_sink_uses_permission_granted_later(nats_factory: NatsFactory) -> None:
    def users(permissions: Permissions) -> str:
        return nats_auth.users_config({"bridge": SECRET}, {"bridge": permissions})

    allowed = Permissions(publish=["$JS.API.>"], subscribe=["_INBOX.>"])
    peer = nats_factory(auth=users(allowed))
    sink = NatsSink(settings(peer, auth={"user": "bridge", "password": SECRET}), SystemClock())
    await sink.start()
    with raises_naming(TransientError, "permissions violation"):
        await sink.publish(records(3))
    config = peer.nodes[0].directory / "nats.conf"
    config.write_text(config.read_text().replace(users(allowed), users(SINK)))
    await asyncio.to_thread(peer.stop)
    await asyncio.to_thread(peer.start)
    await publish_until_accepted(sink, records(3))
    await sink.close()


async def test_nats_sink_uses_configured_inbox_prefix(nats_factory: NatsFactory) -> None:
    allowed = Permissions(publish=SINK.publish, subscribe=["_INBOX.whalebridge.>"])
    peer = nats_factory(auth=nats_auth.users_config({"bridge": SECRET}, {"bridge": allowed}))
    auth = {"user": "bridge", "password": SECRET}
    await check_publish(peer, auth=auth, inbox_prefix="_INBOX.whalebridge")
    assert "_inbox." in await publish_error(peer, auth=auth)
