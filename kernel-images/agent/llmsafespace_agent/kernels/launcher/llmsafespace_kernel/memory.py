"""Freed memory stays for the next message, instead of coming back from the system page by page."""

from __future__ import annotations

import contextlib
import ctypes
import os

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # M_… of malloc.h
_KEPT = 64 * 1024 * 1024  # bytes free at the heap's end from which the system gets them back
_OWN_MAPPING = 32 * 1024 * 1024  # blocks of this size are mappings of their own, and go back at once


def keep_freed_memory() -> None:
    """A message of 1 MiB otherwise costs some 500 page faults. The user's own MALLOC_… settings stand.

    orjson reserves eight times the length of a text before it writes it: hence blocks larger than messages.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return
    with contextlib.suppress(OSError, AttributeError):  # not every C library has it
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_TRIM_THRESHOLD, _KEPT)
        mallopt(_MMAP_THRESHOLD, _OWN_MAPPING)
