"""Queries on grants."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import and_, select
from sqlalchemy import delete as remove
from sqlalchemy import insert as insert_into
from sqlalchemy import update as change
from sqlalchemy.exc import IntegrityError

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store.engine import Store
from llmsafespace_gateway.store.query import MAX_PAGE, many, one, values
from llmsafespace_gateway.store.query import get as get_one
from llmsafespace_gateway.store.rows import GrantRow
from llmsafespace_gateway.store.schema import grants, sandboxes


async def put(store: Store, row: GrantRow) -> GrantRow:
    """Give a user a level on a sandbox, instead of the one it may have had; the grant as it is then.

    Raises ApiError(not_found) when the sandbox or the user is not there.
    """
    pair = (grants.c.sandbox_id == row.sandbox_id, grants.c.user_id == row.user_id)
    try:
        async with store.write() as connection:
            changed = await connection.execute(change(grants).where(*pair).values(level=row.level))
            if not changed.rowcount:
                await connection.execute(insert_into(grants), values(row))
            return await one(connection, GrantRow, select(grants).where(*pair)) or row
    except IntegrityError as error:
        raise ApiError("not_found", "there is no such sandbox or user to grant") from error


async def get(store: Store, tenant: str, grant_id: str) -> GrantRow | None:
    """A grant on a tenant's sandbox."""
    wanted = select(grants).join_from(grants, sandboxes)
    return await get_one(store, GrantRow, wanted.where(grants.c.id == grant_id, sandboxes.c.tenant == tenant))


async def level(store: Store, sandbox_id: str, user_id: str) -> str | None:
    """The level that a user was given on a sandbox."""
    wanted = select(grants).where(grants.c.sandbox_id == sandbox_id, grants.c.user_id == user_id)
    found = await get_one(store, GrantRow, wanted)
    return None if found is None else found.level


async def of_sandbox(store: Store, sandbox_id: str) -> list[GrantRow]:
    """The grants of a sandbox."""
    return await of_sandboxes(store, [sandbox_id])


async def of_sandboxes(store: Store, sandbox_ids: Collection[str]) -> list[GrantRow]:
    """The grants of several sandboxes."""
    wanted = select(grants).where(grants.c.sandbox_id.in_(sandbox_ids)).order_by(grants.c.id)
    async with store.read() as connection:
        return await many(connection, GrantRow, wanted)


async def of_tenant(
    store: Store, tenant: str, owner: str | None, *, limit: int = 100, after: str | None = None
) -> list[GrantRow]:
    """A page of the grants on a tenant's sandboxes, or on those of one owner; ordered by id."""
    wanted = select(grants).join_from(grants, sandboxes).where(sandboxes.c.tenant == tenant)
    if owner is not None:
        wanted = wanted.where(sandboxes.c.owner == owner)
    if after is not None:
        wanted = wanted.where(grants.c.id > after)
    async with store.read() as connection:
        bounded = wanted.order_by(grants.c.id).limit(max(1, min(limit, MAX_PAGE)))
        return await many(connection, GrantRow, bounded)


async def delete(store: Store, sandbox_id: str, grant_id: str) -> bool:
    """Take a grant on a sandbox back; False when there was none."""
    this = and_(grants.c.id == grant_id, grants.c.sandbox_id == sandbox_id)
    async with store.write() as connection:
        gone = await connection.execute(remove(grants).where(this))
        return bool(gone.rowcount)
