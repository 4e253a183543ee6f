"""CPU time and memory of process trees, as counted by the kernel, including children that have exited."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_UTIME = 11  # index of utime, stime, cutime, cstime in /proc/PID/stat, counted after the name


def process_tree(pids: Iterable[int]) -> Iterator[int]:
    """Yield the processes and all of their descendants."""
    for pid in pids:
        yield pid
        for thread in Path(f"/proc/{pid}/task").glob("*/children"):
            yield from process_tree(map(int, thread.read_text().split()))


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time (user and system) that the trees have used so far."""
    ticks = 0
    for pid in process_tree(pids):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[_UTIME : _UTIME + 4]))
    return ticks / _TICK


def peak_bytes(pids: Iterable[int]) -> int:
    """Return the sum of the peak resident memory of the processes."""
    return _status_bytes(pids, "VmHWM")


def resident_bytes(pids: Iterable[int]) -> int:
    """Return the sum of the present resident memory of the processes."""
    return _status_bytes(pids, "VmRSS")


def _status_bytes(pids: Iterable[int], name: str) -> int:
    total = 0
    for pid in process_tree(pids):
        status = Path(f"/proc/{pid}/status").read_text()
        if match := re.search(rf"^{name}:\s+(\d+) kB$", status, re.MULTILINE):
            total += int(match[1]) * 1024
    return total
