"""Queries on Jupyter sessions."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, and_, select
from sqlalchemy import delete as remove
from sqlalchemy import insert as insert_into
from sqlalchemy import update as change
from sqlalchemy.exc import IntegrityError

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store.engine import Store
from llmsafespace_gateway.store.query import get as get_one
from llmsafespace_gateway.store.query import many, one, values, visible_sandboxes
from llmsafespace_gateway.store.rows import SessionRow
from llmsafespace_gateway.store.sandboxes import in_states
from llmsafespace_gateway.store.schema import grants, kernels, sandboxes, sessions


async def insert(store: Store, row: SessionRow) -> None:
    """Add a session. Raises ApiError(conflict) when its id is taken or its kernel is gone."""
    try:
        async with store.write() as connection:
            await connection.execute(insert_into(sessions), values(row))
    except IntegrityError as error:
        raise ApiError("conflict", "a session with this id exists, or its kernel is gone") from error


async def get(store: Store, tenant: str, session_id: str) -> SessionRow | None:
    """A session of a tenant's."""
    return await get_one(store, SessionRow, select(sessions).where(_is(tenant, session_id)))


async def by_path(store: Store, owner: str, path: str, type: str) -> SessionRow | None:
    """An owner's session of a path and type."""
    wanted = select(sessions).where(
        sessions.c.owner == owner, sessions.c.path == path, sessions.c.type == type
    )
    return await get_one(store, SessionRow, wanted.order_by(sessions.c.id))


async def visible(store: Store, tenant: str, user_id: str | None, *, limit: int = 1000) -> list[SessionRow]:
    """The sessions on running sandboxes that a user may see (None: the tenant's)."""
    wanted = select(sessions).join_from(sessions, kernels).join(sandboxes)
    wanted = wanted.where(
        in_states(store, ["running"]), visible_sandboxes(sandboxes, grants, tenant, user_id)
    )
    async with store.read() as connection:
        return await many(connection, SessionRow, wanted.order_by(sessions.c.id).limit(limit))


async def update(store: Store, tenant: str, session_id: str, **changes: Any) -> SessionRow | None:
    """Change columns of a tenant's session; its row afterwards, or None when there is none."""
    this = _is(tenant, session_id)
    async with store.write() as connection:
        if changes:
            await connection.execute(change(sessions).where(this).values(**changes))
        return await one(connection, SessionRow, select(sessions).where(this))


async def delete(store: Store, tenant: str, session_id: str) -> bool:
    """Remove a tenant's session; False when there was none."""
    async with store.write() as connection:
        gone = await connection.execute(remove(sessions).where(_is(tenant, session_id)))
        return bool(gone.rowcount)


def _is(tenant: str, session_id: str) -> ColumnElement[bool]:
    return and_(sessions.c.id == session_id, sessions.c.tenant == tenant)
