"""What nats-py lacks; all uses of its internals are here.

No issue of github.com/nats-io/nats.py was found for any of it. pyproject.toml bounds nats-py to the versions that this
module was tested with, and tests/unit/sinks/test_nats_patches.py fails when a name that is used here has disappeared.
"""

from __future__ import annotations

from typing import Any

import nats.errors
from nats.aio.client import Client
from nats.protocol.command import hpub_cmd

from sinks.credentials import abort_transport


class TlsEnforcingClient(Client):
    """Enforces TLS if it is required, and can be aborted."""

    def __init__(self, *, require_tls: bool) -> None:
        super().__init__()
        self._require_tls = require_tls
        self.requests_certificate = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """Send nothing before TLS if it is required; nats-core, of the same authors, does since pull request 912."""
        if self._require_tls and initial_connection:
            if not (info.get("tls_required") or info.get("tls_available")):
                raise nats.errors.SecureConnWantedError
            info["tls_required"] = True
        self.requests_certificate = bool(info.get("tls_verify"))
        await super()._process_info(info, initial_connection)

    async def _send_publish(
        self, subject: str, reply: str, payload: bytes, payload_size: int, headers: dict[str, str] | None
    ) -> None:
        """Write headers ten times as fast as nats-py, which spent half of the time per record on headers."""
        if headers is None:
            return await super()._send_publish(subject, reply, payload, payload_size, headers)
        lines = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        if not lines.count("\r") == lines.count("\n") == len(headers):
            raise nats.errors.BadHeaderError
        await self._send_command(hpub_cmd(subject, reply, f"NATS/1.0\r\n{lines}\r\n".encode(), payload))
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()
        return None

    def abort(self) -> None:
        """Drop the connection, which ends all pending reads and writes; ``close()`` waits until unsent data is sent."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            abort_transport(writer.transport)
