"""Keys, users, tenants, grants and the audit log, as their managers see them."""

from __future__ import annotations

import contextlib
import re
import secrets
import time
from collections.abc import Iterable
from typing import Any

import msgspec
from sqlalchemy.exc import IntegrityError

from llmsafespace_gateway.access.audit import AuditLog
from llmsafespace_gateway.access.authentication import Authenticator
from llmsafespace_gateway.access.decisions import GRANT_LEVELS, key_scopes, sandbox_level
from llmsafespace_gateway.access.key_format import key_hash, new_key, parse_key
from llmsafespace_gateway.access.principal import (
    ADMIN,
    KEYS_WRITE,
    ROLES,
    SANDBOXES_READ,
    SANDBOXES_WRITE,
    Principal,
)
from llmsafespace_gateway.access.quotas import Quota, merge_quota
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import Store, audit, grants, keys, sandboxes, users
from llmsafespace_gateway.store.rows import AuditRow, GrantRow, KeyRow, SandboxRow, TenantRow, UserRow
from llmsafespace_gateway.tenants import DEFAULT_TENANT

_USER = re.compile(r"[^\s\x00-\x1f\x7f]([^\x00-\x1f\x7f]{0,126}[^\s\x00-\x1f\x7f])?")
_TENANT = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")


class Administration:
    """Everything here is limited to the caller's own tenant, with one exception.

    An admin of tenant `default` is the operator: it manages the users, keys and quotas of every tenant. It
    sees the sandboxes of its own tenant only, as every admin does.
    """

    def __init__(self, store: Store, log: AuditLog, authenticator: Authenticator) -> None:
        self._store = store
        self._audit = log
        self._authenticator = authenticator

    def require(self, principal: Principal, scope: str) -> None:
        """Raise ApiError(forbidden) when the principal's key has not this scope."""
        if scope not in principal.scopes:
            raise ApiError("forbidden", f"this key lacks the scope {scope}", {"scope": scope})

    def audit(
        self, principal: Principal | None, action: str, target: str, outcome: str, **details: Any
    ) -> None:
        """Note a decision. `details` must not hold keys, code, env or file contents (they are cut)."""
        self._audit.add(principal, action, target, outcome, details)

    async def first_run(self, given: str | None = None) -> str | None:
        """Make tenant `default` and, where no admin has a key, user `admin` and a key: its text, once.

        With `given` that is the key's text, and nothing is told: every process may be given the same.
        Raises ApiError(invalid_request) when it is no key's text.
        """
        await users.ensure_tenant(self._store, DEFAULT_TENANT)
        if await users.any_admin_key(self._store, DEFAULT_TENANT):
            return None
        try:
            user = await ensure_user(self._store, DEFAULT_TENANT, "admin", "admin")
        except ApiError:
            if given is None:
                return None  # another process was first, or the name is taken: `keys create` remains
            user = await ensure_user(self._store, DEFAULT_TENANT, "admin", "admin")
        if given is None:
            return (await issue_key(self._store, user, "first run", None, None))[1]
        parsed = parse_key(given)
        if parsed is None:
            raise ApiError("invalid_request", "the first key is none: lsp_<16 hex digits>_<64 hex digits>")
        with contextlib.suppress(IntegrityError):  # another process has just stored it
            await keys.insert(self._store, _key_row(parsed[0], key_hash(*parsed), user, "first run"))
        return None

    # -- keys ------------------------------------------------------------------------------------------

    async def create_key(
        self,
        principal: Principal,
        *,
        user_id: str | None = None,
        name: str = "",
        scopes: Iterable[str] | None = None,
        expires_at: float | None = None,
    ) -> tuple[KeyRow, str]:
        """A new key of the caller, or with scope admin of another user: its row and its text, shown once.

        It never has more scopes than the key that makes it, nor than its user's role.
        Raises ApiError: forbidden, not_found (the user), invalid_request (scopes, expiry).
        """
        self.require(principal, KEYS_WRITE)
        user = await self._user(principal, user_id or principal.user_id)
        try:
            allowed = key_scopes(user.role, scopes, principal.scopes)
        except ValueError as error:
            raise ApiError("invalid_request", str(error)) from error
        if expires_at is not None and expires_at <= time.time():
            raise ApiError("invalid_request", "the expiry of a key must be in the future")
        row, text = await issue_key(self._store, user, name, allowed, expires_at)
        self.audit(principal, "keys.create", row.id, "ok", user=user.id, scopes=sorted(allowed))
        return row, text

    async def list_keys(
        self,
        principal: Principal,
        *,
        user_id: str | None = None,
        everyone: bool = False,
        limit: int = 100,
        after: str | None = None,
    ) -> list[KeyRow]:
        """The caller's keys, newest first; with scope admin another user's, or everyone's of the tenant."""
        if everyone:
            self.require(principal, ADMIN)
            return await keys.visible(self._store, principal.tenant, None, limit=limit, after=after)
        user = await self._user(principal, user_id or principal.user_id)
        return await keys.visible(self._store, user.tenant, user.id, limit=limit, after=after)

    async def revoke_key(self, principal: Principal, key_id: str) -> KeyRow:
        """Revoke a key for good, and close what it has open.

        Own keys need keys:write, those of others in the tenant admin. Raises ApiError: forbidden, not_found.
        """
        self.require(principal, KEYS_WRITE)
        found = await keys.known(self._store, key_id)
        mine = found is not None and found.user.id == principal.user_id
        managed = found is not None and manages(principal, found.user.tenant)
        row = None
        if found is not None and (mine or managed):
            row = await keys.revoke(self._store, found.user.id, key_id, time.time())
        if row is None:
            raise ApiError("not_found", f"there is no key {key_id[:64]!r} that you can see")
        self._authenticator.revoked([row.id])
        self.audit(principal, "keys.revoke", row.id, "ok", user=row.user_id)
        return row

    # -- users -----------------------------------------------------------------------------------------

    async def list_users(
        self, principal: Principal, *, limit: int = 100, after: str | None = None
    ) -> list[UserRow]:
        """The users of the caller's tenant, newest first. Raises ApiError(forbidden)."""
        self.require(principal, ADMIN)
        return await users.of_tenant(self._store, principal.tenant, limit=limit, after=after)

    async def create_user(
        self, principal: Principal, name: str, role: str = "developer", tenant: str | None = None
    ) -> UserRow:
        """A new user of the caller's tenant, or of one that the operator makes with it.

        Raises ApiError: forbidden, conflict, invalid_request.
        """
        self.require(principal, ADMIN)
        tenant = tenant or principal.tenant
        if not manages(principal, tenant):
            raise ApiError("forbidden", "an admin makes users of its own tenant only", {"tenant": tenant})
        check_names(tenant, name)
        if role not in ROLES:
            raise ApiError("invalid_request", f"a role is one of {', '.join(sorted(ROLES))}", {"role": role})
        await users.ensure_tenant(self._store, tenant)
        row = new_user(tenant, name, role)
        await users.insert(self._store, row)
        self.audit(principal, "users.create", row.id, "ok", name=name, role=role)
        return row

    async def set_role(self, principal: Principal, user_id: str, role: str) -> UserRow:
        """Change the role of a user of the tenant; its keys follow it, and what they have open closes."""
        self.require(principal, ADMIN)
        if role not in ROLES:
            raise ApiError("invalid_request", f"a role is one of {', '.join(sorted(ROLES))}", {"role": role})
        user = await self._user(principal, user_id)
        # The operator may leave another tenant without one: it manages that tenant's users itself.
        own = user.tenant == principal.tenant
        await users.set_role(self._store, user.tenant, user.id, role, keep_admin=own)
        self._authenticator.forget_user(user.id)
        self.audit(principal, "users.set_role", user.id, "ok", role=role)
        return await self._user(principal, user_id)

    # -- tenants ---------------------------------------------------------------------------------------

    async def list_tenants(self, principal: Principal) -> list[TenantRow]:
        """Every tenant, for the operator; an admin sees its own. Raises ApiError(forbidden)."""
        self.require(principal, ADMIN)
        return [row for row in await users.tenants(self._store) if manages(principal, row.id)]

    async def set_quota(self, principal: Principal, tenant: str, quota: dict[str, Any]) -> None:
        """Replace a tenant's quota (see Quota); for the operator. What lives already lives on.

        Raises ApiError: forbidden, not_found, invalid_request.
        """
        self.require(principal, ADMIN)
        if principal.tenant != DEFAULT_TENANT:
            raise ApiError("forbidden", f"only admins of tenant {DEFAULT_TENANT} change quotas")
        try:
            merge_quota(Quota(), quota)
        except (msgspec.ValidationError, TypeError) as error:
            raise ApiError("invalid_request", f"this is not a quota: {error}") from error
        if not await users.set_quota(self._store, tenant, quota):
            raise ApiError("not_found", f"there is no tenant {tenant[:128]!r}")
        self.audit(principal, "tenants.set_quota", tenant, "ok", quota=quota)

    # -- grants ----------------------------------------------------------------------------------------

    async def grant(self, principal: Principal, sandbox_id: str, user_id: str, level: str) -> GrantRow:
        """Let a user of the tenant use a sandbox as viewer or developer; by its owner or an admin.

        Raises ApiError: not_found (sandbox, user), forbidden, invalid_request.
        """
        row = await self._shareable(principal, sandbox_id)
        if level not in GRANT_LEVELS:
            raise ApiError("invalid_request", f"a grant's level is one of {', '.join(GRANT_LEVELS)}")
        user = await users.get(self._store, row.tenant, user_id)
        if user is None:
            raise ApiError("not_found", f"there is no user {user_id[:64]!r} in this tenant")
        wanted = GrantRow(id=f"gr-{secrets.token_hex(8)}", sandbox_id=row.id, user_id=user.id, level=level)
        made = await grants.put(self._store, wanted)
        self.audit(principal, "grants.create", made.id, "ok", sandbox=row.id, user=user.id, level=level)
        return made

    async def list_grants(
        self,
        principal: Principal,
        *,
        sandbox_id: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[GrantRow]:
        """The grants on a sandbox, or on all that the caller owns (an admin: on all of the tenant)."""
        self.require(principal, SANDBOXES_READ)
        if sandbox_id is not None:
            row = await self._owned(principal, sandbox_id)
            return await grants.of_sandbox(self._store, row.id)
        owner = None if principal.is_admin else principal.user_id
        return await grants.of_tenant(self._store, principal.tenant, owner, limit=limit, after=after)

    async def revoke_grant(self, principal: Principal, grant_id: str) -> None:
        """Take a grant back; what the guest has open closes. Raises ApiError: not_found, forbidden."""
        unknown = ApiError("not_found", f"there is no grant {grant_id[:64]!r} that you can see")
        found = await grants.get(self._store, principal.tenant, grant_id)
        if found is None:
            raise unknown
        try:
            await self._shareable(principal, found.sandbox_id)
        except ApiError as error:
            # The id of a sandbox that is not theirs to see would tell that the grant exists.
            raise unknown if error.code == "not_found" else error from None
        await grants.delete(self._store, found.sandbox_id, grant_id)
        self.audit(principal, "grants.delete", grant_id, "ok", sandbox=found.sandbox_id, user=found.user_id)

    # -- audit -----------------------------------------------------------------------------------------

    async def audit_log(
        self,
        principal: Principal,
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
        """A page of the tenant's audit log, newest first. Raises ApiError: forbidden, invalid_request."""
        self.require(principal, ADMIN)
        await self._audit.flush()
        return await audit.entries(
            self._store,
            principal.tenant,
            user_id=user_id,
            action=action,
            target=target,
            outcome=outcome,
            since=since,
            until=until,
            limit=limit,
            after=after,
        )

    # -- inside ----------------------------------------------------------------------------------------

    async def _user(self, principal: Principal, user_id: str) -> UserRow:
        """The principal itself, or a user whom it manages."""
        everyone = principal.is_admin and principal.tenant == DEFAULT_TENANT
        row = await users.get(self._store, None if everyone else principal.tenant, user_id)
        own = user_id == principal.user_id
        if row is None or not (own or manages(principal, row.tenant)):
            raise ApiError("not_found", f"there is no user {user_id[:64]!r} that you can see")
        return row

    async def _owned(self, principal: Principal, sandbox_id: str) -> SandboxRow:
        row = await sandboxes.of_tenant(self._store, principal.tenant, sandbox_id)
        level = None
        if row is not None:
            grant = await grants.level(self._store, row.id, principal.user_id)
            level = sandbox_level(principal, row.tenant, row.owner, grant)
        if row is None or level is None:
            raise ApiError("not_found", f"there is no sandbox {sandbox_id[:128]!r} that you can see")
        if level not in ("owner", "admin"):
            raise ApiError("forbidden", "only the owner of a sandbox and admins share it")
        return row

    async def _shareable(self, principal: Principal, sandbox_id: str) -> SandboxRow:
        row = await self._owned(principal, sandbox_id)
        self.require(principal, SANDBOXES_WRITE)
        return row


def manages(principal: Principal, tenant: str) -> bool:
    """May `principal` manage users and keys of `tenant`?"""
    return principal.is_admin and principal.tenant in (tenant, DEFAULT_TENANT)


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
