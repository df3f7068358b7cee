"""Memory that the process keeps instead of asking the system for it again in every step.

glibc returns each large buffer to the system when it is freed; the next one of the same size costs a page
fault for every 4 kB. A training step of iComFormer on Perov-5 (96 channels) spent a third of its time so.
"""

from __future__ import annotations

import ctypes
import functools
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # glibc's malloc.h


@functools.cache
def keep_freed_memory() -> bool:
    """Lets glibc's heap keep freed buffers; elsewhere does nothing. True where it took effect."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library, such as musl
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 64 * 2**20))
    return all(mallopt(option, value) == 1 for option, value in settings)
