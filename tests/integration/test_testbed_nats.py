"""The testbed's NATS does what it says: it stores, lets in whom it should, fails on request, and leaves nothing."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import nkeys  # type: ignore[import-untyped]
import pytest
from nats import connect
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js import JetStreamContext

from tests.certificates import Authority, Certificate
from tests.eventually import eventually
from tests.integration.nats_reading import answered
from tests.integration.traces import traces
from tests.testbed import nats_auth
from tests.testbed.nats import Nats
from tests.testbed.nats_auth import PATIENCE, Key, Operator, Permissions

FreshNats = Callable[..., Nats]

RIGHT, WRONG = "secret", "other"


async def store(url: str | list[str], *, seconds: int = 20, **login: Any) -> int:
    """Publish one message to a stream and hand back its number; one attempt, each step of so many seconds."""

    async def ignore(error: Exception) -> None:
        """The default would log it."""

    connection = Client()
    try:
        async with asyncio.timeout(2 * seconds):  # without reconnects, too, a dead server is tried 60 times
            await connection.connect(url, connect_timeout=seconds, allow_reconnect=False, error_cb=ignore, **login)
            stream = connection.jetstream(timeout=seconds)
            await stream.add_stream(name="EVENTS", subjects=["events.>"])
            return (await stream.publish("events.one", b"hello")).seq
    finally:
        await asyncio.wait_for(connection.close(), seconds)  # connect() leaves its socket open where it fails


def handshake(url: str, context: ssl.SSLContext) -> None:
    """Log in with TLS alone: nats-py's client could not be closed any more where that fails."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    with socket.create_connection((address.hostname, address.port), timeout=PATIENCE) as plain:
        assert plain.recv(4096).startswith(b"INFO ")
        with context.wrap_socket(plain, server_hostname=address.hostname) as connection:
            connection.sendall(b'CONNECT {"verbose": false}\r\nPING\r\n')
            told = b""
            while b"PONG\r\n" not in told:  # after a while the server asks, too
                answer = connection.recv(4096)
                assert answer, told
                told += answer


