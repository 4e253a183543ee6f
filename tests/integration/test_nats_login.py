"""Logging in to NATS, and TLS: each way works, and each mistake is told plainly, without a secret."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bridge.core.errors import TransientError
from sinks.nats.sink import NatsSink
from tests.certificates import Authority
from tests.integration.nats_reading import FreshNats, ended, record, records, settings
from tests.naming import assert_names, raises_naming
from tests.testbed import nats_auth
from tests.testbed.nats import Nats
from tests.testbed.nats_auth import PATIENCE, Key, Operator

SECRET = "s3cr3t-\\\"'"  # noqa: S105 (it opens nothing but the testbed)
WRONG = "wr0ng"


async def publishes(peer: Nats, **options: Any) -> None:
    sink = NatsSink(settings(peer, **options))
    try:
        await sink.start()
        await sink.publish(records(3))
    finally:
        await sink.close()


async def complaint(peer: Nats, **options: Any) -> str:
    with pytest.raises(TransientError) as caught:
        await publishes(peer, **options)
    text = str(caught.value)
    for secret in (SECRET, WRONG):
        assert secret not in text
        assert secret not in repr(caught.value.__cause__)
    return text


def file(folder: Path, content: str) -> str:
    path = folder / "secret"
    path.write_text(content)
    return str(path)


# --- logins ---


async def test_a_token(fresh_nats: FreshNats, tmp_path: Path) -> None:
    peer = fresh_nats(login=nats_auth.token(SECRET))
    await publishes(peer, auth={"token": SECRET})
    await publishes(peer, auth={"token_file": file(tmp_path, SECRET + "\n")})
    wrong = await complaint(peer, auth={"token_file": file(tmp_path, WRONG)})
    assert_names(wrong, "Authorization Violation", f"auth.token_file {tmp_path}/secret")
    assert_names(await complaint(peer, auth={"token": WRONG}), "Authorization Violation", "auth.token")
    assert_names(await complaint(peer), "Authorization Violation", "auth")


async def test_user_and_password(fresh_nats: FreshNats, tmp_path: Path) -> None:
    peer = fresh_nats(login=nats_auth.users({"bridge": SECRET}))
    await publishes(peer, auth={"user": "bridge", "password": SECRET})
    await publishes(peer, auth={"user": "bridge", "password_file": file(tmp_path, SECRET)})
    wrong = await complaint(peer, auth={"user": "bridge", "password": WRONG})
    assert_names(wrong, "Authorization Violation", "auth.user", "auth.password")
    assert "Authorization Violation" in await complaint(peer, auth={"user": "other", "password": SECRET})


async def test_an_nkey(fresh_nats: FreshNats, tmp_path: Path) -> None:
    key, other = Key.new(), Key.new()
    peer = fresh_nats(login=nats_auth.nkey(key))
    await publishes(peer, auth={"nkey_seed": key.seed})
    await publishes(peer, auth={"nkey_seed_file": file(tmp_path, key.seed + "\n")})
    wrong = await complaint(peer, auth={"nkey_seed_file": file(tmp_path, other.seed)})
    assert_names(wrong, "Authorization Violation", f"auth.nkey_seed_file {tmp_path}/secret")
    assert other.seed not in wrong
    for useless in ("nonsense", "SUnonsense", key.seed[:-8], key.public):
        path = file(tmp_path, useless)
        text = await complaint(peer, auth={"nkey_seed_file": path})
        assert_names(text, f"auth.nkey_seed_file {path}", "SU")
        assert_names(await complaint(peer, auth={"nkey_seed": useless}), "auth.nkey_seed ")


async def test_a_creds_file(fresh_nats: FreshNats, tmp_path: Path) -> None:
    operator, stranger = Operator(), Operator()
    peer = fresh_nats(login=operator.config())
    path = tmp_path / "bridge.creds"
    login = {"creds_file": str(path)}
    operator.creds(path)
    await publishes(peer, auth=login)
    operator.creds(path, seconds=-60)
    assert_names(await complaint(peer, auth=login), f"auth.creds_file {path}")
    stranger.creds(path)
    assert_names(await complaint(peer, auth=login), "Authorization Violation", f"auth.creds_file {path}")
    for useless in ("", "nonsense", "-----BEGIN NATS USER JWT-----\neyJ0\n"):
        path.write_text(useless)
        assert_names(await complaint(peer, auth=login), f"auth.creds_file {path}", "JWT")
    path.write_text("-----BEGIN NATS USER JWT-----\neyJ0\n-----BEGIN USER NKEY SEED-----\nSUnonsense\n")
    assert_names(await complaint(peer, auth=login), f"auth.creds_file {path}", "SU")
    path.unlink()
    assert_names(await complaint(peer, auth=login), f"auth.creds_file {path}", "No such file or directory")
    path.write_bytes(b"\xff\xfe")
    assert_names(await complaint(peer, auth=login), f"auth.creds_file {path}")


async def test_a_login_that_expires_ends_the_connection_and_a_new_file_goes_on(
    fresh_nats: FreshNats, tmp_path: Path
) -> None:
    operator = Operator()
    peer = fresh_nats(login=operator.config())
    path = operator.creds(tmp_path / "bridge.creds", seconds=10)  # for what comes before, on a machine that stalls
    sink = NatsSink(settings(peer, auth={"creds_file": str(path)}))
    await sink.start()
    await sink.publish(records(3))
    await ended(sink)
    await asyncio.sleep(1.5)  # in the second in which a login expires the server still lets it in, for a moment
    with raises_naming(TransientError, f"auth.creds_file {path}"):
        await sink.publish([record(4)])
    operator.creds(path)
    await sink.publish([record(4)])
    await sink.close()


def replace(path: Path, content: str) -> None:
    path.write_text(content)


async def test_files_that_are_replaced_are_read_at_the_next_connection(fresh_nats: FreshNats, tmp_path: Path) -> None:
    peer = fresh_nats(login=nats_auth.token(SECRET))
    path = Path(file(tmp_path, WRONG))
    sink = NatsSink(settings(peer, auth={"token_file": str(path)}))
    with raises_naming(TransientError, f"auth.token_file {path}"):
        await sink.start()
    replace(path, SECRET)
    await sink.start()
    await sink.publish(records(3))
    replace(path, WRONG)
    await sink.publish([record(4)])  # the connection is as good as before
    await asyncio.to_thread(peer.stop)
    await asyncio.to_thread(peer.start)
    await ended(sink)
    with raises_naming(TransientError, f"auth.token_file {path}"):
        await sink.publish([record(5)])
    replace(path, SECRET)
    await sink.publish([record(5)])
    await sink.close()


# --- TLS ---


async def test_tls(fresh_nats: FreshNats, authority: Authority, tmp_path: Path) -> None:
    peer = fresh_nats(authority=authority)
    trusting = {"enabled": True, "ca_file": str(authority.certificate)}
    await publishes(peer, tls=trusting)
    wrong = Authority(tmp_path / "wrong")
    text = await complaint(peer, tls=trusting | {"ca_file": str(wrong.certificate)})
    assert_names(text, "certificate", "tls.ca_file")
    assert_names(await complaint(peer, tls={"enabled": True}), "certificate", "tls.ca_file")
    # The server wants TLS: the certificates of the system are used.
    assert_names(await complaint(peer), "certificate", "tls.ca_file")
    for useless in (tmp_path / "none.pem", tmp_path, file(tmp_path, "nonsense")):
        text = await complaint(peer, tls=trusting | {"ca_file": str(useless)})
        assert_names(text, f"tls.ca_file {useless}")


@pytest.mark.parametrize(
    ("what", "told"), [({"hosts": ["elsewhere"]}, "mismatch|not valid"), ({"expired": True}, "expired")]
)
async def test_a_certificate_for_another_host_or_another_time(
    fresh_nats: FreshNats, authority: Authority, what: dict[str, Any], told: str
) -> None:
    peer = fresh_nats(authority=authority, certificate=authority.issue("nats", **what))
    text = await complaint(peer, tls={"enabled": True, "ca_file": str(authority.certificate)})
    assert_names(text, "certificate", "tls.ca_file")
    assert any(word in text for word in told.split("|"))


async def test_a_certificate_of_our_own(fresh_nats: FreshNats, authority: Authority, tmp_path: Path) -> None:
    peer = fresh_nats(authority=authority, mtls=True)
    trusting = {"enabled": True, "ca_file": str(authority.certificate)}
    ours = authority.issue("bridge")
    own = {"cert_file": str(ours.certificate), "key_file": str(ours.key)}
    await publishes(peer, tls=trusting | own)
    await publishes(peer, tls=trusting | {"cert_file": str(ours.both)})
    locked = authority.issue("bridge", password=SECRET)
    own_locked = {"cert_file": str(locked.certificate), "key_file": str(locked.key)}
    await publishes(peer, tls=trusting | own_locked | {"key_password": SECRET})
    await publishes(peer, tls=trusting | own_locked | {"key_password_file": file(tmp_path, SECRET)})
    for password in ({"key_password": WRONG}, {}):
        assert_names(await complaint(peer, tls=trusting | own_locked | password), locked.key, "tls.key_password")
    mixed = own | {"key_file": str(locked.key), "key_password": SECRET}
    assert_names(await complaint(peer, tls=trusting | mixed), f"tls.key_file {locked.key}", ours.certificate)
    assert_names(await complaint(peer, tls=trusting), "tls.cert_file")
    stranger = Authority(tmp_path / "stranger").issue("bridge")
    foreign = {"cert_file": str(stranger.certificate), "key_file": str(stranger.key)}
    text = await complaint(peer, tls=trusting | foreign)
    assert_names(text, f"tls.cert_file {stranger.certificate}")


async def test_nothing_is_sent_in_clear_text_where_tls_is_asked_for(
    fresh_nats: FreshNats, authority: Authority
) -> None:
    peer = fresh_nats(login=nats_auth.token(SECRET))
    tls = {"enabled": True, "ca_file": str(authority.certificate)}
    text = await complaint(peer, auth={"token": SECRET}, tls=tls)
    assert_names(text, "TLS")
    assert "Authorization Violation" not in text
    assert await complaint(peer, auth={"token": WRONG}, tls=tls) == text


async def test_tls_that_a_server_offers_but_does_not_ask_for_is_used(
    fresh_nats: FreshNats, authority: Authority
) -> None:
    peer = fresh_nats(authority=authority, settings="allow_non_tls: true\n")
    sink = NatsSink(settings(peer, tls={"enabled": True, "ca_file": str(authority.certificate)}))
    await sink.start()
    [connection] = peer.monitor("connz")["connections"]
    assert connection["tls_version"]
    await sink.close()


async def test_tls_first(fresh_nats: FreshNats, authority: Authority) -> None:
    shown = authority.issue("nats")

    def first(patience: int) -> str:
        own = f'cert_file: "{shown.certificate}", key_file: "{shown.key}"'
        return f"tls {{ {own}, handshake_first: true, timeout: {patience} }}\n"

    tls = {"enabled": True, "ca_file": str(authority.certificate)}
    await publishes(fresh_nats(settings=first(PATIENCE)), tls=tls | {"handshake_first": True})
    assert "handshake_first" in await complaint(fresh_nats(settings=first(2)), tls=tls)  # it gives up after 2 s
