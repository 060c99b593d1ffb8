"""Queries on API keys."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import msgspec
from sqlalchemy import ColumnElement, and_, bindparam, select
from sqlalchemy import insert as insert_into
from sqlalchemy import update as change

from llmsafespace_gateway.store.engine import Store
from llmsafespace_gateway.store.query import get as get_one
from llmsafespace_gateway.store.query import one, page, to_row, values
from llmsafespace_gateway.store.rows import KeyRow, UserRow
from llmsafespace_gateway.store.schema import api_keys, tenants, users


class KnownKey(msgspec.Struct, frozen=True):
    """A key, whose it is, and what its tenant may have."""

    key: KeyRow
    user: UserRow
    quota: dict[str, Any]


class KeyRights(NamedTuple):
    """What the rights of a key come from."""

    scopes: frozenset[str]
    user_id: str
    tenant: str
    role: str


_BATCH = 500
_KNOWN = (
    select(
        *(column.label(f"k_{column.name}") for column in api_keys.c),
        *(column.label(f"u_{column.name}") for column in users.c),
        tenants.c.quota.label("quota"),
    )
    .join_from(api_keys, users)
    .join(tenants)
)

_REVOKED = select(api_keys.c.id).where(api_keys.c.revoked_at >= bindparam("since"))


async def insert(store: Store, row: KeyRow) -> None:
    """Add a key."""
    async with store.write() as connection:
        await connection.execute(insert_into(api_keys), values(row))


async def get(store: Store, user_id: str, key_id: str) -> KeyRow | None:
    """A user's key."""
    return await get_one(store, KeyRow, select(api_keys).where(_is(user_id, key_id)))


async def known(store: Store, key_id: str) -> KnownKey | None:
    """A key with its user and its tenant's quota, whoever's: this is where a request's tenant comes from."""
    async with store.read() as connection:
        found = (await connection.execute(_KNOWN.where(api_keys.c.id == key_id))).mappings().first()
    if found is None:
        return None
    return _known(found)


async def everything(store: Store, tenant: str | None = None) -> list[tuple[KeyRow, UserRow]]:
    """Every key and its user, newest first. Unbounded: for the operator's command line."""
    wanted = _KNOWN if tenant is None else _KNOWN.where(users.c.tenant == tenant)
    async with store.read() as connection:
        result = await connection.execute(wanted.order_by(api_keys.c.created_at.desc(), api_keys.c.id))
        return [(found.key, found.user) for found in map(_known, result.mappings())]


async def visible(
    store: Store, tenant: str, user_id: str | None, *, limit: int = 100, after: str | None = None
) -> list[KeyRow]:
    """A page of the keys of a user, or of all users of a tenant, newest first; revoked ones too."""
    wanted = select(api_keys).join_from(api_keys, users).where(users.c.tenant == tenant)
    if user_id is not None:
        wanted = wanted.where(users.c.id == user_id)
    return await page(store, KeyRow, wanted, api_keys, limit=limit, after=after)


async def revoke(store: Store, user_id: str, key_id: str, at: float) -> KeyRow | None:
    """Revoke a user's key for good; its row afterwards, None when there is none. The first moment stays."""
    this = _is(user_id, key_id)
    async with store.write() as connection:
        await connection.execute(
            change(api_keys).where(this, api_keys.c.revoked_at.is_(None)).values(revoked_at=at)
        )
        return await one(connection, KeyRow, select(api_keys).where(this))


async def revoked_since(store: Store, moment: float) -> list[str]:
    """The ids of the keys that were revoked at or after a moment: one look into an index."""
    async with store.read() as connection:
        found = await connection.execute(_REVOKED, {"since": moment})
        return [str(key_id) for (key_id,) in found]


async def rights(store: Store, key_ids: Collection[str]) -> dict[str, KeyRights]:
    """What each of these keys, which are in use here, rests on now; one that is gone is not among them."""
    wanted = select(
        api_keys.c.id.label("key"),
        api_keys.c.scopes,
        users.c.id.label("user"),
        users.c.tenant,
        users.c.role,
    ).join_from(api_keys, users)
    found: dict[str, KeyRights] = {}
    ids = list(key_ids)
    async with store.read() as connection:
        for start in range(0, len(ids), _BATCH):
            rows = await connection.execute(wanted.where(api_keys.c.id.in_(ids[start : start + _BATCH])))
            for row in rows.mappings():
                found[row["key"]] = KeyRights(
                    frozenset(row["scopes"]), row["user"], row["tenant"], row["role"]
                )
    return found


async def used(store: Store, moments: Mapping[str, float]) -> None:
    """Note when keys were last used."""
    if not moments:
        return
    statement = change(api_keys).where(api_keys.c.id == bindparam("key")).values(last_used_at=bindparam("at"))
    async with store.write() as connection:
        await connection.execute(statement, [{"key": key, "at": at} for key, at in moments.items()])


def _is(user_id: str, key_id: str) -> ColumnElement[bool]:
    return and_(api_keys.c.id == key_id, api_keys.c.user_id == user_id)


def _known(found: Mapping[Any, Any]) -> KnownKey:
    key = {name[2:]: value for name, value in found.items() if name.startswith("k_")}
    user = {name[2:]: value for name, value in found.items() if name.startswith("u_")}
    return KnownKey(to_row(KeyRow, key), to_row(UserRow, user), found["quota"])
