"""The testbed's NATS: storage, authentication, permissions, failures and cleanup."""

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
from tests.integration.leaks import find_leaks
from tests.integration.nats_reading import retry_until_available
from tests.testbed import nats_auth
from tests.testbed.nats import Nats
from tests.testbed.nats_auth import AUTH_TIMEOUT, Key, Operator, Permissions

NatsFactory = Callable[..., Nats]

RIGHT, WRONG = "secret", "other"


async def store(url: str | list[str], *, seconds: int = 20, **auth: Any) -> int:
    """Publish one message to a stream and return its sequence; one attempt, ``seconds`` is the timeout of each step."""

    async def ignore(error: Exception) -> None:
        """Ignore the error, which the default callback would log."""

    connection = Client()
    try:
        async with asyncio.timeout(
            2 * seconds
        ):  # the client tries an unavailable server 60 times even without reconnects
            await connection.connect(url, connect_timeout=seconds, allow_reconnect=False, error_cb=ignore, **auth)
            stream = connection.jetstream(timeout=seconds)
            await stream.add_stream(name="EVENTS", subjects=["events.>"])
            return (await stream.publish("events.one", b"hello")).seq
    finally:
        await asyncio.wait_for(connection.close(), seconds)  # connect() leaves its socket open if it fails


def handshake(url: str, context: ssl.SSLContext) -> None:
    """Connect over TLS with a plain socket: nats-py's client cannot be closed after a failed handshake."""
    address = urlsplit(url)
    assert address.hostname
    assert address.port
    with socket.create_connection((address.hostname, address.port), timeout=AUTH_TIMEOUT) as plain:
        assert plain.recv(4096).startswith(b"INFO ")
        with context.wrap_socket(plain, server_hostname=address.hostname) as connection:
            connection.sendall(b'CONNECT {"verbose": false}\r\nPING\r\n')
            received = b""
            while b"PONG\r\n" not in received:  # the server also sends PING
                part = connection.recv(4096)
                assert part, received
                received += part


def tls_context(authority: Authority, own: Certificate | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.certificate))
    if own:
        context.load_cert_chain(own.certificate, own.key)
    return context


async def test_testbed_nats_stores_messages(nats: Nats) -> None:
    first = await store(nats.url)
    assert await store(nats.url) == first + 1
    assert nats.leader("EVENTS").name == "n1"
    assert nats.monitor("varz")["version"].startswith("2.15.")


async def test_testbed_nats_keeps_messages_across_restarts(nats_factory: NatsFactory) -> None:
    nats = nats_factory()
    assert await store(nats.url) == 1
    nats.kill()
    nats.start()
    assert await store(nats.url) == 2
    nats.stop()
    nats.start()
    assert await store(nats.url) == 3


async def test_testbed_nats_is_unresponsive_while_suspended(nats_factory: NatsFactory) -> None:
    nats = nats_factory()
    nats.suspend()
    with pytest.raises((TimeoutError, NatsError)):
        await store(nats.url, seconds=2)
    nats.resume()
    assert await store(nats.url) == 1


async def test_testbed_nats_checks_token_password_and_permissions(nats_factory: NatsFactory) -> None:
    nats = nats_factory(auth=nats_auth.token_config(RIGHT))
    assert await store(nats.url, token=RIGHT) == 1
    with pytest.raises(NatsError, match="Authorization Violation"):
        await store(nats.url, token=WRONG)
    restricted = Permissions(publish=["nothing"])
    nats = nats_factory(auth=nats_auth.users_config({"bridge": RIGHT, "guest": RIGHT}, {"guest": restricted}))
    assert await store(nats.url, user="bridge", password=RIGHT) == 1
    with pytest.raises(NatsError, match="Authorization Violation"):
        await store(nats.url, user="bridge", password=WRONG)
    with pytest.raises((TimeoutError, NatsError)):
        await store(nats.url, seconds=2, user="guest", password=RIGHT)


async def test_testbed_nats_checks_nkeys(nats_factory: NatsFactory, tmp_path: Path) -> None:
    right, wrong = Key.generate(), Key.generate()
    for name, key in {"right": right, "wrong": wrong}.items():
        (tmp_path / name).write_text(key.seed)
    nats = nats_factory(auth=nats_auth.nkey_config(right))
    assert await store(nats.url, nkeys_seed=str(tmp_path / "right")) == 1
    with pytest.raises(NatsError, match="Authorization Violation"):
        await store(nats.url, nkeys_seed=str(tmp_path / "wrong"))


