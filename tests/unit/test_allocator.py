"""What a batch has freed is there for the next one, and is not given back to the kernel in between."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bridge import allocator

# Twenty batches of 8 MiB, one after the other; how often the kernel had to find a page for them.
PROGRAM = """
import resource
from bridge import allocator
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
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    return int(done.stdout)


def test_freed_memory_is_retained() -> None:
    by_default, kept = page_faults(""), page_faults("assert allocator.raise_trim_threshold()")
    assert kept < by_default / 4, "or malloc keeps it by itself, and this is not needed any more"


def test_allocator_is_unchanged_for_other_c_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: SimpleNamespace())
    assert allocator.raise_trim_threshold() is False
