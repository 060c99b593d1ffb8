"""Queries on the audit log, which is only ever added to; what is old goes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Sequence

import msgspec
from sqlalchemy import delete, func, select
from sqlalchemy import insert as insert_into

from llmsafespace_gateway.store.engine import Store
from llmsafespace_gateway.store.query import page, values
from llmsafespace_gateway.store.rows import AuditRow
from llmsafespace_gateway.store.schema import audit


def new_id() -> str:
    """An id that sorts after those made before it."""
    return f"{time.time_ns():016x}{secrets.token_hex(4)}"


async def append(
    store: Store, rows: Sequence[AuditRow], since: float = 0.0, again: Collection[str] = ()
) -> list[AuditRow]:
    """Add entries in one transaction; those that were added.

    An execution that has an entry which is no older than `since` gets no second one, whichever process wrote
    the first, unless the new entry's id is in `again`. Raises IntegrityError where another process adds an
    entry of the same execution at this moment: then nothing was added.
    """
    marks: dict[str | None, list[str]] = {}
    for row in rows:
        if row.execution is not None:
            marks.setdefault(row.tenant, []).append(row.execution)
    async with store.write() as connection:
        known: dict[str, float] = {}
        for tenant, wanted in marks.items():
            found = select(audit.c.execution, audit.c.at).where(
                audit.c.tenant == tenant, audit.c.execution.in_(wanted)
            )
            for seen in (await connection.execute(found)).mappings():
                known[seen["execution"]] = seen["at"]
        added = _new(rows, known, since, again)
        if added:
            await connection.execute(insert_into(audit), [values(row) for row in added])
    return added


def _new(
    rows: Sequence[AuditRow], known: dict[str, float], since: float, again: Collection[str]
) -> list[AuditRow]:
    """The rows without those of executions that are known. Only one row of an execution can have its mark."""
    added = []
    for row in rows:
        mark = row.execution
        if mark is None or mark not in known:
            added.append(row)
        elif row.id in again or known[mark] < since:
            added.append(msgspec.structs.replace(row, execution=None))
        if mark is not None:
            known[mark] = row.at
    return added


async def executions(
    store: Store, tenant: str | None, marks: Collection[str], since: float = 0.0
) -> set[str]:
    """Which of these executions have an entry of the tenant's that is no older than `since`."""
    found = select(audit.c.execution).where(
        audit.c.tenant == tenant, audit.c.execution.in_(marks), audit.c.at >= since
    )
    async with store.read() as connection:
        return set((await connection.execute(found)).scalars())


async def withdraw(store: Store, tenant: str | None, ids: Collection[str]) -> None:
    """Delete entries of a tenant that said too early that something was accepted."""
    async with store.write() as connection:
        await connection.execute(delete(audit).where(audit.c.tenant == tenant, audit.c.id.in_(ids)))


async def newest(store: Store) -> float | None:
    """The time of the newest entry; None when there is none."""
    async with store.read() as connection:
        found = await connection.execute(select(audit.c.at).order_by(audit.c.id.desc()).limit(1))
        at: float | None = found.scalar_one_or_none()
    return at


async def entries(
    store: Store,
    tenant: str,
    *,
    user_id: str | None = None,
    action: str | None = None,
    target: str | None = None,
    outcome: str | None = None,
    since: float | None = None,
    until: float | None = None,
    limit: int = 100,
    after: str | None = None,
) -> list[AuditRow]:
    """A page of a tenant's entries, newest first; `since` is included, `until` is not."""
    exact = {"user_id": user_id, "action": action, "target": target, "outcome": outcome}
    filters = [audit.c[name] == value for name, value in exact.items() if value is not None]
    if since is not None:
        filters.append(audit.c.at >= since)
    if until is not None:
        filters.append(audit.c.at < until)
    scope = select(audit).where(audit.c.tenant == tenant)
    return await page(store, AuditRow, scope, audit, filters=filters, limit=limit, after=after, order="id")


# -- what is old, or too much, goes: each call is short, since SQLite answers on the event loop -------------


async def forget_before(store: Store, before: float, batch: int) -> int:
    """Delete up to `batch` of the oldest entries, from before a moment; how many went.

    Ids grow with time, so that the oldest are first in the index of the primary key.
    """
    oldest = select(audit.c.id, audit.c.at).order_by(audit.c.id).limit(batch)
    async with store.write() as connection:
        rows = (await connection.execute(oldest)).mappings().all()
        gone = [row["id"] for row in rows if row["at"] < before]
        if gone:
            await connection.execute(delete(audit).where(audit.c.id.in_(gone)))
    return len(gone)


async def forget_of(store: Store, tenant: str | None, last: str, batch: int) -> int:
    """Delete up to `batch` of a tenant's oldest entries, up to the one whose id is `last`; how many went."""
    oldest = select(audit.c.id).where(audit.c.tenant == tenant, audit.c.id <= last)
    async with store.write() as connection:
        found = await connection.execute(oldest.order_by(audit.c.id).limit(batch))
        gone = found.scalars().all()
        if gone:
            mine = delete(audit).where(audit.c.tenant == tenant, audit.c.id.in_(gone))
            await connection.execute(mine)
    return len(gone)


async def next_tenant(store: Store, after: str) -> str | None:
    """The tenant with entries whose name comes after another; None when that was the last."""
    found = select(audit.c.tenant).where(audit.c.tenant > after).order_by(audit.c.tenant).limit(1)
    async with store.read() as connection:
        name: str | None = (await connection.execute(found)).scalar_one_or_none()
    return name


async def step(store: Store, tenant: str | None, after: str, size: int) -> str | None:
    """The id of the `size`-th of a tenant's entries after another, oldest first; None: there are fewer."""
    found = select(audit.c.id).where(audit.c.tenant == tenant, audit.c.id > after)
    async with store.read() as connection:
        statement = found.order_by(audit.c.id).offset(size - 1).limit(1)
        id_: str | None = (await connection.execute(statement)).scalar_one_or_none()
    return id_


async def count_after(store: Store, tenant: str | None, after: str) -> int:
    """How many of a tenant's entries come after another; for few (see `step`)."""
    found = select(func.count()).where(audit.c.tenant == tenant, audit.c.id > after)
    async with store.read() as connection:
        return int((await connection.execute(found)).scalar_one())
