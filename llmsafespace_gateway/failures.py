"""What a full disk, a locked or damaged database means to whoever asks: one reading of them for all."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError

from llmsafespace_gateway.errors import ApiError

FULL = "the disk of the gateway is full; an administrator must free some room"
_FULL_STATE = "53100"  # PostgreSQL's disk_full
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def explained(error: BaseException | None) -> ApiError | None:
    """The answer to a failure of disk or database; None for any other."""
    if isinstance(error, DBAPIError):
        return _of_database(error, error.orig)
    if isinstance(error, sqlite3.Error):  # from outside a statement, as when a connection is prepared
        return _of_database(error, error)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ApiError("insufficient_storage", FULL)
    return None


def _of_database(error: Exception, original: BaseException | None) -> ApiError | None:
    code = getattr(original, "sqlite_errorcode", None)
    if code is None:
        if getattr(original, "sqlstate", None) == _FULL_STATE:
            return ApiError("insufficient_storage", f"the disk of the database is full: {FULL}")
        if isinstance(error, OperationalError | InterfaceError):
            return _unavailable("the database does not answer; try again")
        return None
    code &= 0xFF
    if code == sqlite3.SQLITE_FULL:
        return ApiError("insufficient_storage", FULL)
    if code in _BUSY:
        return _unavailable("the database is locked by another process; try again")
    if code == sqlite3.SQLITE_READONLY:
        return _unavailable("the database is read-only; an administrator must make it writable")
    if code in _DAMAGED:
        return _unavailable("the database is damaged; an administrator must restore it")
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN):
        return _unavailable(
            f"the database cannot be read or written ({original}); an administrator must look"
        )
    return None


def _unavailable(message: str) -> ApiError:
    return ApiError("service_unavailable", message, retry_after=2.0)


def is_damaged(error: BaseException) -> bool:
    """Whether a SQLite database is broken or none at all."""
    code = getattr(getattr(error, "orig", error), "sqlite_errorcode", 0)
    return code & 0xFF in _DAMAGED


def damaged(path: Path | None, reason: str) -> ApiError:
    """What to do about a database that is damaged, at a gateway's start."""
    at = str(path) if path is not None else "the database"
    return ApiError(
        "service_unavailable",
        f"the database {at} is damaged ({reason}). Living sandboxes go on. To restore a backup: "
        f"llmsafespace-gateway restore FILE, with the same options for the store; to save what can be read: "
        f"sqlite3 {at} .recover | sqlite3 new.sqlite. Without either, move the file away: the next start "
        "makes an empty one with a new admin key, and adopts the sandboxes that live.",
    )
