"""Opening paths strictly beneath one folder: no `..`, symlink or race leads out of it.

Uses openat2(2) with RESOLVE_BENEATH where the kernel and its seccomp filter allow it, otherwise a walk from
folder to folder that follows no symlink at all.
"""

from __future__ import annotations

import ctypes
import errno
import os
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager

from llmsafespace_agent.server.errors import invalid

_SYS_OPENAT2 = 437  # the same on every architecture
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_BENEATH = 0x08
_RENAME_NOREPLACE = 1
_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p, ctypes.c_size_t]


WORKSPACE = "/workspace"  # what clients call the root, wherever it really is


class _OpenHow(ctypes.Structure):
    _fields_ = [
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    ]


class Beneath:
    """A folder that paths are resolved beneath; `near` is how this process gets there, if not by its name.

    `openat2` False forces the walk (tests do).
    """

    def __init__(self, root: str, openat2: bool = True, near: str | None = None) -> None:
        self.root = root.rstrip("/") or "/"
        self._near = near or self.root
        self._names = (self.root, WORKSPACE)
        self._openat2 = openat2
        self._handle: int | None = None

    def relative(self, path: str) -> str:
        """`path` (absolute or relative to the root) as a normal path relative to the root, '.' for itself.

        Raises AgentError for a path that lies outside, as written.
        """
        if "\0" in path or len(path) > 4096:
            raise invalid("a path must have at most 4096 characters and no NUL")
        inside = path
        if path.startswith("/"):
            name = next((name for name in self._names if f"{path}/".startswith(f"{name}/")), None)
            if name is None:
                raise invalid(f"{path[:200]} is not beneath {self.root}", path=path[:200])
            inside = path[len(name) :].lstrip("/")
        inside = posixpath.normpath(inside or ".")
        if inside == ".." or inside.startswith("../"):
            raise invalid(f"{path[:200]} is not beneath {self.root}", path=path[:200])
        return inside

    def absolute(self, relative: str) -> str:
        """The path inside the sandbox of a path relative to the root."""
        return self.root if relative == "." else f"{self.root}/{relative}"

    def open(self, relative: str, flags: int, mode: int = 0) -> int:
        """A descriptor of `relative`. Raises OSError (EXDEV or ELOOP when a symlink leads out)."""
        flags |= os.O_CLOEXEC
        if self._openat2:
            try:
                return self._open2(relative, flags, mode)
            except OSError as error:
                if error.errno not in (errno.ENOSYS, errno.EPERM):
                    raise
                self._openat2 = False
        return self._walk(relative, flags, mode)

    @contextmanager
    def folder(self, relative: str) -> Iterator[int]:
        """A descriptor of a folder, closed afterwards. Raises OSError."""
        handle = self.open(relative, os.O_PATH | os.O_DIRECTORY)
        try:
            yield handle
        finally:
            os.close(handle)

    def make_folders(self, relative: str) -> None:
        """Make a folder and its parents where they are missing. Raises OSError."""
        if relative == ".":
            return
        try:
            os.close(self.open(relative, os.O_PATH | os.O_DIRECTORY))
        except FileNotFoundError:
            parent, name = posixpath.split(relative)
            self.make_folders(parent or ".")
            with self.folder(parent or ".") as handle:
                try:
                    os.mkdir(name, 0o755, dir_fd=handle)
                except FileExistsError:  # somebody was quicker; a file in its place shows at the next open
                    return

    def _root(self) -> int:
        if self._handle is None:
            self._handle = os.open(self._near, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        return self._handle

    def _open2(self, relative: str, flags: int, mode: int) -> int:
        how = _OpenHow(flags, mode, _RESOLVE_BENEATH | _RESOLVE_NO_MAGICLINKS)
        name = os.fsencode(relative)
        for _ in range(64):
            result = _syscall(_SYS_OPENAT2, self._root(), name, ctypes.byref(how), ctypes.sizeof(how))
            if result >= 0:
                return int(result)
            if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):  # EAGAIN: a rename raced with it
                break
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), relative)

    def _walk(self, relative: str, flags: int, mode: int) -> int:
        *parents, name = relative.split("/")
        handle = os.dup(self._root())
        try:
            for parent in parents:
                below = os.open(
                    parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=handle
                )
                os.close(handle)
                handle = below
            return os.open(name, flags | os.O_NOFOLLOW, mode, dir_fd=handle)
        finally:
            os.close(handle)


def rename(source: str, source_folder: int, target: str, target_folder: int, replace: bool) -> None:
    """Move a name from folder to folder. Raises OSError (FileExistsError unless `replace`)."""
    if replace:
        os.rename(source, target, src_dir_fd=source_folder, dst_dir_fd=target_folder)
        return
    result = _libc.renameat2(
        source_folder, os.fsencode(source), target_folder, os.fsencode(target), _RENAME_NOREPLACE
    )
    if result == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.ENOSYS, errno.EINVAL):
        raise OSError(number, os.strerror(number), target)
    try:  # a filesystem without RENAME_NOREPLACE
        os.stat(target, dir_fd=target_folder, follow_symlinks=False)
    except FileNotFoundError:
        os.rename(source, target, src_dir_fd=source_folder, dst_dir_fd=target_folder)
    else:
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), target)
