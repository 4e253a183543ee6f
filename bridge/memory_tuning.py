"""Settings of glibc's allocator and of Python's garbage collector, for a process that handles large batches."""

from __future__ import annotations

import ctypes
import gc
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bridge.core.ports import Clock

TRIM_SECONDS = 60.0
_COLLECTION_THRESHOLD = 10_000  # new objects; Python's default is 700, which a batch of 50 events creates

# Option numbers from glibc's malloc.h, and values in bytes.
_OPTIONS = {
    -1: 16 * 1024 * 1024,  # M_TRIM_THRESHOLD: free memory at the top of the heap before it is returned to the kernel
    -2: 1024 * 1024,  # M_TOP_PAD: additional memory to request from the kernel
    -3: 4 * 1024 * 1024,  # M_MMAP_THRESHOLD: minimum size of blocks that use mmap
}


def collect_garbage_rarely() -> None:
    """Make Python look less often for unreachable cycles, of which there are few.

    A snapshot creates hundreds of thousands of objects that stay: looking through them again and again takes a tenth
    of its CPU time (``make bench``).
    """
    gc.set_threshold(_COLLECTION_THRESHOLD)


def retain_freed_memory() -> bool:
    """Make malloc retain freed memory for the next batch of records. Source: mallopt(3).

    With glibc's defaults, the memory of each batch is returned to the kernel, which has to clear the pages for the next
    batch: 5 % of the cost of an event under load (``make bench``). This overrides environment variables such as
    ``MALLOC_TRIM_THRESHOLD_``.

    Returns:
        Whether glibc accepted all options; with another C library nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in _OPTIONS.items())


async def return_freed_memory(clock: Clock) -> None:
    """Return retained memory to the kernel once a minute; with another C library than glibc, do nothing.

    Listings, snapshots and backlogs free tens of MiB on a large node. Source: malloc_trim(3).
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    while trim is not None:
        await clock.sleep(TRIM_SECONDS)
        trim(0)
