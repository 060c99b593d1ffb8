"""Queries on the audit log, which is only ever added to; what is old goes."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy import insert as insert_into

from llmsafespace_gateway.store.engine import Store
from llmsafespace_gateway.store.query import page, values
from llmsafespace_gateway.store.rows import AuditRow
from llmsafespace_gateway.store.schema import audit

_AT_ONCE = 500  # values of one statement


def new_id() -> str:
    """An id that sorts after those made before it."""
    return f"{time.time_ns():016x}{secrets.token_hex(4)}"


async def append(store: Store, rows: Sequence[AuditRow]) -> None:
    """Add entries in one transaction."""
    if rows:
        async with store.write() as connection:
            await connection.execute(insert_into(audit), [values(row) for row in rows])


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


async def forget(store: Store, before: float, most: int, batch: int) -> int:
    """Delete up to `batch` entries from before a moment, or beyond the newest `most`; how many went.

    Ids grow with time, so that the oldest are first in the index of the primary key.
    """
    oldest = select(audit.c.id, audit.c.at).order_by(audit.c.id).limit(batch)
    kept = select(audit.c.id).order_by(audit.c.id.desc()).offset(most).limit(1)
    async with store.write() as connection:
        beyond = (await connection.execute(kept)).scalar_one_or_none()
        rows = (await connection.execute(oldest)).mappings().all()
        gone = [
            row["id"] for row in rows if row["at"] < before or (beyond is not None and row["id"] <= beyond)
        ]
        for start in range(0, len(gone), _AT_ONCE):
            await connection.execute(delete(audit).where(audit.c.id.in_(gone[start : start + _AT_ONCE])))
    return len(gone)
