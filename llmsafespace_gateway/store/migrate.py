"""Brings a database up to the newest migration."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from llmsafespace_gateway.store.schema import HEAD

_LOCK = 0x6C6C6D73  # any number that every gateway agrees on


def migrate(connection: Connection) -> None:
    """Run the missing migrations inside the caller's transaction; quick when there are none.

    Several processes may do so at once: one runs them, the others wait. Raises RuntimeError when the
    database is of a newer gateway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    version = _version(connection)
    if version == HEAD:
        return
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise RuntimeError(
            f"the database is at version {version}, which this gateway does not know; use a newer gateway"
        ) from error


def _version(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    row = connection.execute(text("SELECT version_num FROM alembic_version")).first()
    return None if row is None else str(row[0])
