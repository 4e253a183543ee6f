"""A receiver of HTTP requests on loopback, which stores records in a file for each path.

`/moved/...` redirects. The server is written with the standard library, and shares no code with the sink.
"""

from __future__ import annotations

import json
import socket
import sys
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import msgspec
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest

from tests.testbed.server import HOST, Server, Servers, Workspace, free_port


class HttpReceiver(Servers):
    """One server, whose files outlast it."""

    def __init__(self) -> None:
        super().__init__(Workspace("http"))
        self.port = free_port()
        command = [sys.executable, "-m", __name__, str(self.port), str(self.directory)]
        self.servers = [Server("receiver", self._workspace, command, is_ready=self._accepts)]

    @property
    def url(self) -> str:
        """Return the URL without a path."""
        return f"http://{HOST}:{self.port}"

    def stored(self, name: str) -> list[bytes]:
        """Return the documents that were sent to `/name`, in order, without heartbeats."""
        path = self.directory / name
        lines = path.read_bytes().splitlines() if path.exists() else []
        return [line for line in lines if not line.startswith(b'{"version":1,"type":"heartbeat"')]

    def _accepts(self) -> bool:
        with socket.create_connection((HOST, self.port), 1):
            return True


class _Envelope(msgspec.Struct):
    data: msgspec.Raw


def documents(content_type: str, body: bytes) -> list[bytes]:
    """Return the records in a body, each as it was published."""
    match content_type:
        case "application/json":
            return [body]
        case "application/x-ndjson":
            return body.splitlines()
        case "application/cloudevents+json":
            return [bytes(msgspec.json.decode(body, type=_Envelope).data)]
        case "application/cloudevents-batch+json":
            return [bytes(envelope.data) for envelope in msgspec.json.decode(body, type=list[_Envelope])]
        case "application/x-protobuf":
            return [
                log.body.string_value.encode()
                for resource_logs in ExportLogsServiceRequest.FromString(body).resource_logs
                for scope_logs in resource_logs.scope_logs
                for log in scope_logs.log_records
            ]
    raise ValueError(content_type)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    directory: Path

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def do_POST(self) -> None:
        if self.path.startswith("/moved/"):
            self._respond(HTTPStatus.PERMANENT_REDIRECT, Location=self.path.removeprefix("/moved"))
            return
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with (self.directory / self.path.removeprefix("/")).open("ab") as file:
            file.writelines(line + b"\n" for line in documents(self.headers["Content-Type"], body))
        self._respond(HTTPStatus.NO_CONTENT)

    def do_OPTIONS(self) -> None:
        if self.path.startswith("/moved/"):
            self._respond(HTTPStatus.PERMANENT_REDIRECT, Location=self.path.removeprefix("/moved"))
        else:
            self._respond(HTTPStatus.NO_CONTENT, Allow="POST, OPTIONS")

    def _respond(self, status: int, **headers: str) -> None:
        self.send_response(status)
        if status != HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", "0")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        print(json.dumps([self.path, format % arguments]), file=sys.stderr)


def main(port: int, directory: Path) -> None:
    """Serve until the process ends."""
    _Handler.directory = directory
    ThreadingHTTPServer((HOST, port), _Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
