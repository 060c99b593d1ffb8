"""Queries on sandboxes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from sqlalchemy import ColumnElement, and_, bindparam, delete, not_, or_, select
from sqlalchemy import insert as insert_into
from sqlalchemy import update as change
from sqlalchemy.exc import IntegrityError

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store.engine import Store
from llmsafespace_gateway.store.query import get as get_one
from llmsafespace_gateway.store.query import many, one, page, values, visible_sandboxes
from llmsafespace_gateway.store.rows import KernelRow, SandboxRow
from llmsafespace_gateway.store.schema import grants, kernels, sandboxes, sessions

_BY_ID = select(sandboxes).where(sandboxes.c.id == bindparam("wanted"))
_OF_TENANT = _BY_ID.where(sandboxes.c.tenant == bindparam("of"))
_MANY = 10_000  # unwritten ends that a query takes into account
_INSERT, _INSERT_KERNEL = insert_into(sandboxes), insert_into(kernels)
_END = (
    change(sandboxes)
    .where(sandboxes.c.id == bindparam("wanted"), sandboxes.c.state != "ended")
    .values(state="ended", end=bindparam("word"), end_message=bindparam("message"), ended_at=bindparam("at"))
)
_END_SESSIONS = delete(sessions).where(
    sessions.c.kernel_id.in_(select(kernels.c.id).where(kernels.c.sandbox_id == bindparam("wanted")))
)


async def insert(store: Store, row: SandboxRow, kernel: KernelRow | None = None) -> None:
    """Add a sandbox and its default kernel in one transaction.

    Raises ApiError(conflict) when the id, or the owner's idempotency key, or the kernel's id is taken.
    """
    try:
        async with store.write() as connection:
            await connection.execute(_INSERT, values(row))
            if kernel is not None:
                await connection.execute(_INSERT_KERNEL, values(kernel))
    except IntegrityError as error:
        raise ApiError(
            "conflict", "a sandbox or kernel with this id or Idempotency-Key exists; send another"
        ) from error


async def get(store: Store, sandbox_id: str) -> SandboxRow | None:
    """A sandbox, ended or not, whoever's: only for ids that the gateway itself or its backend names."""
    row = await get_one(store, SandboxRow, _BY_ID, {"wanted": sandbox_id})
    return row if row is None else as_it_is(store, row)


async def of_tenant(store: Store, tenant: str, sandbox_id: str) -> SandboxRow | None:
    """A tenant's sandbox, ended or not."""
    row = await get_one(store, SandboxRow, _OF_TENANT, {"wanted": sandbox_id, "of": tenant})
    return row if row is None else as_it_is(store, row)


async def by_idempotency_key(store: Store, owner: str, key: str) -> SandboxRow | None:
    """The sandbox that an owner (a user's id) made with this Idempotency-Key."""
    wanted = select(sandboxes).where(sandboxes.c.owner == owner, sandboxes.c.idempotency_key == key)
    row = await get_one(store, SandboxRow, wanted)
    return row if row is None else as_it_is(store, row)


def as_it_is(store: Store, row: SandboxRow) -> SandboxRow:
    """A row with its end, where that could not be written yet. The one place that says what the state is."""
    end = store.unwritten.get(row.id)
    if end is None or row.state == "ended":
        return row
    return msgspec.structs.replace(row, state="ended", end=end.end, end_message=end.message, ended_at=end.at)


def in_states(store: Store, states: Sequence[str]) -> ColumnElement[bool]:
    """The condition for sandboxes in one of these states, ends that are not written yet included."""
    written = sandboxes.c.state.in_(states)
    if not store.unwritten:
        return written
    unwritten = sandboxes.c.id.in_(list(store.unwritten)[:_MANY])
    return or_(written, unwritten) if "ended" in states else and_(written, not_(unwritten))


async def running(store: Store) -> list[SandboxRow]:
    """Every sandbox that has not ended. Unbounded: for a gateway's start."""
    wanted = select(sandboxes).where(sandboxes.c.state != "ended")
    async with store.read() as connection:
        rows = await many(connection, SandboxRow, wanted)
    return [row for row in rows if row.id not in store.unwritten]


class Holding(msgspec.Struct, frozen=True):
    """Whose a running sandbox is and what it takes: for quotas, and readable whatever else a row holds."""

    id: str
    tenant: str
    owner: str
    cpu: float
    memory: int


async def holdings(store: Store) -> list[Holding]:
    """What every sandbox takes that has not ended. Unbounded: for a gateway's start."""
    columns = (sandboxes.c[name] for name in Holding.__struct_fields__)
    async with store.read() as connection:
        found = await connection.execute(select(*columns).where(sandboxes.c.state != "ended"))
        return [Holding(*row) for row in found if row.id not in store.unwritten]


async def running_since(store: Store, backend: str) -> dict[str, float]:
    """Since when each sandbox of a backend runs, by its id. Unbounded, but light."""
    wanted = select(sandboxes.c.id, sandboxes.c.created_at).where(
        sandboxes.c.state != "ended", sandboxes.c.backend == backend
    )
    async with store.read() as connection:
        found = await connection.execute(wanted)
        return {row.id: row.created_at for row in found if row.id not in store.unwritten}


async def visible(
    store: Store,
    tenant: str,
    user_id: str | None,
    *,
    states: Sequence[str] | None = None,
    limit: int = 100,
    after: str | None = None,
) -> list[SandboxRow]:
    """A page of the sandboxes that a user owns or has a grant for (None: the tenant's), newest first."""
    scope = select(sandboxes).where(visible_sandboxes(sandboxes, grants, tenant, user_id))
    filters = () if states is None else (in_states(store, states),)
    rows = await page(store, SandboxRow, scope, sandboxes, filters=filters, limit=limit, after=after)
    return [as_it_is(store, row) for row in rows]


async def update(store: Store, tenant: str, sandbox_id: str, **changes: Any) -> SandboxRow | None:
    """Change columns of a tenant's sandbox; its row afterwards, or None when there is none."""
    this = and_(sandboxes.c.id == sandbox_id, sandboxes.c.tenant == tenant)
    async with store.write() as connection:
        if changes:
            await connection.execute(change(sandboxes).where(this).values(**changes))
        return await one(connection, SandboxRow, select(sandboxes).where(this))


async def end(store: Store, sandbox_id: str, end: str, message: str | None, at: float) -> bool:
    """Record how a sandbox ended, and drop its Jupyter sessions. Whatever else its row holds is not read.

    Only the first call counts: False when it had ended before, or is not there.
    """
    async with store.write() as connection:
        told = {"wanted": sandbox_id, "word": end, "message": message or None, "at": at}
        if not (await connection.execute(_END, told)).rowcount:
            return False
        await connection.execute(_END_SESSIONS, {"wanted": sandbox_id})
        return True


async def forget_ended(store: Store, before: float) -> int:
    """Delete the records of sandboxes that ended before a moment, with their kernels; how many."""
    async with store.write() as connection:
        gone = await connection.execute(
            delete(sandboxes).where(sandboxes.c.state == "ended", sandboxes.c.ended_at < before)
        )
        return gone.rowcount
