"""Queries on kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import bindparam, func, select
from sqlalchemy import delete as remove
from sqlalchemy import insert as insert_into
from sqlalchemy import update as change
from sqlalchemy.exc import IntegrityError

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store.engine import Store
from llmsafespace_gateway.store.query import get as get_one
from llmsafespace_gateway.store.query import many, one, page, to_row, values, visible_sandboxes
from llmsafespace_gateway.store.rows import KernelRow, SandboxRow
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


async def insert(store: Store, row: KernelRow) -> None:
    """Add a kernel; the same id in the same sandbox again changes nothing.

    Raises ApiError(conflict) when the id is taken elsewhere, not_found when there is no such sandbox.
    """
    try:
        async with store.write() as connection:
            await connection.execute(insert_into(kernels), values(row))
    except IntegrityError as error:
        there = await get(store, row.id)
        if there is None:
            raise ApiError("not_found", f"there is no sandbox {row.sandbox_id!r}") from error
        if there.sandbox_id != row.sandbox_id:
            raise ApiError("conflict", "a kernel with this id exists; send another, or none") from error


async def get(store: Store, kernel_id: str) -> KernelRow | None:
    """A kernel."""
    return await get_one(store, KernelRow, select(kernels).where(kernels.c.id == kernel_id))


async def with_sandbox(store: Store, kernel_id: str) -> tuple[SandboxRow, KernelRow] | None:
    """A kernel and the sandbox that it is in, ended or not."""
    async with store.read() as connection:
        found = (await connection.execute(_BOTH.where(kernels.c.id == kernel_id))).mappings().first()
    if found is None:
        return None
    kernel = {name[2:]: value for name, value in found.items() if name.startswith("k_")}
    sandbox = {name[2:]: value for name, value in found.items() if name.startswith("s_")}
    return to_row(SandboxRow, sandbox), to_row(KernelRow, kernel)


async def of_sandbox(store: Store, sandbox_id: str) -> list[KernelRow]:
    """The kernels of a sandbox, the default one first."""
    async with store.read() as connection:
        found = await many(connection, KernelRow, _OF_SANDBOX, {"wanted": sandbox_id})
    return sorted(found, key=lambda row: not row.is_default)


async def defaults_of(store: Store, sandbox_ids: Sequence[str]) -> dict[str, KernelRow]:
    """The default kernel of each of at most a page of sandboxes."""
    wanted = select(kernels).where(kernels.c.sandbox_id.in_(sandbox_ids), kernels.c.is_default.is_(True))
    async with store.read() as connection:
        return {row.sandbox_id: row for row in await many(connection, KernelRow, wanted)}


async def visible(
    store: Store, tenant: str, user_id: str | None, *, limit: int = 1000, after: str | None = None
) -> list[KernelRow]:
    """A page of the kernels of running sandboxes that a user may see (None: the tenant's), newest first."""
    wanted = select(kernels).join_from(kernels, sandboxes)
    wanted = wanted.where(
        sandboxes.c.state == "running", visible_sandboxes(sandboxes, grants, tenant, user_id)
    )
    return await page(store, KernelRow, wanted, kernels, limit=limit, after=after)


async def update(store: Store, kernel_id: str, **changes: Any) -> KernelRow | None:
    """Change columns of a kernel; its row afterwards, or None when there is none."""
    async with store.write() as connection:
        if changes:
            await connection.execute(change(kernels).where(kernels.c.id == kernel_id).values(**changes))
        return await one(connection, KernelRow, select(kernels).where(kernels.c.id == kernel_id))


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


async def delete(store: Store, kernel_id: str) -> bool:
    """Remove a kernel and its sessions; False when there was none."""
    async with store.write() as connection:
        gone = await connection.execute(remove(kernels).where(kernels.c.id == kernel_id))
        return bool(gone.rowcount)
