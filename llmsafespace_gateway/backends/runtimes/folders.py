"""Folders that are made once, whoever asks first: a lock, a staging folder, one rename."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import stat
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

LOCK_POLL = 0.1  # seconds between two looks at a lock that another process holds
UNUSED_AFTER = 14 * 86400.0  # seconds; far beyond the life of any sandbox
_USED = ".used"


@contextlib.asynccontextmanager
async def locked(path: Path) -> AsyncIterator[None]:
    """Hold the lock file `path` against other processes, and wait for those that hold it."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                await asyncio.sleep(LOCK_POLL)
        yield
    finally:
        os.close(descriptor)


@contextlib.asynccontextmanager
async def made_once(folder: Path) -> AsyncIterator[Path | None]:
    """A staging folder to fill when `folder` does not exist, else None.

    When the block ends without an error the staging folder becomes `folder` by one rename; otherwise it is
    removed. Staging folders that a crash left are removed too.
    """
    if os.path.isdir(folder):  # noqa: ASYNC240  # one look at a local folder
        yield None
        return
    await asyncio.to_thread(os.makedirs, folder.parent, exist_ok=True)
    async with locked(folder.parent / f".{folder.name}.lock"):
        if os.path.isdir(folder):  # noqa: ASYNC240
            yield None
            return
        staging = folder.parent / f".{folder.name}.staging"
        await asyncio.to_thread(_remove, staging)
        staging.mkdir(mode=0o755)
        try:
            yield staging
            await asyncio.to_thread(readable_by_all, staging)
            staging.rename(folder)
        finally:
            await asyncio.to_thread(_remove, staging)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


def _walk(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(parent, name)


def readable_by_all(folder: Path) -> None:
    """Let every uid read `folder` whatever the umask was: sandboxes have uids of their own."""
    folder.chmod(0o755)
    for path in _walk(folder):
        with contextlib.suppress(FileNotFoundError):  # a file that a compiler has just renamed
            mode = path.lstat().st_mode
            wanted = 0o755 if stat.S_ISDIR(mode) or mode & stat.S_IXUSR else 0o644
            if not stat.S_ISLNK(mode) and stat.S_IMODE(mode) != wanted:
                path.chmod(wanted)


def mark_used(folder: Path) -> None:
    """Note that `folder` is in use, so that no other process sweeps it. Cheap enough for every use."""
    mark = folder / _USED
    with contextlib.suppress(OSError):
        if not mark.exists() or time.time() - mark.stat().st_mtime > UNUSED_AFTER / 100:
            mark.touch()


def sweep_unused(parent: Path, now: float) -> list[str]:
    """Remove prepared folders below `parent` that nobody has used for long; returns their names."""
    removed = []
    for mark in parent.glob(f"*/{_USED}"):
        with contextlib.suppress(OSError):
            if now - mark.stat().st_mtime > UNUSED_AFTER:
                _remove(mark.parent)
                removed.append(mark.parent.name)
    return removed
