"""A Debian mirror on this machine that keeps what it has fetched, for builds that install Debian packages."""

from __future__ import annotations

import os
import re
import tempfile
import threading
import urllib.error
import urllib.parse
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.testbed.components import cache_directory
from tests.testbed.process import Closing

UPSTREAM = "http://deb.debian.org"
_PATH = re.compile(r"/debian(-security)?(/[\w.+~:-]+)+")
_IMMUTABLE = re.compile(r"/pool/|/by-hash/")


class DebianMirror(Closing):
    """An HTTP server on 127.0.0.1; `url` is a value for the build argument DEBIAN_MIRROR.

    Packages and indices with their hash in the path are fetched once. Everything else, such as InRelease, is fetched
    again each time, and served from the copy if Debian cannot be reached. apt verifies signatures and hashes of all.
    """

    def __init__(self, upstream: str = UPSTREAM) -> None:
        self._upstream = upstream
        self._directory = cache_directory() / "debian-mirror"
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        """Serve requests."""
        self._thread.start()

    def close(self) -> None:
        """Stop the server."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _read(self, path: str) -> bytes:
        """Return a file of the mirror.

        Raises:
            OSError: it does not exist, or Debian cannot be reached and there is no copy.
        """
        if not _PATH.fullmatch(path) or ".." in path.split("/"):
            raise FileNotFoundError(path)
        copy = self._directory / path.removeprefix("/")
        if _IMMUTABLE.search(path) and copy.exists():
            return copy.read_bytes()
        try:
            with urllib.request.urlopen(self._upstream + path, timeout=60) as response:  # noqa: S310 - http to Debian
                content: bytes = response.read()
        except urllib.error.HTTPError:
            raise
        except OSError:
            if copy.exists():
                return copy.read_bytes()
            raise
        copy.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=copy.parent, delete=False) as file:
            file.write(content)
        os.replace(file.name, copy)
        return content

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        mirror = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                try:
                    content = mirror._read(urllib.parse.unquote(self.path))
                except OSError as error:
                    self.send_error(404 if isinstance(error, FileNotFoundError | urllib.error.HTTPError) else 502)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                """Log nothing: apt reports what it cannot fetch."""

        return Handler
