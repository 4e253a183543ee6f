"""Check that freed memory stays in the process until it is returned, and how often garbage is collected."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bridge import memory_tuning
from bridge.clock import SystemClock

# Counts the page faults of twenty consecutive batches of 8 MiB.
PROGRAM = """
import resource
from bridge import memory_tuning
{first}
def batch():
    return [bytes(64 * 1024) for _ in range(128)]
batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    batch()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(first: str) -> int:
    program = PROGRAM.format(first=first)
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return int(process.stdout)


def test_freed_memory_is_retained() -> None:
    by_default, retained = page_faults(""), page_faults("assert memory_tuning.retain_freed_memory()")
    assert retained < by_default / 4, "malloc may retain memory by default now; the setting may be obsolete"


def test_retained_memory_is_returned_after_a_while() -> None:
    program = """
import asyncio, re
from pathlib import Path
from bridge import memory_tuning
from bridge.clock import SystemClock
def resident_kib():
    return int(re.search(r"VmRSS:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
async def main():
    memory_tuning.TRIM_SECONDS = 0.1
    returning = asyncio.create_task(memory_tuning.return_freed_memory(SystemClock()))
    blocks = [bytes(8192) for _ in range(8192)]
    kept = blocks[::64]
    del blocks
    before = resident_kib()
    await asyncio.sleep(0.3)
    print(before - resident_kib())
    returning.cancel()
memory_tuning.retain_freed_memory()
asyncio.run(main())
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert int(process.stdout) > 48 * 1024  # of 64 MiB


async def test_allocator_is_unchanged_for_other_c_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace())
    assert memory_tuning.retain_freed_memory() is False
    await memory_tuning.return_freed_memory(SystemClock())  # ends at once


def test_batch_causes_no_garbage_collection() -> None:
    program = """
import gc
from bridge import memory_tuning
memory_tuning.collect_garbage_rarely()
before = gc.get_stats()
batch = [[] for _ in range(5000)]
print(gc.get_stats() == before)
"""
    process = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    assert process.stdout == "True\n"
