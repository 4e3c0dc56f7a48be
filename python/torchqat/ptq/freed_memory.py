"""Memory that glibc keeps for a while, where one forward after the other wants and frees the same amounts."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager

# Of malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
# What glibc comes to by itself once a program has freed a block of 32 MiB, the largest that it learns from.
_LEARNED_MMAP, _LEARNED_TRIM = 32 << 20, 64 << 20
_KEPT = 1 << 30
_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "MALLOC_MMAP_MAX_")


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Up to 1 GiB of freed memory is not given back to the system until the end: its page faults cost more than products.

    Where the user has set how glibc allocates, or there is no glibc, nothing is changed. Otherwise its thresholds stay
    afterwards where they go by themselves in a program that frees large blocks.
    """
    glibc = _glibc()
    if glibc is None or is_set_by_user():
        yield
        return
    glibc.mallopt(_MMAP_THRESHOLD, _LEARNED_MMAP)
    glibc.mallopt(_TRIM_THRESHOLD, _KEPT)
    try:
        yield
    finally:
        glibc.mallopt(_TRIM_THRESHOLD, _LEARNED_TRIM)
        glibc.malloc_trim(0)


def is_set_by_user() -> bool:
    return any(name in os.environ for name in _SETTINGS) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")


def _glibc() -> ctypes.CDLL | None:
    program = ctypes.CDLL(None) if os.name == "posix" else None
    return program if hasattr(program, "gnu_get_libc_version") and hasattr(program, "mallopt") else None
