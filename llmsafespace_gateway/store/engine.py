"""The database engine and its transactions, for SQLite and PostgreSQL."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, event, make_url
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from llmsafespace_gateway.store.migrate import migrate

BUSY_TIMEOUT_MS = 10_000
_PRAGMAS = (
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}",
    "PRAGMA foreign_keys=ON",
)
_WRITES = "llmsafespace_writes"


class Store:
    """The gateway's records. Query modules take it; several processes may have the same store open."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self._writers = engine.execution_options(**{_WRITES: True})
        # One writer at a time is SQLite's rule; waiting here is fair and costs no polling.
        self._turn = asyncio.Lock() if engine.dialect.name == "sqlite" else None

    @classmethod
    async def open(cls, url: str) -> Store:
        """Open the store at a SQLAlchemy URL, bringing its tables up to date.

        `sqlite:///PATH` and `postgresql://…` get their asynchronous drivers. Raises SQLAlchemyError.
        """
        parsed = _with_driver(make_url(url))
        engine = _engine(parsed)
        store = cls(engine)
        try:
            async with store.write() as connection:
                await connection.run_sync(migrate)
        except BaseException:
            await engine.dispose()
            raise
        return store

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that may write; committed on leaving, rolled back by an exception."""
        async with self._turn or nullcontext(), self._writers.begin() as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncConnection]:
        """A connection for reading."""
        async with self.engine.connect() as connection:
            yield connection


def sqlite_url(data_dir: Path) -> str:
    """The URL of the store in a data dir."""
    return f"sqlite:///{data_dir / 'db.sqlite'}"


def _with_driver(url: URL) -> URL:
    if url.drivername in ("sqlite", "postgresql"):
        driver = {"sqlite": "sqlite+aiosqlite", "postgresql": "postgresql+psycopg"}[url.drivername]
        return url.set(drivername=driver)
    return url


def _engine(url: URL) -> AsyncEngine:
    options: dict[str, Any] = {
        "json_serializer": lambda value: msgspec.json.encode(value).decode(),
        "json_deserializer": msgspec.json.decode,
    }
    if url.get_backend_name() != "sqlite":
        return create_async_engine(url, pool_pre_ping=True, **options)
    if url.database:
        # The file holds hashes of keys and who owns what: for its owner's eyes only.
        os.close(os.open(url.database, os.O_RDWR | os.O_CREAT, 0o600))
    engine = create_async_engine(url, pool_size=4, max_overflow=4, **options)
    event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, record: Any) -> None:
    connection.isolation_level = None  # transactions begin where we say so, not where the driver guesses
    cursor = connection.cursor()
    for pragma in _PRAGMAS:
        cursor.execute(pragma)
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that reads first cannot wait for another process's write: it fails at once.
    if connection.get_execution_options().get(_WRITES):
        connection.exec_driver_sql("BEGIN IMMEDIATE")
