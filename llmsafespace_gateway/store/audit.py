"""Queries on the audit log, which is only ever added to."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence

from sqlalchemy import insert as insert_into
from sqlalchemy import select

from llmsafespace_gateway.store.engine import Store
from llmsafespace_gateway.store.query import page, values
from llmsafespace_gateway.store.rows import AuditRow
from llmsafespace_gateway.store.schema import audit


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
