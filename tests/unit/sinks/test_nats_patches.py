"""Test that the patched nats-py client differs from nats-py only in the intended behavior."""

from __future__ import annotations

import inspect
import string

import nats.errors
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.transport import TcpTransport

from sinks.nats import nats_patches
from sinks.nats.nats_patches import TlsEnforcingClient
from tests.unit.sinks.library_internals import check_internals

NAMES = st.text(string.ascii_letters + string.digits + "-", min_size=1)
VALUES = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E))


async def sent_bytes(kind: type[Client], headers: dict[str, str] | None, data: bytes) -> list[bytes]:
    commands: list[bytes] = []

    class Capturing(kind):  # type: ignore[misc, valid-type]
        async def _send_command(self, cmd: bytes, priority: bool = False) -> None:
            assert not priority
            commands.append(cmd)

    client = Capturing() if kind is Client else Capturing(require_tls=False)
    await client._send_publish("a.b", "reply", data, len(data), headers)
    return commands


@given(st.none() | st.dictionaries(NAMES, VALUES), st.binary())
async def test_patched_client_writes_same_bytes_as_nats_py(headers: dict[str, str] | None, data: bytes) -> None:
    assert await sent_bytes(TlsEnforcingClient, headers, data) == await sent_bytes(Client, headers, data)


@pytest.mark.parametrize("value", ["a\r\nPUB x 0", "a\nb", "a\rb", "\r\n"])
async def test_patched_client_rejects_line_breaks_in_headers(value: str) -> None:
    with pytest.raises(nats.errors.BadHeaderError):
        await sent_bytes(TlsEnforcingClient, {"name": value}, b"")
    with pytest.raises(nats.errors.BadHeaderError):
        await sent_bytes(TlsEnforcingClient, {value: "value"}, b"")


@pytest.mark.parametrize(
    ("tls", "offered"), [({}, False), ({"tls_required": True}, True), ({"tls_available": True}, True)]
)
async def test_patched_client_sends_nothing_without_required_tls(tls: dict[str, bool], offered: bool) -> None:
    client = TlsEnforcingClient(require_tls=True)
    client._setup_server_pool(["nats://n1:4222"])
    client._current_server = client._server_pool[0]
    if offered:
        await client._process_info(tls, initial_connection=True)
        assert tls["tls_required"]
    else:
        with pytest.raises(nats.errors.SecureConnWantedError):
            await client._process_info(tls, initial_connection=True)


def test_patched_client_abort_before_connect_is_harmless() -> None:
    TlsEnforcingClient(require_tls=False).abort()


def test_nats_py_has_internals_that_patches_use() -> None:
    client = Client()
    names = ("_process_info", "_send_publish", "_send_command", "_flush_queue", "_flush_pending", "_transport")
    owners = {**dict.fromkeys(names, client), "_io_writer": TcpTransport()}  # type: ignore[no-untyped-call] # nats-py lacks this type
    check_internals(nats_patches, {"_require_tls"}, owners)


@pytest.mark.parametrize("method", ["_process_info", "_send_publish"])
def test_nats_py_has_methods_with_parameters_of_patches(method: str) -> None:
    patched, original = (
        list(inspect.signature(getattr(each, method)).parameters) for each in (TlsEnforcingClient, Client)
    )
    assert patched == original, f"see {method}() in {nats_patches.__file__}"
