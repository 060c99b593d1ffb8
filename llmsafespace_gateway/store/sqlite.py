"""SQLite on the event loop's own thread.

A statement on a row takes microseconds; the way through a thread and back takes a hundred times as long, and
two fifths of the gateway's processor time in a sandbox's life. What may take longer never happens here:
waiting for another process's transaction is tried again and again, and the write-ahead log is put into the
file by a thread.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from typing import Any, TypeVar

import sqlalchemy
from sqlalchemy import Engine, Executable, create_engine, event
from sqlalchemy.engine import URL, CursorResult
from sqlalchemy.exc import OperationalError

T = TypeVar("T")

BUSY_LIMIT = 10.0  # seconds in which another process must end its transaction
_BUSY_PAUSE = 0.005
_CHECKPOINT_EVERY = 500  # transactions
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA busy_timeout=5",  # milliseconds, for which the loop stands still
    "PRAGMA wal_autocheckpoint=100000",  # pages: that the thread is far behind
    "PRAGMA foreign_keys=ON",
)


class Inline:
    """A connection that answers at once, in the shape of SQLAlchemy's asynchronous one."""

    def __init__(self, connection: sqlalchemy.Connection) -> None:
        self._connection = connection

    async def execute(self, statement: Executable, parameters: Any = None) -> CursorResult[Any]:
        """See AsyncConnection."""
        return self._connection.execute(statement, parameters)

    async def run_sync(self, function: Callable[[sqlalchemy.Connection], T]) -> T:
        """See AsyncConnection."""
        return function(self._connection)


class Sqlite:
    """The file that a URL names. Several processes may have it open."""

    def __init__(self, url: URL, **options: Any) -> None:
        self._path = url.database or ""
        # The file holds hashes of keys and who owns what: for its owner's eyes only.
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600))
        self._engine: Engine = create_engine(url, max_overflow=-1, **options)
        event.listen(self._engine, "connect", _prepare)
        # One writer at a time is SQLite's rule; waiting here is fair and costs no polling.
        self._turn = asyncio.Lock()
        self._written = 0
        self._checkpoint: asyncio.Task[None] | None = None

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[Inline]:
        """A transaction that may write. Raises OperationalError when another process's does not end."""
        async with self._turn:
            with self._engine.connect() as connection:
                await _begin(connection)
                yield Inline(connection)
                connection.commit()
        self._count()

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Inline]:
        """A connection for reading."""
        with self._engine.connect() as connection:
            yield Inline(connection)

    async def dispose(self) -> None:
        """Close all connections; afterwards the file alone is whole.

        SQLite puts the log into the file when the last connection is closed, but another process may have
        one open, as `keys` and whoever looks at the file with sqlite3.
        """
        if self._checkpoint is not None:
            await asyncio.wait((self._checkpoint,))
        await asyncio.to_thread(_checkpoint, self._path)
        self._engine.dispose()

    def _count(self) -> None:
        self._written += 1
        if self._written >= _CHECKPOINT_EVERY and (self._checkpoint is None or self._checkpoint.done()):
            self._written = 0
            self._checkpoint = asyncio.create_task(asyncio.to_thread(_checkpoint, self._path))


def _prepare(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so, not where the driver guesses
    for pragma in _PRAGMAS:
        connection.execute(pragma)


async def _begin(connection: sqlalchemy.Connection) -> None:
    """Begin as a writer: a transaction that reads first could not wait for another process's write."""
    deadline = time.monotonic() + BUSY_LIMIT
    while True:
        try:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            return
        except OperationalError as error:
            if not _is_busy(error) or time.monotonic() > deadline:
                raise
            connection.rollback()
        await asyncio.sleep(_BUSY_PAUSE)


def _is_busy(error: OperationalError) -> bool:
    code = getattr(error.orig, "sqlite_errorcode", 0)
    return bool(code & 0xFF == sqlite3.SQLITE_BUSY)  # the lowest byte, whatever more it says


def _checkpoint(path: str) -> None:
    # A full disk, a locked file: who writes hears of it.
    with suppress(sqlite3.Error), closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)")
