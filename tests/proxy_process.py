"""Run `whalebridge proxy` as a process."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class ProxyProcess:
    """`whalebridge proxy` for a containerd, listening at `address`; exiting the context stops it with SIGTERM."""

    def __init__(self, containerd: str, directory: Path, *flags: str) -> None:
        self.address = f"{directory}/proxy.sock"
        self.log = directory / "proxy.jsonl"
        self.command = [sys.executable, "-m", "bridge", "proxy", "--containerd", containerd]
        self.command += ["--listen", self.address, *flags]
        self.process: subprocess.Popen[bytes]

    def start(self) -> None:
        """Start the proxy, and wait until it listens."""
        before = len(self.log_lines("proxy_started"))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while len(self.log_lines("proxy_started")) == before:
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()  # noqa: PT018
            time.sleep(0.02)

    def stop(self) -> None:
        """Send SIGTERM, and expect a clean exit."""
        self.process.terminate()
        assert self.process.wait(30) == 0, self.log.read_text()
        assert not os.path.exists(self.address)

    def log_lines(self, event: str) -> list[dict[str, Any]]:
        """Return the log lines of an event."""
        data = self.log.read_bytes() if self.log.exists() else b""
        complete_lines = data[: data.rfind(b"\n") + 1].splitlines()  # the last line may be incomplete
        return [line for line in map(json.loads, complete_lines) if line["event"] == event]

    def peak_bytes(self) -> int:
        """Return the peak resident memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        peak = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        assert peak is not None, status
        return int(peak[1]) * 1024

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.stop()
        elif self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
