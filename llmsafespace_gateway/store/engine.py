"""The store and its transactions, on SQLite or PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, make_url
from sqlalchemy.engine import URL
from sqlalchemy.exc import ArgumentError, DatabaseError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store.migrate import migrate
from llmsafespace_gateway.store.sqlite import Inline, Sqlite

StoreConnection = AsyncConnection | Inline

_OPTIONS: dict[str, Any] = {
    "json_serializer": lambda value: msgspec.json.encode(value).decode(),
    "json_deserializer": msgspec.json.decode,
}


_LOOKED_THROUGH = 65_536  # pages: 256 MiB, for half a second


class Unwritten(msgspec.Struct, frozen=True):
    """How a sandbox ended, while the database does not take it."""

    end: str
    message: str | None
    at: float


class Store:
    """The gateway's records. Query modules take it; several processes may have the same store open.

    `unwritten` are the ends of sandboxes that are still to be written: queries give such a row as ended.
    """

    def __init__(self, database: AsyncEngine | Sqlite) -> None:
        self._database = database
        self.unwritten: dict[str, Unwritten] = {}

    @classmethod
    async def open(cls, url: str) -> Store:
        """Open the store at a SQLAlchemy URL, bringing its tables up to date.

        `postgresql://…` gets its asynchronous driver. Raises SQLAlchemyError, or ApiError without a driver.
        """
        store = cls.unopened(url)
        try:
            async with store.write() as connection:
                await connection.run_sync(_whole)
                await connection.run_sync(migrate)
        except BaseException:
            await store.close()
            raise
        return store

    @classmethod
    def unopened(cls, url: str) -> Store:
        """The store at a URL, whose tables are neither looked at nor changed. Raises SQLAlchemyError."""
        return cls(_database(make_url(url)))

    async def close(self) -> None:
        """Close all connections."""
        await self._database.dispose()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[StoreConnection]:
        """A transaction that may write; committed on leaving, rolled back by an exception."""
        async with self._database.begin() as connection:
            yield connection

    @asynccontextmanager
    async def read(self) -> AsyncIterator[StoreConnection]:
        """A connection for reading."""
        async with self._database.connect() as connection:
            yield connection


def _whole(connection: Connection) -> None:
    """Find damage before it is served, in a SQLite file that is not too large to look through at a start.

    Raises DatabaseError as SQLite itself would.
    """
    if connection.dialect.name != "sqlite":
        return
    pages = connection.exec_driver_sql("PRAGMA page_count").scalar() or 0
    if pages > _LOOKED_THROUGH:
        return
    said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
    if said != "ok":
        error = sqlite3.DatabaseError(f"database disk image is malformed: {said}")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise DatabaseError(None, None, error)


def sqlite_url(data_dir: Path) -> str:
    """The URL of the store in a data dir."""
    return f"sqlite:///{data_dir / 'db.sqlite'}"


def sqlite_file(url: str) -> str | None:
    """The file of a SQLite store; None for another one."""
    parsed = make_url(url)
    return parsed.database if parsed.get_backend_name() == "sqlite" else None


def stated_url(url: str, file: str) -> str:
    """The store's URL as an operator states it: `url` itself, or what is in `file`; empty when both are.

    The file is for URLs with a password, as every process of a machine can read the others' command lines.
    Raises ApiError with what to do, and without what the file holds.
    """
    if not file:
        return url
    if url:
        raise ApiError("invalid_request", "--database-url and --database-url-file are both given; drop one")
    try:
        text = Path(file).read_text().strip()
        make_url(text)
    except (OSError, ValueError, ArgumentError) as error:
        reason = error.strerror if isinstance(error, OSError) else "there is no URL in it"
        raise ApiError(
            "invalid_request",
            f"--database-url-file {file}: {reason}; put the URL of the store into it, as in "
            "postgresql://user:password@host/name, readable for this user",
        ) from None
    return text


def _database(url: URL) -> AsyncEngine | Sqlite:
    if url.get_backend_name() == "sqlite":
        return Sqlite(url.set(drivername="sqlite"), **_OPTIONS)
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    try:
        return create_async_engine(url, pool_pre_ping=True, **_OPTIONS)
    except ImportError as error:
        if url.drivername != "postgresql+psycopg":
            text = "invalid --database-url: stores are in SQLite or PostgreSQL"
            raise ApiError("invalid_request", f"{text} ({error})") from error
        text = f"a store in PostgreSQL needs psycopg ({error}): pip install 'psycopg[binary]'"
        raise ApiError("service_unavailable", " ".join(text.split())) from error
