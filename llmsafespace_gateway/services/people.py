"""Use cases: API keys, users, grants and the audit log, as their managers see them."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterable
from typing import Any

from llmsafespace_gateway.access.accounts import check_names, issue_key, new_user
from llmsafespace_gateway.access.decisions import GRANT_LEVELS, key_scopes
from llmsafespace_gateway.access.principal import (
    ADMIN,
    KEYS_WRITE,
    ROLES,
    SANDBOXES_READ,
    SANDBOXES_WRITE,
    Principal,
)
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.services.base import Caller, Service
from llmsafespace_gateway.store import audit, grants, keys, users
from llmsafespace_gateway.store.rows import AuditRow, GrantRow, KeyRow, SandboxRow, UserRow
from llmsafespace_gateway.tenants import DEFAULT_TENANT


class PeopleService(Service):
    """Everything here is limited to the caller's own tenant, with one exception.

    An admin of tenant `default` is the operator: it manages the users and keys of every tenant. It sees the
    sandboxes of its own tenant only, as every admin does.
    """

    # -- keys ------------------------------------------------------------------------------------------

    async def create_key(
        self,
        caller: Caller,
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
        self.access.require(caller.principal, KEYS_WRITE)
        user = await self._user(caller.principal, user_id or caller.principal.user_id)
        try:
            allowed = key_scopes(user.role, scopes, caller.principal.scopes)
        except ValueError as error:
            raise ApiError("invalid_request", str(error)) from error
        if expires_at is not None and expires_at <= time.time():
            raise ApiError("invalid_request", "the expiry of a key must be in the future")
        with self.act(caller, "keys.create", user=user.id, scopes=sorted(allowed)) as act:
            row, text = await issue_key(self.store, user, name, allowed, expires_at)
            act.target = row.id
        return row, text

    async def list_keys(
        self,
        caller: Caller,
        *,
        user_id: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[KeyRow]:
        """The caller's keys, newest first; with scope admin another user's."""
        user = await self._user(caller.principal, user_id or caller.principal.user_id)
        return await keys.visible(self.store, user.tenant, user.id, limit=limit, after=after)

    async def revoke_key(self, caller: Caller, key_id: str) -> KeyRow:
        """Revoke a key for good, and close what it has open.

        Own keys need keys:write, those of others in the tenant admin. Raises ApiError: forbidden, not_found.
        """
        self.access.require(caller.principal, KEYS_WRITE)
        found = await keys.known(self.store, key_id)
        mine = found is not None and found.user.id == caller.principal.user_id
        managed = found is not None and manages(caller.principal, found.user.tenant)
        row = None
        if found is not None and (mine or managed):
            row = await keys.revoke(self.store, found.user.id, key_id, time.time())
        if row is None:
            raise ApiError("not_found", f"there is no key {key_id[:64]!r} that you can see")
        with self.act(caller, "keys.revoke", row.id, user=row.user_id):
            self.access.key_revoked(row.id)
        return row

    # -- users -----------------------------------------------------------------------------------------

    async def list_users(
        self, caller: Caller, *, limit: int = 100, after: str | None = None
    ) -> list[UserRow]:
        """The users of the caller's tenant, newest first. Raises ApiError(forbidden)."""
        self.access.require(caller.principal, ADMIN)
        return await users.of_tenant(self.store, caller.principal.tenant, limit=limit, after=after)

    async def create_user(
        self, caller: Caller, name: str, role: str = "developer", tenant: str | None = None
    ) -> UserRow:
        """A new user of the caller's tenant, or of one that the operator makes with it.

        Raises ApiError: forbidden, conflict, invalid_request.
        """
        self.access.require(caller.principal, ADMIN)
        tenant = tenant or caller.principal.tenant
        if not manages(caller.principal, tenant):
            raise ApiError("forbidden", "an admin makes users of its own tenant only", {"tenant": tenant})
        check_names(tenant, name)
        if role not in ROLES:
            raise ApiError("invalid_request", f"a role is one of {', '.join(sorted(ROLES))}", {"role": role})
        with self.act(caller, "users.create", name=name, role=role) as act:
            await users.ensure_tenant(self.store, tenant)
            await users.insert(self.store, row := new_user(tenant, name, role))
            act.target = row.id
        return row

    async def set_role(self, caller: Caller, user_id: str, role: str) -> UserRow:
        """Change the role of a user of the tenant; its keys follow it, and what they have open closes."""
        self.access.require(caller.principal, ADMIN)
        if role not in ROLES:
            raise ApiError("invalid_request", f"a role is one of {', '.join(sorted(ROLES))}", {"role": role})
        user = await self._user(caller.principal, user_id)
        # The operator may leave another tenant without one: it manages that tenant's users itself.
        own = user.tenant == caller.principal.tenant
        with self.act(caller, "users.set_role", user.id, role=role):
            await users.set_role(self.store, user.tenant, user.id, role, keep_admin=own)
            self.access.user_changed(user.id)
        return await self._user(caller.principal, user_id)

    # -- grants ----------------------------------------------------------------------------------------

    async def grant(self, caller: Caller, sandbox_id: str, user_id: str, level: str) -> GrantRow:
        """Let a user of the tenant use a sandbox as viewer or developer; by its owner or an admin.

        Raises ApiError: not_found (sandbox, user), forbidden, invalid_request.
        """
        row = await self._owned(caller.principal, sandbox_id, SANDBOXES_WRITE)
        if level not in GRANT_LEVELS:
            raise ApiError("invalid_request", f"a grant's level is one of {', '.join(GRANT_LEVELS)}")
        user = await users.get(self.store, row.tenant, user_id)
        if user is None:
            raise ApiError("not_found", f"there is no user {user_id[:64]!r} in this tenant")
        wanted = GrantRow(id=f"gr-{secrets.token_hex(8)}", sandbox_id=row.id, user_id=user.id, level=level)
        with self.act(caller, "grants.create", sandbox=row.id, user=user.id, level=level) as act:
            made = await grants.put(self.store, wanted)
            act.target = made.id
        return made

    async def list_grants(
        self,
        caller: Caller,
        *,
        sandbox_id: str | None = None,
        limit: int = 100,
        after: str | None = None,
    ) -> list[GrantRow]:
        """The grants on a sandbox, or on all that the caller owns (an admin: on all of the tenant)."""
        if sandbox_id is not None:
            row = await self._owned(caller.principal, sandbox_id, SANDBOXES_READ)
            return await grants.of_sandbox(self.store, row.id)
        self.access.require(caller.principal, SANDBOXES_READ)
        owner = None if caller.principal.is_admin else caller.principal.user_id
        return await grants.of_tenant(self.store, caller.principal.tenant, owner, limit=limit, after=after)

    async def revoke_grant(self, caller: Caller, grant_id: str) -> None:
        """Take a grant back; what the guest has open closes. Raises ApiError: not_found, forbidden."""
        unknown = ApiError("not_found", f"there is no grant {grant_id[:64]!r} that you can see")
        found = await grants.get(self.store, caller.principal.tenant, grant_id)
        if found is None:
            raise unknown
        try:
            await self._owned(caller.principal, found.sandbox_id, SANDBOXES_WRITE)
        except ApiError as error:
            # The id of a sandbox that is not theirs to see would tell that the grant exists.
            raise unknown if error.code == "not_found" else error from None
        with self.act(caller, "grants.delete", grant_id, sandbox=found.sandbox_id, user=found.user_id):
            await grants.delete(self.store, found.sandbox_id, grant_id)

    # -- audit -----------------------------------------------------------------------------------------

    async def audit_log(self, caller: Caller, **wanted: Any) -> list[AuditRow]:
        """A page of the tenant's audit log, newest first, with what was decided until now.

        `wanted` are the filters of `store.audit.entries`. Raises ApiError: forbidden, invalid_request.
        """
        self.access.require(caller.principal, ADMIN)
        await self.access.write_audit()
        return await audit.entries(self.store, caller.principal.tenant, **wanted)

    # -- inside ----------------------------------------------------------------------------------------

    async def _user(self, principal: Principal, user_id: str) -> UserRow:
        """The principal itself, or a user whom it manages."""
        everyone = principal.is_admin and principal.tenant == DEFAULT_TENANT
        row = await users.get(self.store, None if everyone else principal.tenant, user_id)
        own = user_id == principal.user_id
        if row is None or not (own or manages(principal, row.tenant)):
            raise ApiError("not_found", f"there is no user {user_id[:64]!r} that you can see")
        return row

    async def _owned(self, principal: Principal, sandbox_id: str, scope: str) -> SandboxRow:
        row, level = await self.access.sandbox_and_level(principal, sandbox_id, scope)
        if level not in ("owner", "admin"):
            raise ApiError("forbidden", "only the owner of a sandbox and admins share it")
        return row


def manages(principal: Principal, tenant: str) -> bool:
    """May `principal` manage users and keys of `tenant`?"""
    return principal.is_admin and principal.tenant in (tenant, DEFAULT_TENANT)