def trusting(authority: Authority, own: Certificate | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if own:
        context.load_cert_chain(own.certificate, own.key)
    return context


async def test_a_message_is_stored(nats: Nats) -> None:
    first = await store(nats.url)
    assert await store(nats.url) == first + 1
    assert nats.leader("EVENTS").name == "n1"
    assert nats.monitor("varz")["version"].startswith("2.15.")


async def test_messages_survive_a_kill_and_a_restart(fresh_nats: FreshNats) -> None:
    nats = fresh_nats()
    assert await store(nats.url) == 1
    nats.kill()
    nats.start()
    assert await store(nats.url) == 2
    nats.stop()
    nats.start()
    assert await store(nats.url) == 3


async def test_a_suspended_server_answers_no_more(fresh_nats: FreshNats) -> None:
    nats = fresh_nats()
    nats.suspend()
    with pytest.raises((TimeoutError, NatsError)):
        await store(nats.url, seconds=2)
    nats.resume()
    assert await store(nats.url) == 1


async def test_token_and_password_and_permissions(fresh_nats: FreshNats) -> None:
    nats = fresh_nats(login=nats_auth.token(RIGHT))
    assert await store(nats.url, token=RIGHT) == 1
    with pytest.raises(NatsError, match="Authorization Violation"):
        await store(nats.url, token=WRONG)
    nobody = Permissions(publish=["nothing"])
    nats = fresh_nats(login=nats_auth.users({"bridge": RIGHT, "guest": RIGHT}, {"guest": nobody}))
    assert await store(nats.url, user="bridge", password=RIGHT) == 1
    with pytest.raises(NatsError, match="Authorization Violation"):
        await store(nats.url, user="bridge", password=WRONG)
    with pytest.raises((TimeoutError, NatsError)):
        await store(nats.url, seconds=2, user="guest", password=RIGHT)


async def test_nkeys(fresh_nats: FreshNats, tmp_path: Path) -> None:
    right, wrong = Key.new(), Key.new()
    for name, key in {"right": right, "wrong": wrong}.items():
        (tmp_path / name).write_text(key.seed)
    nats = fresh_nats(login=nats_auth.nkey(right))
    assert await store(nats.url, nkeys_seed=str(tmp_path / "right")) == 1
    with pytest.raises(NatsError, match="Authorization Violation"):
        await store(nats.url, nkeys_seed=str(tmp_path / "wrong"))


async def test_credentials_of_an_operator(fresh_nats: FreshNats, tmp_path: Path) -> None:
    operator = Operator()
    nats = fresh_nats(login=operator.config())
    assert await store(nats.url, user_credentials=str(operator.creds(tmp_path / "right"))) == 1
    for wrong in (operator.creds(tmp_path / "expired", seconds=-5), Operator().creds(tmp_path / "foreign")):
        with pytest.raises(NatsError, match="Authorization Violation"):
            await store(nats.url, user_credentials=str(wrong))
    nobody = operator.creds(tmp_path / "nobody", permissions=Permissions(publish=["nothing"]))
    with pytest.raises((TimeoutError, NatsError)):
        await store(nats.url, seconds=2, user_credentials=str(nobody))


async def test_tls(fresh_nats: FreshNats, authority: Authority, tmp_path: Path) -> None:
    nats = fresh_nats(authority=authority)
    assert await store(nats.url, tls=trusting(authority)) == 1
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(nats.url, trusting(Authority(tmp_path)))
    elsewhere = fresh_nats(authority=authority, certificate=authority.issue("nats", hosts=["elsewhere"]))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for '127\.0\.0\.1'"):
        handshake(elsewhere.url, trusting(authority))
    expired = fresh_nats(authority=authority, certificate=authority.issue("nats", expired=True))
    with pytest.raises(ssl.SSLCertVerificationError, match="has expired"):
        handshake(expired.url, trusting(authority))


async def test_mtls(fresh_nats: FreshNats, authority: Authority) -> None:
    nats = fresh_nats(authority=authority, mtls=True)
    own = authority.issue("bridge", hosts=())
    handshake(nats.url, trusting(authority, own))
    assert await store(nats.url, tls=trusting(authority, own)) == 1
    with pytest.raises(OSError):  # noqa: PT011 - an alert or a reset, whichever comes first
        handshake(nats.url, trusting(authority))


async def test_a_proxy_fails_on_request(fresh_nats: FreshNats) -> None:
    nats = fresh_nats(proxied=True)
    proxy = nats.proxies[0]
    assert await store(nats.url) == 1
    for fail in (proxy.cut, proxy.silence, lambda: proxy.reset_after(100)):
        fail()
        with pytest.raises((TimeoutError, OSError, NatsError)):
            await store(nats.url, seconds=2)
        proxy.heal()
        assert await store(nats.url) > 1
    began = asyncio.get_running_loop().time()
    proxy.delay(0.1)
    await store(nats.url)
    assert asyncio.get_running_loop().time() - began > 0.3  # login, stream and message: at least three answers


async def test_a_cluster_finds_another_leader(fresh_nats: FreshNats) -> None:
    nats = fresh_nats(3)
    connection = await connect(nats.urls)
    stream = connection.jetstream(timeout=10)
    await answered(partial(stream.add_stream, name="EVENTS", subjects=["events.>"], num_replicas=3))
    assert await published(stream, "events.one") == 1
    await connection.close()
    first = nats.leader("EVENTS")
    first.kill()
    assert nats.leader("EVENTS") is not first
    first.start()
    left = [url for url, server in zip(nats.urls, nats.servers, strict=True) if server is not first]
    connection = await connect(left)
    assert await published(connection.jetstream(timeout=10), "events.two") == 2
    await connection.close()


async def published(stream: JetStreamContext, subject: str) -> int:
    """Publish; what is stored, and not acknowledged because its leader has gone, is not stored again."""
    headers = {"Nats-Msg-Id": subject}
    return (await answered(partial(stream.publish, subject, b"hello", headers=headers))).seq


def test_an_account_key_is_one(tmp_path: Path) -> None:
    key = Key.new(nkeys.PREFIX_BYTE_ACCOUNT)
    assert (key.public[0], key.seed[:2]) == ("A", "SA")
    assert "SU" in Operator().creds(tmp_path / "creds").read_text()


def test_nothing_is_left_behind(fresh_nats: FreshNats) -> None:
    nats = fresh_nats(3)
    nats.servers[0].suspend()
    assert traces(nats.directory)
    nats.close()
    assert traces(nats.directory) == []


def test_nothing_is_left_behind_by_tests_that_are_killed(nats: Nats) -> None:
    assert nats
    program = (
        "from tests.testbed.nats import Nats; nats = Nats(); nats.start(); print(nats.directory, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tests:
        assert tests.stdout is not None
        directory = Path(tests.stdout.readline().decode().strip())
        assert traces(directory)
        tests.kill()
    eventually(lambda: not traces(directory), "the sweeper to clean up")
