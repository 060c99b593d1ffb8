"""`llmsafespace-gateway backup FILE` and `restore FILE`: the store in SQLite. Other databases bring tools."""

from __future__ import annotations

from pathlib import Path

from llmsafespace_gateway.commands.base import StoreCommand
from llmsafespace_gateway.data_dir import DataDir
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import Store, backup, sqlite_file


class Backup(StoreCommand):
    """Write a copy of the store (keys, users, records of sandboxes) to FILE, also while the gateway runs.

    The copy is the state of one moment, checked, in one file that only this user can read. Files in
    sandboxes are not in it.
    """

    name = "llmsafespace-gateway backup"
    description = __doc__
    examples = "llmsafespace-gateway backup --data-dir DIR /backups/gateway.sqlite"
    arguments = ("FILE",)

    async def run(self) -> int:
        """See Command."""
        target = _path(self.word("FILE"))
        database = _database(self.store_url(), f"pg_dump --format=custom --file={target} DATABASE")
        if not database.is_file():
            raise ApiError("not_found", f"there is no database {database}; check --data-dir")
        backup.save(database, target)
        print(f"wrote {target} ({target.stat().st_size} bytes)")
        return 0


class Restore(StoreCommand):
    """Put a backup in the place of the store. The gateway must be stopped; the old store is kept beside it.

    FILE is checked before anything is touched. The next start adopts sandboxes that live and are not in it.
    """

    name = "llmsafespace-gateway restore"
    description = __doc__
    examples = "llmsafespace-gateway restore --data-dir DIR /backups/gateway.sqlite"
    arguments = ("FILE",)

    async def run(self) -> int:
        """See Command."""
        source = _path(self.word("FILE"))
        database = _database(self.store_url(make=True), f"pg_restore --clean --dbname=DATABASE {source}")
        held = DataDir.take(str(self.data_dir_path), "nothing: it restores a backup")
        try:
            with backup.restoring(source, database) as part:
                await _bring_up_to_date(part, source)
                kept = backup.exchange(part, database)
        finally:
            held.release()
        print(f"restored {source}" + (f"; what was there is kept as {kept}" if kept else ""))
        return 0


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _database(url: str, instead: str) -> Path:
    path = sqlite_file(url)
    if path is None:
        raise ApiError("invalid_request", f"the store is not in SQLite; use its own tools: {instead}")
    return Path(path).absolute()


async def _bring_up_to_date(part: Path, source: Path) -> None:
    try:
        store = await Store.open(f"sqlite:///{part}")
    except RuntimeError as error:
        raise ApiError("invalid_request", f"{source} is of a newer gateway: {error}") from error
    await store.close()
