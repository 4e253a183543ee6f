"""How much freed memory the process keeps for itself."""

from __future__ import annotations

import ctypes

# From glibc's malloc.h, and how many bytes.
_OPTIONS = {
    -1: 16 * 1024 * 1024,  # M_TRIM_THRESHOLD: free memory at the end of the heap before some is given back
    -2: 1024 * 1024,  # M_TOP_PAD: what is asked for beyond what is needed
    -3: 4 * 1024 * 1024,  # M_MMAP_THRESHOLD: from what size on a block is one of the kernel's own
}


def keep_freed() -> bool:
    """Have malloc keep what the next batch of records needs again.

    By glibc's defaults each batch that was sent is given back to the kernel, and what the next one gets instead has to
    be cleared page by page: a twentieth of what an event of a flood costs (``make bench``). What the environment says
    of malloc (``MALLOC_TRIM_THRESHOLD_`` and the like) is overridden. Source: mallopt(3).

    Returns:
        Whether this is glibc, and it agreed; with another C library nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(option, value) == 1 for option, value in _OPTIONS.items())
