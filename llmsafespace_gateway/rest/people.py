"""Routes: the caller, API keys, users, grants, the audit log."""

from __future__ import annotations

import time

from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import Query, Routes
from llmsafespace_gateway.rest.types_admin import (
    ApiKeyAnswer,
    ApiKeyCreate,
    ApiKeyCreated,
    ApiKeyList,
    AuditEntry,
    AuditList,
    GrantAnswer,
    GrantCreate,
    GrantList,
    MeAnswer,
    UserAnswer,
    UserCreate,
    UserList,
    UserPatch,
)
from llmsafespace_gateway.services.types import GrantRow, KeyRow, UserRow, moment

_LIMIT = Query("limit", "maximum number of items to return", "integer", 100, 1, 1000)
_AFTER = Query("after", "`next` of the page before")


ROUTES = Routes("Access")


def _page(rows: list[UserRow] | list[KeyRow] | list[GrantRow], limit: int) -> str | None:
    return rows[limit - 1].id if len(rows) > limit else None


def _key(row: KeyRow) -> ApiKeyAnswer:
    return ApiKeyAnswer(
        id=row.id,
        name=row.name,
        user_id=row.user_id,
        scopes=sorted(row.scopes),
        created_at=moment(row.created_at),
        expires_at=moment(row.expires_at) if row.expires_at is not None else None,
        revoked_at=moment(row.revoked_at) if row.revoked_at is not None else None,
        last_used_at=moment(row.last_used_at) if row.last_used_at is not None else None,
    )


def _created(row: KeyRow, text: str) -> ApiKeyCreated:
    shown = _key(row)
    return ApiKeyCreated(**{name: getattr(shown, name) for name in shown.__struct_fields__}, key=text)


def _user(row: UserRow) -> UserAnswer:
    return UserAnswer(
        id=row.id, name=row.name, tenant=row.tenant, role=row.role, created_at=moment(row.created_at)
    )


def _grant(row: GrantRow) -> GrantAnswer:
    return GrantAnswer(id=row.id, sandbox_id=row.sandbox_id, user_id=row.user_id, level=row.level)


@ROUTES("GET", "/user")
async def me(call: RestHandler) -> MeAnswer:
    """Who you are, and what your key may do."""
    who = call.principal
    return MeAnswer(
        id=who.user_id,
        name=who.user,
        tenant=who.tenant,
        role=who.role,
        key_id=who.key_id,
        scopes=sorted(who.scopes),
        usage=call.access.usage(who),
    )


@ROUTES("GET", "/user/apikeys", summary="Your API keys, newest first", query=(_LIMIT, _AFTER))
@ROUTES(
    "GET",
    "/users/{user_id}/apikeys",
    scope="admin",
    summary="A user's API keys, newest first",
    query=(_LIMIT, _AFTER),
    errors=(404,),
)
async def list_keys(call: RestHandler) -> ApiKeyList:
    """Your API keys, newest first."""
    limit = call.query("limit")
    rows = await call.services.people.list_keys(
        call.caller,
        user_id=call.path_values.get("user_id"),
        limit=limit + 1,
        after=call.query("after"),
    )
    return ApiKeyList(items=[_key(row) for row in rows[:limit]], next=_page(rows, limit))


@ROUTES(
    "POST",
    "/user/apikeys",
    action="keys.create",
    scope="keys:write",
    summary="A new API key of yours; it is shown this once",
    request=ApiKeyCreate,
    request_optional=True,
    status=201,
)
@ROUTES(
    "POST",
    "/users/{user_id}/apikeys",
    action="keys.create",
    scope="admin",
    summary="A new API key for a user; it is shown this once",
    request=ApiKeyCreate,
    request_optional=True,
    status=201,
    errors=(404,),
)
async def create_key(call: RestHandler) -> ApiKeyCreated:
    """A new API key of yours; it is shown this once."""
    body: ApiKeyCreate = call.body
    row, text = await call.services.people.create_key(
        call.caller,
        user_id=call.path_values.get("user_id"),
        name=body.name,
        scopes=body.scopes,
        expires_at=time.time() + body.expires_in if body.expires_in is not None else None,
    )
    return _created(row, text)


