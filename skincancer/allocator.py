"""How the C library treats freed memory, which decides how fast networks are on a CPU."""

from __future__ import annotations

import ctypes
import sys


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for the next batch instead of handing it back to the system.

    On a CPU the pages of every large tensor are otherwise mapped and cleared anew: a third of the time of a training step of
    tf_efficientnet_lite0 (benchmarks/allocator.py), and half of the time of its answers (benchmarks/predict.py). It holds for the whole
    process, which from then on keeps its peak of memory. Does nothing where the C library is another.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-4, 0)  # M_MMAP_MAX: large blocks from the heap
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: never shrink it
