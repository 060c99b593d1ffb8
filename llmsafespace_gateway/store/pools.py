"""Queries on warm pools."""

from __future__ import annotations

from sqlalchemy import ColumnElement, and_, or_, select
from sqlalchemy import delete as remove
from sqlalchemy import insert as insert_into
from sqlalchemy import update as change
from sqlalchemy.exc import IntegrityError

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store.engine import Store
from llmsafespace_gateway.store.query import MAX_PAGE, many, values
from llmsafespace_gateway.store.query import get as get_one
from llmsafespace_gateway.store.rows import PoolRow
from llmsafespace_gateway.store.schema import warm_pools
from llmsafespace_gateway.tenants import DEFAULT_TENANT


async def insert(store: Store, row: PoolRow) -> None:
    """Add a pool. Raises ApiError(conflict) when its tenant has one of this name."""
    try:
        async with store.write() as connection:
            await connection.execute(insert_into(warm_pools), values(row))
    except IntegrityError as error:
        raise ApiError(
            "conflict", f"there is a warm pool {row.name!r} already; choose another name"
        ) from error


async def put(store: Store, row: PoolRow) -> None:
    """Add a pool, or replace the one of this tenant and name."""
    async with store.write() as connection:
        statement = change(warm_pools).where(_is(row.tenant, row.name)).values(**values(row))
        if not (await connection.execute(statement)).rowcount:
            await connection.execute(insert_into(warm_pools), values(row))


async def get(store: Store, tenant: str, name: str) -> PoolRow | None:
    """A tenant's pool, or with an empty tenant the operator's."""
    return await get_one(store, PoolRow, select(warm_pools).where(_is(tenant, name)))


async def visible(
    store: Store, tenant: str | None, *, limit: int = MAX_PAGE, after: str | None = None
) -> list[PoolRow]:
    """A page of the pools that serve a tenant (None: all pools), by name."""
    wanted = select(warm_pools)
    if tenant is not None:
        by_operator = and_(warm_pools.c.published, warm_pools.c.tenant == DEFAULT_TENANT)
        wanted = wanted.where(or_(warm_pools.c.tenant.in_((tenant, "")), by_operator))
    if after is not None:
        wanted = wanted.where(warm_pools.c.name > after)
    async with store.read() as connection:
        ordered = wanted.order_by(warm_pools.c.name, warm_pools.c.tenant)
        return await many(connection, PoolRow, ordered.limit(max(1, min(limit, MAX_PAGE))))


async def delete(store: Store, tenant: str, name: str) -> bool:
    """Remove a pool; False when there was none."""
    async with store.write() as connection:
        gone = await connection.execute(remove(warm_pools).where(_is(tenant, name)))
        return bool(gone.rowcount)


def _is(tenant: str, name: str) -> ColumnElement[bool]:
    return and_(warm_pools.c.tenant == tenant, warm_pools.c.name == name)