async def test_testbed_nats_checks_operator_credentials(nats_factory: NatsFactory, tmp_path: Path) -> None:
    operator = Operator()
    nats = nats_factory(auth=operator.config())
    assert await store(nats.url, user_credentials=str(operator.write_creds(tmp_path / "right"))) == 1
    for wrong in (operator.write_creds(tmp_path / "expired", seconds=-5), Operator().write_creds(tmp_path / "foreign")):
        with pytest.raises(NatsError, match="Authorization Violation"):
            await store(nats.url, user_credentials=str(wrong))
    restricted = operator.write_creds(tmp_path / "restricted", permissions=Permissions(publish=["nothing"]))
    with pytest.raises((TimeoutError, NatsError)):
        await store(nats.url, seconds=2, user_credentials=str(restricted))


async def test_testbed_nats_serves_tls(nats_factory: NatsFactory, authority: Authority, tmp_path: Path) -> None:
    nats = nats_factory(authority=authority)
    assert await store(nats.url, tls=tls_context(authority)) == 1
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        handshake(nats.url, tls_context(Authority(tmp_path)))
    elsewhere = nats_factory(authority=authority, certificate=authority.issue("nats", hosts=["elsewhere"]))
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for '127\.0\.0\.1'"):
        handshake(elsewhere.url, tls_context(authority))
    expired = nats_factory(authority=authority, certificate=authority.issue("nats", expired=True))
    with pytest.raises(ssl.SSLCertVerificationError, match="has expired"):
        handshake(expired.url, tls_context(authority))


async def test_testbed_nats_requires_client_certificate(nats_factory: NatsFactory, authority: Authority) -> None:
    nats = nats_factory(authority=authority, mtls=True)
    own = authority.issue("bridge", hosts=())
    handshake(nats.url, tls_context(authority, own))
    assert await store(nats.url, tls=tls_context(authority, own)) == 1
    with pytest.raises(OSError):  # noqa: PT011 - an alert or a reset, whichever comes first
        handshake(nats.url, tls_context(authority))


async def test_testbed_nats_proxy_fails_and_recovers_on_request(nats_factory: NatsFactory) -> None:
    nats = nats_factory(proxied=True)
    proxy = nats.proxies[0]
    assert await store(nats.url) == 1
    for fail in (proxy.refuse, proxy.drop_traffic, lambda: proxy.reset_after(100)):
        fail()
        with pytest.raises((TimeoutError, OSError, NatsError)):
            await store(nats.url, seconds=2)
        proxy.restore()
        assert await store(nats.url) > 1
    began = asyncio.get_running_loop().time()
    proxy.delay(0.1)
    await store(nats.url)
    assert (
        asyncio.get_running_loop().time() - began > 0.3
    )  # authentication, stream and message: at least three responses


async def test_testbed_nats_cluster_elects_another_leader(nats_factory: NatsFactory) -> None:
    nats = nats_factory(3)
    connection = await connect(nats.urls)
    stream = connection.jetstream(timeout=10)
    await retry_until_available(partial(stream.add_stream, name="EVENTS", subjects=["events.>"], num_replicas=3))
    assert await publish_and_count(stream, "events.one") == 1
    await connection.close()
    first = nats.leader("EVENTS")
    first.kill()
    assert nats.leader("EVENTS") is not first
    first.start()
    remaining = [url for url, server in zip(nats.urls, nats.servers, strict=True) if server is not first]
    connection = await connect(remaining)
    assert await publish_and_count(connection.jetstream(timeout=10), "events.two") == 2
    await connection.close()


async def publish_and_count(stream: JetStreamContext, subject: str) -> int:
    """Publish with a message id, and return the sequence: a retry after a lost acknowledgment stores nothing."""
    headers = {"Nats-Msg-Id": subject}
    return (await retry_until_available(partial(stream.publish, subject, b"hello", headers=headers))).seq


def test_testbed_nkeys_create_account_key(tmp_path: Path) -> None:
    key = Key.generate(nkeys.PREFIX_BYTE_ACCOUNT)
    assert (key.public[0], key.seed[:2]) == ("A", "SA")
    assert "SU" in Operator().write_creds(tmp_path / "creds").read_text()


def test_testbed_nats_leaves_nothing_behind(nats_factory: NatsFactory) -> None:
    nats = nats_factory(3)
    nats.servers[0].suspend()
    assert find_leaks(nats.directory)
    nats.close()
    assert find_leaks(nats.directory) == []


def test_testbed_nats_is_cleaned_up_when_tests_are_killed(nats: Nats) -> None:
    assert nats
    program = (
        "from tests.testbed.nats import Nats; nats = Nats(); nats.start(); print(nats.directory, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tests:
        assert tests.stdout is not None
        directory = Path(tests.stdout.readline().decode().strip())
        assert find_leaks(directory)
        tests.kill()
    eventually(lambda: not find_leaks(directory), "the cleanup")
