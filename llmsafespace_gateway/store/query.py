"""What the query modules share: rows to structs, and pages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import msgspec
from sqlalchemy import ColumnElement, Select, Table, and_, or_, select

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store.engine import Store, StoreConnection
from llmsafespace_gateway.store.rows import Row

MAX_PAGE = 10_000
R = TypeVar("R", bound=Row)
# Statements that every request needs are built once, with `bindparam`: that costs more than running them.
Parameters = Mapping[str, Any] | None


def to_row(kind: type[R], mapping: Mapping[Any, Any]) -> R:
    """A result's mapping as a struct."""
    return msgspec.convert({str(name): value for name, value in mapping.items()}, kind)


def values(row: Row) -> dict[str, Any]:
    """A struct as a table's values."""
    return {name: getattr(row, name) for name in row.__struct_fields__}


async def one(
    connection: StoreConnection, kind: type[R], statement: Select[Any], parameters: Parameters = None
) -> R | None:
    """The first row of a query."""
    found = (await connection.execute(statement, parameters)).mappings().first()
    return None if found is None else to_row(kind, found)


async def many(
    connection: StoreConnection, kind: type[R], statement: Select[Any], parameters: Parameters = None
) -> list[R]:
    """All rows of a query, which must be bounded by its caller."""
    return [to_row(kind, found) for found in (await connection.execute(statement, parameters)).mappings()]


async def get(store: Store, kind: type[R], statement: Select[Any], parameters: Parameters = None) -> R | None:
    """The first row of a query, on a connection of its own."""
    async with store.read() as connection:
        return await one(connection, kind, statement, parameters)


async def page(
    store: Store,
    kind: type[R],
    scope: Select[Any],
    table: Table,
    *,
    filters: Sequence[ColumnElement[bool]] = (),
    limit: int,
    after: str | None,
    order: str = "created_at",
) -> list[R]:
    """A page of what the caller may see (`scope`) and asks for (`filters`), newest first.

    At most `limit` rows that come after the row whose id is `after`. Raises ApiError(invalid_request) when
    that is no row of the scope: whether others have such a row is not told.
    """
    key, row_id = table.c[order], table.c.id
    statement = scope.where(*filters)
    async with store.read() as connection:
        if after is not None:
            known = scope.with_only_columns(key).where(row_id == after)
            at = (await connection.execute(known)).scalar_one_or_none()
            if at is None:
                raise ApiError("invalid_request", "`after` must be the `next` of an earlier page")
            statement = statement.where(or_(key < at, and_(key == at, row_id < after)))
        bounded = statement.order_by(key.desc(), row_id.desc()).limit(max(1, min(limit, MAX_PAGE)))
        return await many(connection, kind, bounded)


def visible_sandboxes(
    sandboxes: Table, grants: Table, tenant: str, user_id: str | None
) -> ColumnElement[bool]:
    """The condition for a tenant's sandboxes that a user owns or has a grant for; None sees all of them."""
    if user_id is None:
        return sandboxes.c.tenant == tenant
    granted = select(grants.c.sandbox_id).where(grants.c.user_id == user_id)
    return and_(sandboxes.c.tenant == tenant, or_(sandboxes.c.owner == user_id, sandboxes.c.id.in_(granted)))
