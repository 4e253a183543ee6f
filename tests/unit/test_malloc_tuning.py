"""Check that memory freed by one batch stays in the process for the next batch."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bridge import malloc_tuning

# Counts the page faults of twenty consecutive batches of 8 MiB.
PROGRAM = """
import resource
from bridge import malloc_tuning
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
    by_default, retained = page_faults(""), page_faults("assert malloc_tuning.retain_freed_memory()")
    assert retained < by_default / 4, "malloc may retain memory by default now; the setting may be obsolete"


def test_allocator_is_unchanged_for_other_c_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace())
    assert malloc_tuning.retain_freed_memory() is False
