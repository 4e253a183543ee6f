"""What processes use, as the kernel counts it: all of a tree, with the children that it has reaped."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_TICK = os.sysconf("SC_CLK_TCK")
_UTIME = 11  # the first of utime, stime, cutime, cstime, counted from behind the name


def process_tree(pids: Iterable[int]) -> Iterator[int]:
    """The processes, and all that descends from them."""
    for pid in pids:
        yield pid
        for thread in Path(f"/proc/{pid}/task").glob("*/children"):
            yield from process_tree(map(int, thread.read_text().split()))


def cpu_seconds(pids: Iterable[int]) -> float:
    """CPU time that the trees have used so far, in user and in kernel mode."""
    ticks = 0
    for pid in process_tree(pids):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(map(int, fields[_UTIME : _UTIME + 4]))
    return ticks / _TICK


def peak_bytes(pids: Iterable[int]) -> int:
    """The most memory that each process of the trees has had in use, added up."""
    total = 0
    for pid in process_tree(pids):
        if found := re.search(r"^VmHWM:\s+(\d+) kB$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE):
            total += int(found[1]) * 1024
    return total
