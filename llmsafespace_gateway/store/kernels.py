"""Queries on kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, func, select
from sqlalchemy import delete as remove
from sqlalchemy import insert as insert_into
from sqlalchemy import update as change
from sqlalchemy.exc import IntegrityError

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store.engine import Store
from llmsafespace_gateway.store.query import get as get_one
from llmsafespace_gateway.store.query import many, one, page, to_row, values, visible_sandboxes
from llmsafespace_gateway.store.rows import KernelRow, SandboxRow
from llmsafespace_gateway.store.sandboxes import as_it_is, in_states
from llmsafespace_gateway.store.schema import grants, kernels, sandboxes

_BOTH = select(
    *(column.label(f"k_{column.name}") for column in kernels.c),
    *(column.label(f"s_{column.name}") for column in sandboxes.c),
).join_from(kernels, sandboxes)
_OF_SANDBOX = (
    select(kernels)
    .where(kernels.c.sandbox_id == bindparam("wanted"))
    .order_by(kernels.c.created_at, kernels.c.id)
)
_IDS_OF_SANDBOX = select(kernels.c.id).where(kernels.c.sandbox_id == bindparam("wanted"))


async def insert(store: Store, row: KernelRow) -> bool:
    """Add a kernel; False when the sandbox has one of this id, which then stays as it is.

    Raises ApiError(conflict) when the id is taken elsewhere, not_found when there is no such sandbox.
    """
    try:
        async with store.write() as connection:
            await connection.execute(insert_into(kernels), values(row))
    except IntegrityError as error:
        if await get(store, row.sandbox_id, row.id) is not None:
            return False
        if await taken(store, row.id):
            raise id_taken() from error
        raise ApiError("not_found", f"there is no sandbox {row.sandbox_id!r}") from error
    return True


def id_taken() -> ApiError:
    """The answer for a kernel id of whoever's: it tells nothing of whose."""
    return ApiError("conflict", "this id cannot be used for a new kernel; send another, or none")


async def get(store: Store, sandbox_id: str, kernel_id: str) -> KernelRow | None:
    """A kernel of a sandbox."""
    return await get_one(store, KernelRow, select(kernels).where(_is(sandbox_id, kernel_id)))


async def taken(store: Store, kernel_id: str) -> bool:
    """Whether there is a kernel of this id, whoever's: ids are unique over all tenants."""
    async with store.read() as connection:
        found = await connection.execute(select(kernels.c.id).where(kernels.c.id == kernel_id))
        return found.first() is not None


async def with_sandbox(store: Store, tenant: str, kernel_id: str) -> tuple[SandboxRow, KernelRow] | None:
    """A kernel of a tenant's and the sandbox that it is in, ended or not."""
    wanted = _BOTH.where(kernels.c.id == kernel_id, sandboxes.c.tenant == tenant)
    async with store.read() as connection:
        found = (await connection.execute(wanted)).mappings().first()
    if found is None:
        return None
    kernel = {name[2:]: value for name, value in found.items() if name.startswith("k_")}
    sandbox = {name[2:]: value for name, value in found.items() if name.startswith("s_")}
    return as_it_is(store, to_row(SandboxRow, sandbox)), to_row(KernelRow, kernel)


async def of_sandbox(store: Store, sandbox_id: str) -> list[KernelRow]:
    """The kernels of a sandbox, the default one first."""
    async with store.read() as connection:
        found = await many(connection, KernelRow, _OF_SANDBOX, {"wanted": sandbox_id})
    return sorted(found, key=lambda row: not row.is_default)


async def ids_of(store: Store, sandbox_id: str) -> list[str]:
    """The ids of a sandbox's kernels, readable whatever else their rows hold."""
    async with store.read() as connection:
        return list((await connection.execute(_IDS_OF_SANDBOX, {"wanted": sandbox_id})).scalars())


async def defaults_of(store: Store, sandbox_ids: Sequence[str]) -> dict[str, KernelRow]:
    """The default kernel of each of at most a page of sandboxes."""
    wanted = select(kernels).where(kernels.c.sandbox_id.in_(sandbox_ids), kernels.c.is_default.is_(True))
    async with store.read() as connection:
        return {row.sandbox_id: row for row in await many(connection, KernelRow, wanted)}


async def visible(
    store: Store, tenant: str, user_id: str | None, *, limit: int = 1000, after: str | None = None
) -> list[KernelRow]:
    """A page of the kernels of running sandboxes that a user may see (None: the tenant's), newest first."""
    scope = select(kernels).join_from(kernels, sandboxes)
    scope = scope.where(visible_sandboxes(sandboxes, grants, tenant, user_id))
    running = in_states(store, ["running"])
    return await page(store, KernelRow, scope, kernels, filters=(running,), limit=limit, after=after)


async def update(store: Store, sandbox_id: str, kernel_id: str, **changes: Any) -> KernelRow | None:
    """Change columns of a sandbox's kernel; its row afterwards, or None when there is none."""
    this = _is(sandbox_id, kernel_id)
    async with store.write() as connection:
        if changes:
            await connection.execute(change(kernels).where(this).values(**changes))
        return await one(connection, KernelRow, select(kernels).where(this))


async def note_activity(store: Store, notes: Sequence[tuple[str, float, str | None, int]]) -> None:
    """Write back (kernel id, last activity, execution state or None, connections) of several kernels."""
    if not notes:
        return
    statement = (
        change(kernels)
        .where(kernels.c.id == bindparam("kernel"))
        .values(
            last_activity=bindparam("activity"),
            execution_state=func.coalesce(
                bindparam("state", type_=kernels.c.execution_state.type), kernels.c.execution_state
            ),
            connections=bindparam("connected"),
        )
    )
    rows = [
        {"kernel": kernel, "activity": activity, "state": state, "connected": connected}
        for kernel, activity, state, connected in notes
    ]
    async with store.write() as connection:
        await connection.execute(statement, rows)


async def delete(store: Store, sandbox_id: str, kernel_id: str) -> bool:
    """Remove a sandbox's kernel and its sessions; False when there was none."""
    async with store.write() as connection:
        gone = await connection.execute(remove(kernels).where(_is(sandbox_id, kernel_id)))
        return bool(gone.rowcount)


def _is(sandbox_id: str, kernel_id: str) -> ColumnElement[bool]:
    return and_(kernels.c.id == kernel_id, kernels.c.sandbox_id == sandbox_id)
