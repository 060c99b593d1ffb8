"""Copies of a SQLite store: made while it is in use, and put back while it is not.

Everything here opens and closes the file that a gateway may be serving from, so it must run in a process of
its own: closing any descriptor of a file drops all locks that its process has on it.
All of it is blocking, and raises ApiError with what to do.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from llmsafespace_gateway.errors import ApiError

_TABLES = frozenset({"alembic_version", "api_keys", "sandboxes", "tenants", "users"})
_BESIDE = ("-wal", "-shm")  # the files that SQLite keeps next to a database
_BUSY = 5.0  # seconds for which another process may hold the database


def save(database: Path, target: Path) -> None:
    """Write the state that `database` has at one moment to the new file `target`, whoever is using it."""
    if target.exists() or target.is_symlink():
        raise ApiError("conflict", f"{target} is there already; give the backup another name")
    with _new_file(target) as part:
        _copy(f"{database.as_uri()}?mode=rw", database, part)
        os.rename(part, target)
        _sync(target.parent)


@contextlib.contextmanager
def restoring(backup: Path, database: Path) -> Iterator[Path]:
    """A checked copy of `backup` in the folder of `database`, for `exchange`; gone afterwards."""
    if not backup.is_file():
        raise ApiError("not_found", f"{backup} is not a file")
    # A plain copy of a database in use has its newest rows in the file beside it.
    beside = backup.with_name(f"{backup.name}-wal")
    used = beside.exists() and beside.stat().st_size > 0
    with _new_file(database) as part:
        _copy(f"{backup.as_uri()}?{'mode=rw' if used else 'immutable=1'}", backup, part)
        yield part


def exchange(part: Path, database: Path) -> Path | None:
    """Put `part` in the place of `database`; where that is kept, None when there was none.

    Raises ApiError(conflict) when another process has it open.
    """
    kept = _free_name(database)
    if database.exists():
        _let_go(database)
    there = [ending for ending in ("", *_BESIDE) if database.with_name(database.name + ending).exists()]
    for ending in there:  # an old -wal would be played into the new database
        os.rename(database.with_name(database.name + ending), kept.with_name(kept.name + ending))
    os.rename(part, database)
    _sync(database.parent)
    return kept if "" in there else None


@contextlib.contextmanager
def _new_file(target: Path) -> Iterator[Path]:
    part = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
        yield part
    except OSError as error:
        raise ApiError("insufficient_storage", f"{target} cannot be written: {error.strerror}") from error
    finally:
        for ending in ("", "-journal", *_BESIDE):
            with contextlib.suppress(OSError):
                part.with_name(part.name + ending).unlink()


def _copy(uri: str, source: Path, part: Path) -> None:
    try:
        with (
            closing(sqlite3.connect(uri, uri=True, timeout=_BUSY, isolation_level=None)) as old,
            closing(sqlite3.connect(part, isolation_level=None)) as new,
        ):
            old.backup(new, pages=-1)  # in one step, which later writes cannot make begin anew
            new.execute("PRAGMA journal_mode=DELETE")  # one file, with nothing beside it
            _check(new, source)
    except sqlite3.Error as error:
        raise _explained(error, source, part) from error


def _check(connection: sqlite3.Connection, source: Path) -> None:
    found = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise ApiError("service_unavailable", f"the database {source} is damaged ({found})")
    names = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    if not names >= _TABLES:
        raise ApiError("invalid_request", f"{source} is not the database of a gateway")


def _explained(error: sqlite3.Error, source: Path, part: Path) -> ApiError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        text = f"the disk of {part.parent} is full; free some room, or name a file on another disk"
        return ApiError("insufficient_storage", text)
    if code == sqlite3.SQLITE_NOTADB:
        return ApiError("invalid_request", f"{source} is not a SQLite database")
    if code == sqlite3.SQLITE_CORRUPT:
        return ApiError("service_unavailable", f"the database {source} is damaged ({error})")
    return ApiError("service_unavailable", f"{source} cannot be copied to {part.parent}: {error}")


def _let_go(database: Path) -> None:
    """Put what is in the -wal into the file. Only possible while nobody else has the database open."""
    try:
        with closing(sqlite3.connect(database, timeout=0.1, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            text = f"another process has the database {database} open; stop it first"
            raise ApiError("conflict", text) from error
        # It is damaged, which may be why a backup is restored: it is kept as it is.


def _free_name(database: Path) -> Path:
    stem = f"{database.name}.{time.strftime('%Y%m%dT%H%M%S', time.gmtime())}"
    names = (stem, *(f"{stem}-{number}" for number in range(2, 100)))
    return next(path for name in names if not (path := database.with_name(name)).exists())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
