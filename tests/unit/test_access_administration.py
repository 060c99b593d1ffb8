"""Keys, users, grants, tenants and sandboxes as their owners, admins and strangers see them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

import pytest

from llmsafespace_gateway.access import Access, Principal
from llmsafespace_gateway.access.accounts import ensure_user, issue_key
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import Store, sandboxes, sessions, users
from llmsafespace_gateway.store.rows import KernelRow, SandboxRow, SessionRow, UserRow
from tests.services import people_of, rest

MakeSandbox = Callable[..., SandboxRow]
MakeKernel = Callable[..., KernelRow]


@pytest.fixture
async def access(store: Store) -> AsyncIterator[Access]:
    """A started access control."""
    made = Access(store)
    await made.start()
    yield made
    await made.stop()


class People:
    """Who they are, by name; made when first asked for."""

    def __init__(self, access: Access, store: Store) -> None:
        self._access = access
        self._store = store

    async def get(
        self, name: str, role: str = "developer", tenant: str = "acme", scopes: set[str] | None = None
    ) -> Principal:
        user = await ensure_user(self._store, tenant, name, role)
        _, text = await issue_key(self._store, user, "", scopes, None)
        return await self._access.authenticate(f"Bearer {text}")


@pytest.fixture
def people(access: Access, store: Store) -> People:
    """The people of a test."""
    return People(access, store)


async def code_of(work: object) -> str:
    with pytest.raises(ApiError) as refused:
        await work  # type: ignore[misc]
    return refused.value.code


async def test_sandboxes_kernels_and_sessions_of_others_do_not_exist(
    access: Access, store: Store, people: People, make_sandbox: MakeSandbox, make_kernel: MakeKernel
) -> None:
    ada, bob = await people.get("ada"), await people.get("bob")
    eve = await people.get("eve", "admin", "other")
    operator = await people.get("root", "admin", "default")
    admin = await people.get("boss", "admin")
    row, kernel = make_sandbox("sb-1", "acme", ada.user_id), make_kernel("k-1", "sb-1")
    await sandboxes.insert(store, row, kernel)
    session = SessionRow(
        id="s-1", kernel_id="k-1", owner=ada.user_id, tenant="acme", path="p", name="n", type="notebook"
    )
    await sessions.insert(store, session)
    for allowed in (ada, admin):
        assert await access.sandbox(allowed, "sb-1", "sandboxes:write") == row
        assert await access.kernel(allowed, "k-1", "execute") == (row, kernel)
        assert await access.session(allowed, "s-1", "execute") == (row, kernel, session)
        assert await access.list_sandboxes(allowed) == [row]
        assert await access.list_kernels(allowed) == [kernel]
        assert await access.list_sessions(allowed) == [session]
    for stranger in (bob, eve, operator):
        messages = set()
        for work in (
            access.sandbox(stranger, "sb-1", "sandboxes:read"),
            access.sandbox(stranger, "sb-2", "x"),
        ):
            with pytest.raises(ApiError) as refused:
                await work
            messages.add((refused.value.code, refused.value.message.replace("sb-2", "sb-1")))
        assert len(messages) == 1
        assert messages.pop()[0] == "not_found"
        assert await code_of(access.kernel(stranger, "k-1", "sandboxes:read")) == "not_found"
        assert await code_of(access.session(stranger, "s-1", "sandboxes:read")) == "not_found"
        assert await access.list_sandboxes(stranger) == []
        assert await access.list_kernels(stranger) == []
        assert await access.list_sessions(stranger) == []


async def test_a_missing_scope_on_ones_own_is_forbidden(
    access: Access, store: Store, people: People, make_sandbox: MakeSandbox, make_kernel: MakeKernel
) -> None:
    reader = await people.get("ada", scopes={"sandboxes:read"})
    await sandboxes.insert(store, make_sandbox("sb-1", "acme", reader.user_id), make_kernel())
    await access.sandbox(reader, "sb-1", "sandboxes:read")
    assert await code_of(access.sandbox(reader, "sb-1", "execute")) == "forbidden"
    assert await code_of(access.kernel(reader, "k-1", "execute")) == "forbidden"
    blind = await people.get("ada", scopes={"execute"})
    assert await code_of(access.list_sandboxes(blind)) == "forbidden"
    with pytest.raises(ApiError, match="lacks the scope files:read"):
        access.require(blind, "files:read")


async def test_a_grant_opens_a_sandbox_and_its_end_closes_it(
    access: Access, store: Store, people: People, make_sandbox: MakeSandbox
) -> None:
    service = people_of(access, store)
    ada, bob, eve = await people.get("ada"), await people.get("bob"), await people.get("eve", tenant="other")
    row = make_sandbox("sb-1", "acme", ada.user_id)
    await sandboxes.insert(store, row)
    assert await code_of(service.grant(rest(bob), "sb-1", bob.user_id, "developer")) == "not_found"
    assert await code_of(service.grant(rest(ada), "sb-1", eve.user_id, "viewer")) == "not_found"
    assert await code_of(service.grant(rest(ada), "sb-1", "nobody", "viewer")) == "not_found"
    assert await code_of(service.grant(rest(ada), "sb-1", bob.user_id, "owner")) == "invalid_request"
    made = await service.grant(rest(ada), "sb-1", bob.user_id, "developer")
    assert await access.sandbox(bob, "sb-1", "execute") == row
    assert await access.level(bob, row) == "developer"
    assert await code_of(access.sandbox(bob, "sb-1", "sandboxes:write")) == "forbidden"
    assert await code_of(service.grant(rest(bob), "sb-1", bob.user_id, "viewer")) == "forbidden"
    assert await code_of(service.revoke_grant(rest(bob), made.id)) == "forbidden"
    assert await code_of(service.revoke_grant(rest(eve), made.id)) == "not_found"
    assert (
        await service.list_grants(rest(ada))
        == await service.list_grants(rest(ada), sandbox_id="sb-1")
        == [made]
    )
    assert await service.list_grants(rest(bob)) == []

    closed: list[str] = []
    access.watch(bob, row, "developer", lambda: closed.append("bob"))
    access.watch(ada, row, "owner", lambda: closed.append("ada"))
    await service.revoke_grant(rest(ada), made.id)
    deadline = time.monotonic() + 20
    while closed != ["bob"]:
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)
    assert await code_of(access.sandbox(bob, "sb-1", "sandboxes:read")) == "not_found"


async def test_keys_never_exceed_their_maker(access: Access, store: Store, people: People) -> None:
    service = people_of(access, store)
    ada = await people.get("ada", scopes={"keys:write", "execute"})
    row, text = await service.create_key(rest(ada), name="ci")
    assert row.scopes == ("execute", "keys:write")
    assert (await access.authenticate(f"Bearer {text}")).scopes == {"keys:write", "execute"}
    assert await code_of(service.create_key(rest(ada), scopes=["files:read"])) == "invalid_request"
    assert await code_of(service.create_key(rest(ada), scopes=["admin"])) == "invalid_request"
    assert await code_of(service.create_key(rest(ada), expires_at=1.0)) == "invalid_request"
    assert await code_of(service.create_key(rest(await people.get("vera", "viewer")))) == "forbidden"
    bob = await people.get("bob")
    assert await code_of(service.create_key(rest(ada), user_id=bob.user_id)) == "not_found"
    admin = await people.get("boss", "admin")
    given, _ = await service.create_key(rest(admin), user_id=bob.user_id)
    assert "admin" not in given.scopes
    assert given.user_id == bob.user_id


async def test_keys_are_revoked_by_their_owner_or_admin(access: Access, store: Store, people: People) -> None:
    service = people_of(access, store)
    ada, bob = await people.get("ada"), await people.get("bob")
    eve = await people.get("eve", "admin", "other")
    row, text = await service.create_key(rest(ada))
    closed: list[str] = []
    access.on_revoked(row.id, lambda: closed.append("socket"))
    for stranger in (bob, eve):
        assert await code_of(service.revoke_key(rest(stranger), row.id)) == "not_found"
    assert await code_of(service.revoke_key(rest(ada), "nonsense")) == "not_found"
    assert (await service.revoke_key(rest(ada), row.id)).revoked_at is not None
    assert closed == ["socket"]
    assert await code_of(access.authenticate(f"Bearer {text}")) == "unauthorized"
    admin = await people.get("boss", "admin")
    await service.revoke_key(rest(admin), bob.key_id)
    shown = await service.list_keys(rest(admin), user_id=bob.user_id)
    assert [(key.id, key.revoked_at is not None) for key in shown] == [(bob.key_id, True)]
    assert {key.id for key in await service.list_keys(rest(ada))} == {ada.key_id, row.id}
    assert await code_of(service.list_keys(rest(ada), user_id=bob.user_id)) == "not_found"


async def test_admins_manage_their_own_tenant(access: Access, store: Store, people: People) -> None:
    service = people_of(access, store)
    admin, ada = await people.get("boss", "admin"), await people.get("ada")
    carl = await service.create_user(rest(admin), "carl", "viewer")
    assert (carl.tenant, carl.role) == ("acme", "viewer")
    assert await code_of(service.create_user(rest(admin), "carl")) == "conflict"
    assert await code_of(service.create_user(rest(admin), "dora", tenant="other")) == "forbidden"
    assert await code_of(service.create_user(rest(admin), "dora", "king")) == "invalid_request"
    assert await code_of(service.create_user(rest(admin), "\n")) == "invalid_request"
    assert await code_of(service.create_user(rest(ada), "dora")) == "forbidden"
    assert {user.name for user in await service.list_users(rest(admin))} == {"boss", "ada", "carl"}
    assert await code_of(service.list_users(rest(ada))) == "forbidden"
    assert (await service.set_role(rest(admin), carl.id, "developer")).role == "developer"
    assert await code_of(service.set_role(rest(ada), ada.user_id, "admin")) == "forbidden"


async def test_the_operator_manages_tenants(access: Access, store: Store, people: People) -> None:
    service = people_of(access, store)
    operator = await people.get("root", "admin", "default")
    user = await service.create_user(rest(operator), "dora", "admin", "new")
    _, text = await service.create_key(rest(operator), user_id=user.id)
    dora = await access.authenticate(f"Bearer {text}")
    assert (dora.tenant, dora.is_admin) == ("new", True)
    assert await code_of(service.create_user(rest(operator), "x", tenant="a b")) == "invalid_request"


async def test_decisions_are_audited_for_admins_of_the_tenant(
    access: Access, store: Store, people: People
) -> None:
    service = people_of(access, store)
    admin, ada = await people.get("boss", "admin"), await people.get("ada")
    eve = await people.get("eve", "admin", "other")
    row, _ = await service.create_key(rest(ada))
    access.audit(ada, "sandbox.create", "sb-1", "quota_exceeded", code="print(1)", runtime="python")
    first, second = await service.audit_log(rest(admin))
    assert (first.action, first.outcome, first.user_id) == ("sandbox.create", "quota_exceeded", ada.user_id)
    assert first.details == {"code": "…", "runtime": "python"}
    assert (second.action, second.target, second.key_id) == ("keys.create", row.id, ada.key_id)
    assert second.details["door"] == "rest"
    assert await service.audit_log(rest(admin), action="keys.create") == [second]
    assert await service.audit_log(rest(admin), limit=1, after=first.id) == [second]
    assert await service.audit_log(rest(eve)) == []
    assert await code_of(service.audit_log(rest(ada))) == "forbidden"


async def test_what_befalls_a_sandbox_is_its_tenants_to_read(
    access: Access, store: Store, people: People, make_sandbox: MakeSandbox
) -> None:
    service = people_of(access, store)
    admin, ada = await people.get("boss", "admin"), await people.get("ada")
    row = make_sandbox("sb-1", "acme", ada.user_id)
    access.reserve(ada, row).commit(row.id)
    access.audit(None, "egress", "sb-1", "denied", host="example.org")
    access.audit(None, "egress", "sb-unknown", "denied")
    (entry,) = await service.audit_log(rest(admin))
    assert (entry.user_id, entry.key_id, entry.details) == (ada.user_id, None, {"host": "example.org"})


async def test_a_tenant_keeps_an_admin(access: Access, store: Store) -> None:
    """The last one is not demoted, by itself or the operator; of two who demote each other one stays."""
    service = people_of(access, store)
    people = [await ensure_user(store, "acme", name, "admin") for name in ("ada", "eve")]
    ada, eve = [await _principal(access, store, user) for user in people]
    done = await asyncio.gather(
        service.set_role(rest(ada), eve.user_id, "viewer"),
        service.set_role(rest(eve), ada.user_id, "viewer"),
        return_exceptions=True,
    )
    refused = [error for error in done if isinstance(error, ApiError)]
    assert [error.code for error in refused] == ["conflict"]
    admins = [row for row in await users.of_tenant(store, "acme") if row.role == "admin"]
    assert len(admins) == 1
    last = ada if admins[0].id == ada.user_id else eve
    for role in ("viewer", "developer"):
        assert await code_of(service.set_role(rest(last), last.user_id, role)) == "conflict"
    await service.set_role(rest(last), last.user_id, "admin")  # no change
    new = await service.create_user(rest(last), "new", "admin")
    assert (await service.set_role(rest(last), last.user_id, "viewer")).role == "viewer"
    assert new.role == "admin"


async def _principal(access: Access, store: Store, user: UserRow) -> Principal:
    _, text = await issue_key(store, user, "", None, None)
    return await access.authenticate(f"Bearer {text}")
