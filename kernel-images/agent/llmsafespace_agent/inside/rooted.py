"""Folders below a root that is not ours: links in it lead to where its own processes would get."""

from __future__ import annotations

import ctypes
import errno
import os
import posixpath

_SYS_OPENAT2 = 437  # the same on every architecture
_RESOLVE_NO_MAGICLINKS, _RESOLVE_IN_ROOT = 0x02, 0x10
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]


class _OpenHow(ctypes.Structure):
    _fields_ = [("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64)]


def open_folder(root: int, path: str) -> int:
    """A descriptor of the folder that a process with this root calls `path`. Raises OSError."""
    flags = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
    how = _OpenHow(flags, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    for _ in range(64):
        result = _syscall(_SYS_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how))
        if result >= 0:
            return int(result)
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: a rename raced with it
            break
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), path)


def make_folders(root: int, path: str) -> None:
    """Make a folder there, and its parents where they are missing. Raises OSError."""
    try:
        os.close(open_folder(root, path))
    except FileNotFoundError:
        parent, name = posixpath.split(path.rstrip("/"))
        make_folders(root, parent)
        folder = open_folder(root, parent)
        try:
            os.mkdir(name, 0o755, dir_fd=folder)
        except FileExistsError:  # somebody was quicker; a file in its place shows when it is entered
            return
        finally:
            os.close(folder)
