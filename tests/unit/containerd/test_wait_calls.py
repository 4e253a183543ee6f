"""Test the calls that wait for exits: results and errors, thousands at a time, reconnects."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.containerd.protos.tasks_pb2 import WaitResponse
from bridge.containerd.protos.waits_pb2 import WaitEnd, WaitsRequest, WaitsResponse
from bridge.containerd.wait_calls import ContainerdWaitCalls
from bridge.core.containerd_model import ContainerKey, ExitStatus
from bridge.core.errors import BridgeError, TransientError
from tests.golden import Golden
from tests.unit.containerd.http2_peer import (
    DATA,
    HEADERS,
    Peer,
    frames,
    messages,
    response_headers,
    settings,
    trailers,
    trailers_only,
    window_update,
)

KEY = ContainerKey("shop", "web")
RESPONSE = WaitResponse(exit_status=7, exited_at={"seconds": 8}).SerializeToString()

Result = ExitStatus | BridgeError | None


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path / "c.sock")
    yield peer
    peer.close()


@pytest.fixture
def calls(peer: Peer) -> Iterator[ContainerdWaitCalls]:
    calls = ContainerdWaitCalls(peer.path)
    yield calls
    calls.close()


def response(content: bytes = RESPONSE, stream: int = 1) -> bytes:
    return response_headers(stream) + messages(content, stream=stream) + trailers(stream)


async def result_of(peer: Peer, calls: ContainerdWaitCalls, content: bytes) -> Result:
    results: list[Result] = []
    calls.start(KEY, results.append)
    peer.accept()
    await peer.send(settings() + content)
    await asyncio.sleep(1)
    (result,) = results
    return result


async def test_wait_call_returns_exit_status(peer: Peer, calls: ContainerdWaitCalls) -> None:
    assert await result_of(peer, calls, response()) == ExitStatus(7, 8_000_000_000)


async def test_wait_call_returns_none_without_task(peer: Peer, calls: ContainerdWaitCalls) -> None:
    assert await result_of(peer, calls, trailers_only(status="5", text="no running task found")) is None


@pytest.mark.parametrize(
    ("case", "content"),
    [
        ("fails", trailers_only(status="13", text="for a reason")),
        ("unreadable", response(b"\xff")),
        ("empty", response_headers() + trailers()),
    ],
)
async def test_wait_call_returns_error(
    peer: Peer, calls: ContainerdWaitCalls, golden: Golden, case: str, content: bytes
) -> None:
    result = await result_of(peer, calls, content)
    assert isinstance(result, TransientError)
    with golden.error("containerd_errors", f"Tasks.Wait {case}", TransientError, peer.path):
        raise result


async def test_wait_call_returns_none_for_invalid_key(calls: ContainerdWaitCalls) -> None:
    results: list[Result] = []
    for key in (ContainerKey("shop", ""), ContainerKey("", "web"), ContainerKey("a b", "c")):
        calls.start(key, results.append)
    assert results == [None] * 3


async def test_wait_call_reconnects_after_end_of_connection(peer: Peer, calls: ContainerdWaitCalls) -> None:
    results: list[Result] = []
    for _ in range(2):
        calls.start(KEY, results.append)
    peer.accept()
    peer.hang_up()
    await asyncio.sleep(1)
    assert [type(result).__mro__[1] for result in results] == [TransientError] * 2
    assert await result_of(peer, calls, response()) == ExitStatus(7, 8_000_000_000)


async def test_wait_call_returns_error_when_socket_is_missing(tmp_path: Path) -> None:
    results: list[Result] = []
    ContainerdWaitCalls(f"{tmp_path}/c.sock").start(KEY, results.append)
    assert isinstance(results[0], TransientError)


async def test_closed_wait_calls_return_nothing(calls: ContainerdWaitCalls) -> None:
    results: list[Result] = []
    calls.start(KEY, results.append)
    for _ in range(2):
        calls.close()
    calls.start(KEY, results.append)
    await asyncio.sleep(1)
    assert results == []


async def test_ten_thousand_wait_calls_share_a_connection(peer: Peer, calls: ContainerdWaitCalls) -> None:
    results: list[Result] = []
    for number in range(10_000):
        calls.start(ContainerKey("shop", f"c{number}"), results.append)
    peer.accept()
    await peer.send(settings() + window_update(0, 2**30))
    received = b""
    await asyncio.sleep(1)
    while part := peer.received():  # until there is no more
        received += part
        await asyncio.sleep(1)
    assert [each.stream for each in frames(received) if each.type == HEADERS] == list(range(1, 20_000, 2))
    await peer.send(b"".join(response(stream=2 * number + 1) for number in range(10_000)))
    await asyncio.sleep(10)
    assert results == [ExitStatus(7, 8_000_000_000)] * 10_000


# --- through the proxy ---


@pytest.fixture
def proxied(peer: Peer) -> Iterator[ContainerdWaitCalls]:
    calls = ContainerdWaitCalls(peer.path, proxied=True)
    yield calls
    calls.close()


def requested(sent: bytes) -> list[tuple[int, str, str]]:
    """Return the waits that a client has sent, whose messages are in frames of their own."""
    bodies = [each.payload[5:] for each in frames(sent) if each.type == DATA]
    waits = [wait for body in bodies for wait in WaitsRequest.FromString(body).waits]
    return [(wait.number, wait.namespace, wait.container_id) for wait in waits]


def ends(*ends: WaitEnd) -> bytes:
    return messages(WaitsResponse(ends=ends).SerializeToString())


async def test_proxied_waits_share_a_call(peer: Peer, proxied: ContainerdWaitCalls) -> None:
    results: dict[str, Result] = {}

    def wait(id_: str) -> None:
        proxied.start(ContainerKey("shop", id_), lambda result: results.update({id_: result}))

    for id_ in ("exited", "gone"):
        wait(id_)
    peer.accept()
    await peer.send(settings())
    await asyncio.sleep(1)
    assert requested(peer.received()) == []
    await peer.send(response_headers())
    await asyncio.sleep(1)
    wait("failed")
    wait("running")
    await asyncio.sleep(1)
    names = ["exited", "gone", "failed", "running"]
    assert requested(peer.received()) == [(number, "shop", id_) for number, id_ in enumerate(names, 1)]
    await peer.send(ends(WaitEnd(number=3, code=13, details="why"), WaitEnd(number=1, code=0, response=RESPONSE)))
    await peer.send(ends(WaitEnd(number=2, code=5), WaitEnd(number=1, code=5), WaitEnd(number=77)))
    await asyncio.sleep(1)
    assert isinstance(results.pop("failed"), TransientError)
    assert results == {"exited": ExitStatus(7, 8_000_000_000), "gone": None}


@pytest.mark.parametrize(
    "content",
    [trailers(status="8", text="too many"), messages(b"\xff"), b"invalid " * 9],
    ids=["denied", "unreadable", "invalid"],
)
async def test_proxied_waits_end_with_their_call(peer: Peer, proxied: ContainerdWaitCalls, content: bytes) -> None:
    results: list[Result] = []
    proxied.start(KEY, results.append)
    peer.accept()
    await peer.send(settings() + response_headers())
    await asyncio.sleep(1)
    proxied.start(KEY, results.append)
    await peer.send(content)
    await asyncio.sleep(1)
    assert [isinstance(each, TransientError) for each in results] == [True, True]
    peer.hang_up()
    proxied.start(KEY, results.append)
    peer.accept()
    await peer.send(settings() + response_headers())
    await asyncio.sleep(1)
    assert requested(peer.received()) == [(1, "shop", "web")]


@pytest.mark.parametrize("status", ["7", "12"])
async def test_older_proxies_get_a_call_for_each_wait(peer: Peer, proxied: ContainerdWaitCalls, status: str) -> None:
    results: list[Result] = []
    for _ in range(2):
        proxied.start(KEY, results.append)
    peer.accept()
    await peer.send(settings() + trailers_only(status=status, text="unknown method"))
    await asyncio.sleep(1)
    proxied.start(KEY, results.append)
    await asyncio.sleep(1)
    assert [each.stream for each in frames(peer.received()) if each.type == HEADERS] == [1, 3, 5, 7]
    await peer.send(response(stream=3) + response(stream=5) + response(stream=7))
    await asyncio.sleep(1)
    assert results == [ExitStatus(7, 8_000_000_000)] * 3


async def test_proxied_waits_fail_when_socket_is_missing(tmp_path: Path) -> None:
    results: list[Result] = []
    ContainerdWaitCalls(f"{tmp_path}/c.sock", proxied=True).start(KEY, results.append)
    assert isinstance(results[0], TransientError)
