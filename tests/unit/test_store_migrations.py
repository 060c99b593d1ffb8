"""The tables: migrations make exactly what the queries expect, once, whoever else opens the store."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

import llmsafespace_gateway.store as store_package
from llmsafespace_gateway.store import Store, pools, sqlite_url, users
from llmsafespace_gateway.store.schema import HEAD, metadata


def _differences(connection: Connection) -> list[object]:
    return list(compare_metadata(MigrationContext.configure(connection), metadata))


async def test_migrations_make_the_tables_of_the_schema(store: Store) -> None:
    async with store.write() as connection:
        assert await connection.run_sync(_differences) == []
        version = await connection.execute(text("SELECT version_num FROM alembic_version"))
        assert version.scalar_one() == HEAD


def test_head_is_the_newest_migration() -> None:
    folder = Path(store_package.__file__).with_name("migrations")
    assert ScriptDirectory(str(folder)).get_heads() == [HEAD]


async def test_several_open_an_empty_store_at_once(store_url: str) -> None:
    stores = await asyncio.gather(*(Store.open(store_url) for _ in range(3)))
    for store in stores:
        await users.ensure_tenant(store, "default")
        assert [tenant.id for tenant in await users.tenants(store)] == ["default"]
        await store.close()


async def test_opening_again_keeps_what_is_there(store: Store, store_url: str) -> None:
    await users.ensure_tenant(store, "acme")
    again = await Store.open(store_url)
    assert await users.tenant(again, "acme") is not None
    await again.close()


async def test_a_store_of_a_newer_gateway_is_refused(store: Store, store_url: str) -> None:
    async with store.write() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(RuntimeError, match="use a newer gateway"):
        await Store.open(store_url)


async def test_sqlite_is_set_up_for_several_processes(tmp_path: Path) -> None:
    store = await Store.open(sqlite_url(tmp_path))
    async with store.read() as connection:
        for pragma, value in (("journal_mode", "wal"), ("synchronous", 1), ("foreign_keys", 1)):
            assert (await connection.execute(text(f"PRAGMA {pragma}"))).scalar_one() == value
    for file in tmp_path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    await store.close()


def _revision(connection: Connection, step: Callable[..., None], revision: str) -> None:
    config = Config(attributes={"connection": connection})
    folder = Path(store_package.__file__).with_name("migrations")
    config.set_main_option("script_location", str(folder))
    step(config, revision)


async def test_pools_of_the_first_release_keep_their_tenants_and_have_no_owner(store: Store) -> None:
    """Nobody published them: what they preload reaches those alone who ask for it."""
    async with store.write() as connection:
        await connection.run_sync(lambda real: _revision(real, command.downgrade, "0001"))
        for name, tenant in (("shared", "NULL"), ("own", "'acme'")):
            await connection.execute(text(f"INSERT INTO warm_pools VALUES ('{name}', {tenant}, '{{}}')"))
        await connection.run_sync(lambda real: _revision(real, command.upgrade, "head"))
        assert await connection.run_sync(_differences) == []
    there = {row.name: (row.tenant, row.owner, row.published) for row in await pools.visible(store, None)}
    assert there == {"shared": ("", None, False), "own": ("acme", None, False)}
