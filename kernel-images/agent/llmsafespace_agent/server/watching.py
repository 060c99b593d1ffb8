"""Changes of files beneath the workspace, told by inotify(7)."""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Callable

from llmsafespace_agent.server.beneath import Beneath
from llmsafespace_agent.server.errors import AgentError, invalid
from llmsafespace_agent.server.files import NEW_FILE, OLD_FILE, printable, refusals

_libc = ctypes.CDLL(None, use_errno=True)
_EVENT = struct.Struct("iIII")
_MODIFY = 0x002
_MOVED_FROM = 0x040
_MOVED_TO = 0x080
_CREATE = 0x100
_DELETE = 0x200
_OVERFLOW = 0x4000
_IGNORED = 0x8000
_IS_FOLDER = 0x40000000
_ONLY_FOLDERS = 0x01000000
_MASK = _MODIFY | _MOVED_FROM | _MOVED_TO | _CREATE | _DELETE
_FOLDERS = 4096
_BATCH = 64 * 1024


class Watch:
    """Calls `on_change(event, path)` for changes in a folder (or to one file) until closed.

    A file that moves within what is watched is `moved` from its old path and `created` at its new one.
    Raises AgentError for a path that cannot be watched.
    """

    def __init__(
        self, beneath: Beneath, path: str, recursive: bool, on_change: Callable[[str, str], None]
    ) -> None:
        self._beneath = beneath
        self._recursive = recursive
        self._on_change = on_change
        self._only: str | None = None
        self._folders: dict[int, str] = {}
        self._replacing: dict[int, bool] = {}  # moves of finished uploads by cookie: over an old file?
        self._handle: int = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._handle < 0:
            raise AgentError("quota_exceeded", "no more watches are possible in this sandbox")
        try:
            self._begin(beneath.relative(path), path)
        except BaseException:
            os.close(self._handle)
            raise
        asyncio.get_running_loop().add_reader(self._handle, self._readable)

    def close(self) -> None:
        """Watch no more."""
        if self._handle >= 0:
            asyncio.get_running_loop().remove_reader(self._handle)
            os.close(self._handle)
            self._handle = -1

    def _begin(self, relative: str, path: str) -> None:
        with refusals(path):
            handle = self._beneath.open(relative, os.O_PATH)
            try:
                is_folder = os.path.isdir(f"/proc/self/fd/{handle}")
            finally:
                os.close(handle)
            if not is_folder:
                self._only = self._beneath.absolute(relative)
                relative = os.path.dirname(relative) or "."
                self._recursive = False
            self._add(relative)

    def _add(self, relative: str) -> None:
        """Watch a folder, and with `recursive` those in it."""
        if len(self._folders) >= _FOLDERS:
            raise invalid(f"more than {_FOLDERS} folders cannot be watched at once; watch a smaller one")
        # The descriptor was resolved beneath the workspace; its name in /proc leads to it and nowhere else.
        handle = self._beneath.open(relative, os.O_RDONLY | os.O_DIRECTORY)
        try:
            name = f"/proc/self/fd/{handle}".encode()
            watch = _libc.inotify_add_watch(self._handle, name, _MASK | _ONLY_FOLDERS)
            if watch < 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), relative)
            self._folders[watch] = relative
            below = [entry.name for entry in os.scandir(handle) if entry.is_dir(follow_symlinks=False)]
        finally:
            os.close(handle)
        if self._recursive:
            for one in below:
                self._try_add(one if relative == "." else f"{relative}/{one}")

    def _try_add(self, relative: str) -> None:
        try:
            self._add(relative)
        except (FileNotFoundError, PermissionError, NotADirectoryError):
            return  # gone meanwhile, or not ours to read

    def _readable(self) -> None:
        try:
            data = os.read(self._handle, _BATCH)
        except BlockingIOError:
            return
        told: set[tuple[str, str]] = set()
        offset = 0
        while offset < len(data):
            watch, mask, cookie, length = _EVENT.unpack_from(data, offset)
            offset += _EVENT.size
            name = os.fsdecode(data[offset : offset + length].rstrip(b"\0"))
            offset += length
            change = self._change(watch, mask, cookie, name)
            if change is not None and not (change[0] == "modified" and change in told):
                told.add(change)
                self._on_change(*change)

    def _change(self, watch: int, mask: int, cookie: int, name: str) -> tuple[str, str] | None:
        if mask & _OVERFLOW:  # what exactly was lost cannot be known: the whole has changed
            return "modified", printable(self._beneath.absolute(next(iter(self._folders.values()), ".")))
        if mask & _IGNORED:
            self._folders.pop(watch, None)
            return None
        folder = self._folders.get(watch)
        if folder is None or not name:
            return None
        if name.startswith((NEW_FILE, OLD_FILE)):
            if mask & _MOVED_FROM and len(self._replacing) < _FOLDERS:
                self._replacing[cookie] = name.startswith(OLD_FILE)
            return None
        relative = name if folder == "." else f"{folder}/{name}"
        path = self._beneath.absolute(relative)
        if self._only is not None and path != self._only:
            return None
        if self._recursive and mask & _IS_FOLDER and mask & (_CREATE | _MOVED_TO):
            self._follow(relative)
        return self._word(mask, cookie), printable(path)

    def _follow(self, relative: str) -> None:
        try:
            self._try_add(relative)
        except (AgentError, OSError):
            return  # too many folders: those that are watched go on being watched

    def _word(self, mask: int, cookie: int) -> str:
        if mask & _CREATE:
            return "created"
        if mask & _MOVED_TO:
            return "modified" if self._replacing.pop(cookie, False) else "created"
        if mask & _MOVED_FROM:
            return "moved"
        return "deleted" if mask & _DELETE else "modified"
