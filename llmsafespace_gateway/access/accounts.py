"""Users and keys, as a first start, the command line and the service of people make them."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Iterable

from sqlalchemy.exc import IntegrityError

from llmsafespace_gateway.access.key_format import key_hash, new_key, parse_key
from llmsafespace_gateway.access.principal import ROLES
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import Store, keys, users
from llmsafespace_gateway.store.rows import KeyRow, UserRow
from llmsafespace_gateway.tenants import DEFAULT_TENANT

_USER = re.compile(r"[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]{0,126}[^\s\x00-\x1f\x7f])?")
_TENANT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


async def first_run(store: Store, given: str | None = None) -> str | None:
    """Make tenant `default` and, where no admin has a key, user `admin` and a key: its text, once.

    With `given` that is the key's text, and nothing is told: every process may be given the same.
    Raises ApiError(invalid_request) when it is no key's text.
    """
    await users.ensure_tenant(store, DEFAULT_TENANT)
    if await users.any_admin_key(store, DEFAULT_TENANT):
        return None
    try:
        user = await ensure_user(store, DEFAULT_TENANT, "admin", "admin")
    except ApiError:
        if given is None:
            return None  # another process was first, or the name is taken: `keys create` remains
        user = await ensure_user(store, DEFAULT_TENANT, "admin", "admin")
    if given is None:
        return (await issue_key(store, user, "first run", None, None))[1]
    parsed = parse_key(given)
    if parsed is None:
        raise ApiError("invalid_request", "the first key is none: lsp_<16 hex digits>_<64 hex digits>")
    with contextlib.suppress(IntegrityError):  # another process has just stored it
        await keys.insert(store, _key_row(parsed[0], key_hash(*parsed), user, "first run"))
    return None


def check_names(tenant: str, user: str) -> None:
    """Raise ApiError(invalid_request) for a name that a tenant or a user cannot have."""
    if not _TENANT.fullmatch(tenant):
        raise ApiError(
            "invalid_request", "a tenant's name has up to 128 of A-Z a-z 0-9 . _ - and no mark at its ends"
        )
    if not _USER.fullmatch(user):
        raise ApiError(
            "invalid_request", "a user's name has up to 128 printable characters and no space at its ends"
        )


def new_user(tenant: str, name: str, role: str) -> UserRow:
    """The row of a new user."""
    return UserRow(
        id=f"us-{secrets.token_hex(8)}", name=name, tenant=tenant, role=role, created_at=time.time()
    )


async def ensure_user(store: Store, tenant: str, name: str, role: str) -> UserRow:
    """The user of this name and role in a tenant; both are made where they are missing.

    Raises ApiError(conflict) when the user has another role.
    """
    await users.ensure_tenant(store, tenant)
    there = await users.by_name(store, tenant, name)
    if there is None:
        await users.insert(store, made := new_user(tenant, name, role))
        return made
    if there.role != role:
        raise ApiError(
            "conflict", f"user {name} of tenant {tenant} is a {there.role}; say --role {there.role}"
        )
    return there


async def issue_key(
    store: Store, user: UserRow, name: str, scopes: Iterable[str] | None, expires_at: float | None
) -> tuple[KeyRow, str]:
    """Make a key for a user: its row and its text. `scopes` None are all of the role's."""
    key_id, text, hashed = new_key()
    row = _key_row(key_id, hashed, user, name, scopes, expires_at)
    await keys.insert(store, row)
    return row, text


def _key_row(
    key_id: str,
    hashed: str,
    user: UserRow,
    name: str,
    scopes: Iterable[str] | None = None,
    expires_at: float | None = None,
) -> KeyRow:
    return KeyRow(
        id=key_id,
        user_id=user.id,
        name=name,
        hash=hashed,
        scopes=tuple(sorted(ROLES[user.role] if scopes is None else scopes)),
        created_at=time.time(),
        expires_at=expires_at,
    )