@ROUTES(
    "DELETE", "/user/apikeys/{key_id}", action="keys.revoke", scope="keys:write", status=204, errors=(404,)
)
async def revoke_key(call: RestHandler) -> None:
    """Revoke an API key, and close what it has open."""
    await call.services.people.revoke_key(call.caller, call.path_values["key_id"])


@ROUTES("GET", "/users", scope="admin", query=(_LIMIT, _AFTER))
async def list_users(call: RestHandler) -> UserList:
    """The users of your tenant."""
    limit = call.query("limit")
    rows = await call.services.people.list_users(call.caller, limit=limit + 1, after=call.query("after"))
    return UserList(items=[_user(row) for row in rows[:limit]], next=_page(rows, limit))


@ROUTES("POST", "/users", action="users.create", scope="admin", request=UserCreate, status=201, errors=(409,))
async def create_user(call: RestHandler) -> UserAnswer:
    """A new user of your tenant."""
    body: UserCreate = call.body
    return _user(await call.services.people.create_user(call.caller, body.name, body.role, body.tenant))


@ROUTES("PATCH", "/users/{user_id}", action="users.set_role", scope="admin", request=UserPatch, errors=(404,))
async def patch_user(call: RestHandler) -> UserAnswer:
    """Change a user's role."""
    body: UserPatch = call.body
    return _user(await call.services.people.set_role(call.caller, call.path_values["user_id"], body.role))


@ROUTES(
    "GET",
    "/grants",
    scope="sandboxes:read",
    query=(Query("sandboxId", "only on this sandbox"), _LIMIT, _AFTER),
    errors=(404,),
)
async def list_grants(call: RestHandler) -> GrantList:
    """Grants on your sandboxes; for admins on all of the tenant's."""
    limit = call.query("limit")
    rows = await call.services.people.list_grants(
        call.caller, sandbox_id=call.query("sandboxId"), limit=limit + 1, after=call.query("after")
    )
    return GrantList(items=[_grant(row) for row in rows[:limit]], next=_page(rows, limit))


@ROUTES(
    "POST",
    "/grants",
    action="grants.create",
    scope="sandboxes:write",
    request=GrantCreate,
    status=201,
    errors=(404,),
)
async def create_grant(call: RestHandler) -> GrantAnswer:
    """Let another user of the tenant use a sandbox."""
    body: GrantCreate = call.body
    return _grant(await call.services.people.grant(call.caller, body.sandbox_id, body.user_id, body.level))


@ROUTES(
    "DELETE", "/grants/{grant_id}", action="grants.delete", scope="sandboxes:write", status=204, errors=(404,)
)
async def delete_grant(call: RestHandler) -> None:
    """Take a grant back, and close what the guest has open."""
    await call.services.people.revoke_grant(call.caller, call.path_values["grant_id"])


@ROUTES(
    "GET",
    "/audit",
    scope="admin",
    query=(
        Query("userId", "only of this user"),
        Query("action", "only this action"),
        Query("target", "only about this"),
        Query("outcome", "only with this outcome"),
        _LIMIT,
        _AFTER,
    ),
)
async def audit_log(call: RestHandler) -> AuditList:
    """The audit log of your tenant, newest first."""
    limit = call.query("limit")
    rows = await call.services.people.audit_log(
        call.caller,
        user_id=call.query("userId"),
        action=call.query("action"),
        target=call.query("target"),
        outcome=call.query("outcome"),
        limit=limit + 1,
        after=call.query("after"),
    )
    return AuditList(
        items=[
            AuditEntry(
                id=row.id,
                at=moment(row.at),
                user_id=row.user_id,
                tenant=row.tenant,
                key_id=row.key_id,
                action=row.action,
                target=row.target,
                outcome=row.outcome,
                details=row.details,
            )
            for row in rows[:limit]
        ],
        next=rows[limit - 1].id if len(rows) > limit else None,
    )
