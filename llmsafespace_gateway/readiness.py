"""Whether this gateway can do its work, and if not, what is wrong: for /readyz.

Every look asks the store and the disk anew. A disk that hangs must not hang the gateway: each of these checks
has a thread of its own, and while that thread hangs, the check is not begun a second time.
One look at a time, and one a second at most, however many ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError

from llmsafespace_gateway.backends.base import SandboxBackend
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import Store

log = logging.getLogger("llmsafespace.readiness")

WITHIN = 4.0  # seconds for one look
LEAST_FREE = 16 * 1024**2  # bytes, below which a disk counts as full
_FRESH = 1.0
_LOCKED = 1.0  # seconds for which another process may hold the database
_PROBE = bytes(64 * 1024)
_MAGIC = b"SQLite format 3\0"


class Readiness:
    """The state of this process's parts. `draining` is set when it is about to stop."""

    def __init__(
        self, data_dir: Path | None, database: Path | None, store: Store, backend: SandboxBackend
    ) -> None:
        self.draining = False
        self._data_dir = data_dir
        self._database = database
        self._opened = os.open(database, os.O_RDONLY | os.O_CLOEXEC) if database is not None else None
        self._store = store
        self._backend = backend
        self._found: dict[str, str] = {}
        self._looked = float("-inf")
        self._look: asyncio.Task[None] | None = None
        self._told: dict[str, str] = {}
        self._blocking: dict[str, asyncio.Future[str | None]] = {}  # checks whose threads have not ended

    async def problems(self) -> dict[str, str]:
        """What is wrong, by part (draining, disk, database, backend); empty when the gateway is ready."""
        if self.draining:
            return {"draining": "this gateway is about to stop"}
        if time.monotonic() - self._looked > _FRESH:
            if self._look is None or self._look.done():
                self._look = asyncio.create_task(self._look_around())
            await asyncio.wait({self._look}, timeout=WITHIN + 0.5)
        return self._found

    async def _look_around(self) -> None:
        checks: dict[str, asyncio.Future[str | None]] = {
            "database": self._in_thread("database", sqlite_problem, self._database, self._opened)
            if self._database is not None
            else asyncio.ensure_future(self._postgres_problem())
        }
        if self._data_dir is not None:
            checks["disk"] = self._in_thread("disk", disk_problem, self._data_dir)
        checks["backend"] = asyncio.ensure_future(self._backend_problem())
        _, late = await asyncio.wait(checks.values(), timeout=WITHIN)
        found: dict[str, str] = {}
        for name, check in checks.items():
            if check in late:
                found[name] = f"no answer within {WITHIN:g} s"
                if name not in self._blocking:
                    check.cancel()
            elif (error := check.exception()) is not None:
                found[name] = type(error).__name__
                log.debug("the check of %s failed", name, exc_info=error)
            elif (problem := check.result()) is not None:
                found[name] = problem
        self._found, self._looked = found, time.monotonic()
        if found != self._told:
            self._told = found
            level = logging.WARNING if found else logging.INFO
            log.log(level, "not ready" if found else "ready again", extra={"fields": {"problems": found}})

    def _in_thread(
        self, name: str, check: Callable[..., str | None], *given: Any
    ) -> asyncio.Future[str | None]:
        """What `check(*given)` finds: in a new thread, or the one that is still at it."""
        running = self._blocking.get(name)
        if running is not None:
            return running
        loop = asyncio.get_running_loop()
        found: asyncio.Future[str | None] = loop.create_future()
        self._blocking[name] = found

        def ended(problem: str | None) -> None:
            del self._blocking[name]
            found.set_result(problem)

        def run() -> None:
            try:
                problem = check(*given)
            except Exception as error:
                log.debug("the check of %s failed", name, exc_info=error)
                problem = type(error).__name__
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                loop.call_soon_threadsafe(ended, problem)

        try:
            # A thread of an executor would hold up the end of the process, and everybody else's work.
            threading.Thread(target=run, name=f"check {name}", daemon=True).start()
        except RuntimeError as error:
            ended(f"it cannot be checked: {error}")
        return found

    async def _postgres_problem(self) -> str | None:
        try:
            async with self._store.read() as connection:
                read_only = (await connection.execute(text("SHOW transaction_read_only"))).scalar()
        except SQLAlchemyError as error:
            return f"the database does not answer: {_first_line(error)}"
        return "the database is read-only" if read_only == "on" else None

    async def _backend_problem(self) -> str | None:
        try:
            await self._backend.runtimes()
        except ApiError as error:
            return error.message[:300]
        return None


def disk_problem(folder: Path) -> str | None:
    """Why nothing can be written to `folder` (blocking); None when it can."""
    probe = folder / f".probe-{secrets.token_hex(4)}"
    try:
        room = os.statvfs(folder)
        if room.f_bavail * room.f_frsize < LEAST_FREE or (room.f_files and not room.f_favail):
            return f"the disk of the data dir {folder} is full"
        descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            if os.write(descriptor, _PROBE) < len(_PROBE):
                return f"the disk of the data dir {folder} is full"
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return f"the data dir {folder} is gone"
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return f"the disk of the data dir {folder} is full"
        if error.errno == errno.EROFS:
            return f"the data dir {folder} is read-only"
        return f"the data dir {folder} cannot be written: {error.strerror}"
    finally:
        with contextlib.suppress(OSError):
            probe.unlink()
    return None


def sqlite_problem(path: Path, opened: int | None) -> str | None:
    """Why the store in this file cannot be used (blocking); None when it can.

    `opened` is a descriptor of the file that this process began with. It is never closed: closing any
    descriptor of a file drops all of the process's locks on it, those of SQLite's own connections too.
    """
    try:
        there = path.stat()
        if opened is not None and not os.path.samestat(there, os.fstat(opened)):
            return f"the database {path} was replaced while the gateway had it open; start the gateway again"
        head = os.pread(opened, len(_MAGIC), 0) if opened is not None else _MAGIC
    except FileNotFoundError:
        return f"the database {path} is gone"
    except OSError as error:
        return f"the database {path} cannot be read: {error.strerror}"
    if head != _MAGIC:
        return f"the database {path} is not a database any more: it was overwritten or cut off"
    try:
        with contextlib.closing(
            sqlite3.connect(f"file:{path}?mode=rw", uri=True, timeout=_LOCKED, isolation_level=None)
        ) as connection:
            connection.execute("SELECT 1 FROM tenants LIMIT 1").fetchall()
            connection.execute("BEGIN IMMEDIATE")
            # The page is written anew when it is rolled back at the latest: what is read-only says so here.
            connection.execute("PRAGMA user_version = 0")
            connection.execute("ROLLBACK")
    except sqlite3.Error as error:
        return _sqlite_words(path, error)
    return None


def _sqlite_words(path: Path, error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"the database {path} is locked by another process"
    if code == sqlite3.SQLITE_READONLY:
        return f"the database {path} is read-only"
    if code == sqlite3.SQLITE_FULL:
        return f"the disk of the database {path} is full"
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return f"the database {path} is damaged: {error}"
    return f"the database {path} cannot be used: {error}"


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0][:300]
