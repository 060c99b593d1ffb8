"""Files and folders beneath the workspace."""

from __future__ import annotations

import errno
import os
import posixpath
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from llmsafespace_agent.server.beneath import Beneath, rename
from llmsafespace_agent.server.errors import AgentError, conflict, invalid, not_found
from llmsafespace_protocol.requests import FileInfo, FileList, FileMove

NEW_FILE = ".llmsafespace-new-"  # names of files that are being written: of new ones,
OLD_FILE = ".llmsafespace-old-"  # and of those that take the place of another
_MAX_ENTRIES = 100_000
_MAX_DEPTH = 64


class Files:
    """What can be done with the workspace's files. Every path is absolute or relative to the workspace."""

    def __init__(self, beneath: Beneath) -> None:
        self.beneath = beneath

    def stat(self, path: str) -> FileInfo:
        """What a path is. Raises AgentError."""
        relative = self.beneath.relative(path)
        with refusals(path):
            handle = self.beneath.open(relative, os.O_PATH)
            try:
                return self.info(relative, os.fstat(handle))
            finally:
                os.close(handle)

    def entries(self, request: FileList) -> list[FileInfo]:
        """What a folder holds, in order of names, `depth` levels down. Raises AgentError."""
        if not 1 <= request.depth <= _MAX_DEPTH or not 1 <= request.limit <= _MAX_ENTRIES:
            raise invalid(f"depth must be 1 to {_MAX_DEPTH}, limit 1 to {_MAX_ENTRIES}")
        found: list[FileInfo] = []
        with refusals(request.path):
            self._list(self.beneath.relative(request.path), request.depth, request.limit, found)
        return found

    def make_folder(self, path: str) -> FileInfo:
        """Make a folder and its parents; it may exist already. Raises AgentError."""
        with refusals(path):
            self.beneath.make_folders(self.beneath.relative(path))
        return self.stat(path)

    def remove(self, path: str, recursive: bool) -> None:
        """Remove a file, an empty folder, or (`recursive`) a folder with all in it. Raises AgentError."""
        parent, name = self.split(path)
        with refusals(path), self.beneath.folder(parent) as folder:
            if not stat.S_ISDIR(os.stat(name, dir_fd=folder, follow_symlinks=False).st_mode):
                os.unlink(name, dir_fd=folder)
            elif recursive:
                shutil.rmtree(name, dir_fd=folder)
            else:
                os.rmdir(name, dir_fd=folder)

    def move(self, request: FileMove) -> FileInfo:
        """Give a file or folder another path; parents are made. Raises AgentError."""
        source_parent, source = self.split(request.source)
        target_parent, target = self.split(request.target)
        with refusals(request.source), self.beneath.folder(source_parent) as before:
            os.stat(source, dir_fd=before, follow_symlinks=False)
            with refusals(request.target):
                self.beneath.make_folders(target_parent)
                with self.beneath.folder(target_parent) as after:
                    rename(source, before, target, after, request.overwrite)
        return self.stat(request.target)

    def open_for_reading(self, path: str) -> tuple[int, FileInfo]:
        """A descriptor of a regular file, and what it is. Raises AgentError."""
        relative = self.beneath.relative(path)
        with refusals(path):
            handle = self.beneath.open(relative, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
            status = os.fstat(handle)
            if not stat.S_ISREG(status.st_mode):
                os.close(handle)
                kind = "EISDIR" if stat.S_ISDIR(status.st_mode) else "EINVAL"
                where = self.beneath.absolute(relative)[:200]
                raise invalid(f"{where} is not a regular file", path=path[:200], kind=kind)
            return handle, self.info(relative, status)

    def info(self, relative: str, status: os.stat_result) -> FileInfo:
        """The public account of what was found."""
        return FileInfo(
            path=printable(self.beneath.absolute(relative)),
            size=status.st_size,
            created_at=status.st_ctime,
            modified_at=status.st_mtime,
            is_directory=stat.S_ISDIR(status.st_mode),
            etag=etag(status),
            mode=stat.S_IMODE(status.st_mode),
        )

    def split(self, path: str) -> tuple[str, str]:
        """Parent and name of a path that is not the workspace itself. Raises AgentError."""
        relative = self.beneath.relative(path)
        if relative == ".":
            raise invalid(
                f"{self.beneath.root} itself cannot be replaced or removed", path=path[:200], kind="EISDIR"
            )
        parent, name = posixpath.split(relative)
        return parent or ".", name

    def _list(self, relative: str, depth: int, limit: int, found: list[FileInfo]) -> None:
        handle = self.beneath.open(relative, os.O_RDONLY | os.O_DIRECTORY)
        try:
            names = sorted(os.listdir(handle))
            for name in names:
                if len(found) >= limit:
                    return
                if name.startswith((NEW_FILE, OLD_FILE)):
                    continue
                below = name if relative == "." else f"{relative}/{name}"
                try:
                    status = self._status(name, below, handle)
                    found.append(self.info(below, status))
                    if depth > 1 and stat.S_ISDIR(
                        os.stat(name, dir_fd=handle, follow_symlinks=False).st_mode
                    ):
                        self._list(below, depth - 1, limit, found)
                except (FileNotFoundError, PermissionError):  # gone meanwhile, or not ours to read
                    continue
        finally:
            os.close(handle)

    def _status(self, name: str, relative: str, folder: int) -> os.stat_result:
        """What a name is; a symlink that stays beneath the workspace is what it points at."""
        status = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if stat.S_ISLNK(status.st_mode):
            try:
                handle = self.beneath.open(relative, os.O_PATH)
            except OSError:
                return status
            try:
                return os.fstat(handle)
            finally:
                os.close(handle)
        return status


class Upload:
    """A file that is being written beside its place, and takes it when it is whole."""

    def __init__(self, files: Files, path: str, mode: int, if_match: str | None) -> None:
        self._files = files
        self._path = path
        self._if_match = if_match
        parent, self._name = files.split(path)
        with refusals(path):
            files.beneath.make_folders(parent)
            self._folder = files.beneath.open(parent, os.O_PATH | os.O_DIRECTORY)
        self._temporary = ""
        self._file = -1
        try:
            known = self._check()
            self._temporary = (OLD_FILE if known else NEW_FILE) + secrets.token_hex(8)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            with refusals(path):
                self._file = os.open(self._temporary, flags, 0o600, dir_fd=self._folder)
                os.fchmod(self._file, mode & 0o777)
        except BaseException:
            self.close()
            raise

    def write(self, data: bytes) -> None:
        """Add to the file. Raises AgentError."""
        view = memoryview(data)
        with refusals(self._path):
            while view:
                view = view[os.write(self._file, view) :]

    def commit(self) -> FileInfo:
        """Put the file in its place. Raises AgentError."""
        self._check()
        with refusals(self._path):
            os.rename(self._temporary, self._name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            self._temporary = ""
            return self._files.info(self._files.beneath.relative(self._path), os.fstat(self._file))

    def close(self) -> None:
        """Give everything back; what was not committed disappears."""
        if self._temporary and self._file >= 0:
            try:
                os.unlink(self._temporary, dir_fd=self._folder)
            except OSError:
                self._temporary = ""
        for handle in (self._file, self._folder):
            if handle >= 0:
                os.close(handle)
        self._file = self._folder = -1

    def _named(self, kind: str) -> dict[str, str]:
        return {"path": self._path[:200], "kind": kind}

    def _check(self) -> bool:
        """Whether the place is taken, and by what the caller thinks. Raises AgentError."""
        try:
            with refusals(self._path):
                status = os.stat(self._name, dir_fd=self._folder, follow_symlinks=False)
        except AgentError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            if self._if_match is not None:
                raise conflict(
                    f"{self._path[:200]} does not exist any more", **self._named("ENOENT")
                ) from None
            return False
        if stat.S_ISDIR(status.st_mode):
            raise conflict(f"{self._path[:200]} is a folder", **self._named("EISDIR"))
        if self._if_match not in (None, "*", etag(status)):
            raise conflict(f"{self._path[:200]} has changed", path=self._path[:200], etag=etag(status))
        return True


def etag(status: os.stat_result) -> str:
    """Changes whenever the file does."""
    return f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"


def printable(path: str) -> str:
    """A path as text; bytes that are none are replaced."""
    return os.fsencode(path).decode("utf-8", "replace")


@contextmanager
def refusals(path: str) -> Iterator[None]:
    """Turn what the system refuses into an AgentError about `path`."""
    try:
        yield
    except OSError as error:
        raise refusal(error, path) from error


def refusal(error: OSError, path: str) -> AgentError:
    """What a system error means to the caller; `kind` is its name, as EACCES."""
    shown = printable(path)[:200]
    about = {"path": shown, "kind": errno.errorcode.get(error.errno or 0, "EIO")}
    if error.errno == errno.ENOENT:
        return not_found(f"{shown} does not exist", **about)
    if error.errno in (errno.EXDEV, errno.ELOOP):
        return invalid(f"{shown} leads out of the workspace through a symlink, or in a circle", **about)
    if error.errno == errno.ENOTDIR:
        return invalid(f"{shown}: a part of the path is no folder", **about)
    if error.errno == errno.EISDIR:
        return invalid(f"{shown} is a folder", **about)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return AgentError("quota_exceeded", "the sandbox's disk is full; remove files first", about)
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        return conflict(f"{shown} exists already, or is a folder that is not empty", **about)
    return invalid(f"{shown}: {error.strerror or error}", **about)
