"""Queries on tenants and users."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, func, select
from sqlalchemy import insert as insert_into
from sqlalchemy import update as change
from sqlalchemy.exc import IntegrityError

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store.engine import Store
from llmsafespace_gateway.store.query import get as get_one
from llmsafespace_gateway.store.query import many, page, values
from llmsafespace_gateway.store.rows import TenantRow, UserRow
from llmsafespace_gateway.store.schema import api_keys, users
from llmsafespace_gateway.store.schema import tenants as tenant_table


async def tenants(store: Store) -> list[TenantRow]:
    """Every tenant. Unbounded: for a gateway's start."""
    async with store.read() as connection:
        return await many(connection, TenantRow, select(tenant_table).order_by(tenant_table.c.id))


async def tenant(store: Store, tenant_id: str) -> TenantRow | None:
    """A tenant."""
    return await get_one(store, TenantRow, select(tenant_table).where(tenant_table.c.id == tenant_id))


async def ensure_tenant(store: Store, tenant_id: str) -> None:
    """Make a tenant where it is missing."""
    if await tenant(store, tenant_id) is not None:
        return
    try:
        async with store.write() as connection:
            row = TenantRow(id=tenant_id, name=tenant_id)
            await connection.execute(insert_into(tenant_table), values(row))
    except IntegrityError:
        return  # another process made it just now


async def set_quota(store: Store, tenant_id: str, quota: dict[str, Any]) -> bool:
    """Replace a tenant's own quota; False when there is no such tenant."""
    async with store.write() as connection:
        statement = change(tenant_table).where(tenant_table.c.id == tenant_id).values(quota=quota)
        return bool((await connection.execute(statement)).rowcount)


async def insert(store: Store, row: UserRow) -> None:
    """Add a user. Raises ApiError(conflict) when its tenant has one of this name."""
    try:
        async with store.write() as connection:
            await connection.execute(insert_into(users), values(row))
    except IntegrityError as error:
        raise ApiError("conflict", f"tenant {row.tenant} has a user {row.name!r} already") from error


async def get(store: Store, tenant_id: str | None, user_id: str) -> UserRow | None:
    """A user of a tenant; None is any tenant, which is for the operator alone."""
    wanted = select(users).where(users.c.id == user_id)
    if tenant_id is not None:
        wanted = wanted.where(users.c.tenant == tenant_id)
    return await get_one(store, UserRow, wanted)


async def by_name(store: Store, tenant_id: str, name: str) -> UserRow | None:
    """The user of this name in a tenant."""
    return await get_one(
        store, UserRow, select(users).where(users.c.tenant == tenant_id, users.c.name == name)
    )


async def first_created(store: Store) -> float | None:
    """When the first user was made, which is about when the store was."""
    async with store.read() as connection:
        first: float | None = (await connection.execute(select(func.min(users.c.created_at)))).scalar()
        return first


async def any_admin_key(store: Store, tenant_id: str) -> bool:
    """True when a tenant has, or had, an admin with a key."""
    wanted = select(users).join(api_keys).where(users.c.tenant == tenant_id, users.c.role == "admin")
    return await get_one(store, UserRow, wanted.limit(1)) is not None


async def everyone(store: Store, tenant_id: str | None = None) -> list[UserRow]:
    """Every user by tenant and name. Unbounded: for the operator's command line."""
    wanted = select(users) if tenant_id is None else select(users).where(users.c.tenant == tenant_id)
    async with store.read() as connection:
        return await many(connection, UserRow, wanted.order_by(users.c.tenant, users.c.name))


async def of_tenant(
    store: Store, tenant_id: str, *, limit: int = 100, after: str | None = None
) -> list[UserRow]:
    """A page of a tenant's users, newest first."""
    wanted = select(users).where(users.c.tenant == tenant_id)
    return await page(store, UserRow, wanted, users, limit=limit, after=after)


async def set_role(store: Store, tenant_id: str, user_id: str, role: str, *, keep_admin: bool = True) -> bool:
    """Change the role of a tenant's user; False when there is no such user.

    With `keep_admin` raises ApiError(conflict) when that would leave the tenant without an admin: of two who
    demote each other at once, one stays.
    """
    this = and_(users.c.id == user_id, users.c.tenant == tenant_id)
    admins = select(users.c.id).where(users.c.tenant == tenant_id, users.c.role == "admin")
    async with store.write() as connection:
        # The tenant's row is what two of these wait for each other at, on PostgreSQL; SQLite has one writer.
        tenant_row = select(tenant_table.c.id).where(tenant_table.c.id == tenant_id)
        await connection.execute(tenant_row.with_for_update())
        if keep_admin and role != "admin":
            there = [row[0] for row in await connection.execute(admins)]
            if there == [user_id]:
                raise ApiError(
                    "conflict",
                    f"the last admin of tenant {tenant_id} stays one; make another user an admin first",
                )
        return bool((await connection.execute(change(users).where(this).values(role=role))).rowcount)
