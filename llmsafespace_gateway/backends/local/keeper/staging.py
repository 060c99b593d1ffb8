"""Calls of the C library by which a keeper that runs as root shows its sandbox what it needs, and no more."""

from __future__ import annotations

import os
from typing import Any

_NEWNS, _BIND, _REC, _PRIVATE = 0x20000, 4096, 16384, 1 << 18


def libc_call(name: str, *arguments: Any) -> None:
    """A C library function that answers 0. Raises OSError with its errno otherwise."""
    import ctypes

    if getattr(ctypes.CDLL(None, use_errno=True), name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def stage(folder: str, staged: list[tuple[str, str]]) -> None:
    """Bind sources below `folder` in a mount namespace of this process's own."""
    libc_call("unshare", _NEWNS)
    libc_call("mount", None, b"/", None, _REC | _PRIVATE, None)
    libc_call("mount", b"tmpfs", folder.encode(), b"tmpfs", 0, b"mode=0755,size=64k")
    for source, name in staged:
        target = f"{folder}/{name}"
        if os.path.isdir(source):
            os.mkdir(target)
        else:
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        libc_call("mount", os.fsencode(source), os.fsencode(target), None, _BIND, None)
