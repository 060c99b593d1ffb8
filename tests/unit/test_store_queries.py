"""The queries, on a real database."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from llmsafespace_gateway.access.accounts import ensure_user
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import Store, audit, grants, kernels, pools, sandboxes, sessions
from llmsafespace_gateway.store.rows import AuditRow, GrantRow, KernelRow, PoolRow, SandboxRow, SessionRow

MakeSandbox = Callable[..., SandboxRow]
MakeKernel = Callable[..., KernelRow]


async def test_rows_come_back_as_they_went(
    store: Store, make_sandbox: MakeSandbox, make_kernel: MakeKernel
) -> None:
    row = make_sandbox(
        warnings=("not quite",),
        metadata={"team": "ünï"},
        isolation={"seccomp": True},
        egress=[{"domain": "example.org", "ports": [443]}],
        memory=64 * 1024**3,
        timeout=300.0,
        idempotency_key="once",
        request_digest="d" * 64,
    )
    kernel = make_kernel(path="a/b.ipynb")
    await sandboxes.insert(store, row, kernel)
    assert await sandboxes.get(store, "sb-1") == row
    assert await kernels.with_sandbox(store, "default", "k-1") == (row, kernel)
    assert await sandboxes.by_idempotency_key(store, "ada", "once") == row
    assert await sandboxes.by_idempotency_key(store, "bob", "once") is None


async def test_a_sandbox_and_its_kernel_come_together_or_not_at_all(
    store: Store, make_sandbox: MakeSandbox, make_kernel: MakeKernel
) -> None:
    await sandboxes.insert(store, make_sandbox("sb-1"), make_kernel("k-1", "sb-1"))
    with pytest.raises(ApiError) as refused:
        await sandboxes.insert(store, make_sandbox("sb-2"), make_kernel("k-1", "sb-2"))
    assert refused.value.code == "conflict"
    assert await sandboxes.get(store, "sb-2") is None


async def test_one_sandbox_per_idempotency_key_and_owner(store: Store, make_sandbox: MakeSandbox) -> None:
    rows = [make_sandbox(f"sb-{n}", idempotency_key="k") for n in range(4)]
    done = await asyncio.gather(*(sandboxes.insert(store, row) for row in rows), return_exceptions=True)
    assert sum(result is None for result in done) == 1
    assert {error.code for error in done if isinstance(error, ApiError)} == {"conflict"}
    await sandboxes.insert(store, make_sandbox("sb-b", owner="bob", idempotency_key="k"))
    await sandboxes.insert(store, make_sandbox("sb-c"))
    await sandboxes.insert(store, make_sandbox("sb-d"))


async def test_an_end_is_recorded_once(
    store: Store, make_sandbox: MakeSandbox, make_kernel: MakeKernel
) -> None:
    await sandboxes.insert(store, make_sandbox(), make_kernel())
    session = SessionRow(
        id="s-1", kernel_id="k-1", owner="ada", tenant="default", path="p", name="n", type="notebook"
    )
    await sessions.insert(store, session)
    ended = await asyncio.gather(
        *(sandboxes.end(store, "sb-1", end, "why", 5.0) for end in ("expired", "terminated", "oom"))
    )
    assert sorted(ended) == [False, False, True]
    row = await sandboxes.get(store, "sb-1")
    assert row is not None
    assert (row.state, row.ended_at, row.end_message) == ("ended", 5.0, "why")
    assert await sessions.get(store, "default", "s-1") is None
    assert await kernels.get(store, "sb-1", "k-1") is not None
    assert await sandboxes.running(store) == []
    assert await sandboxes.running_since(store, "local") == {}
    assert await sandboxes.forget_ended(store, 6.0) == 1
    assert await kernels.get(store, "sb-1", "k-1") is None


async def test_lists_show_own_and_granted_only(
    store: Store, make_sandbox: MakeSandbox, make_kernel: MakeKernel
) -> None:
    ada, bob = [await ensure_user(store, "acme", name, "developer") for name in ("ada", "bob")]
    eve = await ensure_user(store, "other", "eve", "admin")
    for number, (tenant, owner) in enumerate((("acme", ada), ("acme", bob), ("acme", bob), ("other", eve))):
        row = make_sandbox(f"sb-{number}", tenant, owner.id, created_at=float(number))
        await sandboxes.insert(store, row, make_kernel(f"k-{number}", row.id, created_at=float(number)))
    await grants.put(store, GrantRow(id="g", sandbox_id="sb-2", user_id=ada.id, level="viewer"))

    async def seen(tenant: str, user: str | None) -> list[str]:
        kernel_ids = [row.id for row in await kernels.visible(store, tenant, user)]
        sandbox_ids = [row.id for row in await sandboxes.visible(store, tenant, user)]
        assert [name[2:] for name in kernel_ids] == [name[3:] for name in sandbox_ids]
        return sandbox_ids

    assert await seen("acme", ada.id) == ["sb-2", "sb-0"]
    assert await seen("acme", bob.id) == ["sb-2", "sb-1"]
    assert await seen("acme", None) == ["sb-2", "sb-1", "sb-0"]
    assert await seen("other", ada.id) == []
    assert set(await kernels.defaults_of(store, ["sb-0", "sb-3"])) == {"sb-0", "sb-3"}


async def test_pages_hold_everything_once(store: Store, make_sandbox: MakeSandbox) -> None:
    for number in range(7):
        await sandboxes.insert(store, make_sandbox(f"sb-{number}", created_at=float(number // 3)))
    seen: list[str] = []
    after = None
    while page := await sandboxes.visible(store, "default", "ada", limit=2, after=after):
        assert len(page) <= 2
        seen += [row.id for row in page]
        after = page[-1].id
    assert seen == ["sb-6", "sb-5", "sb-4", "sb-3", "sb-2", "sb-1", "sb-0"]
    with pytest.raises(ApiError) as refused:
        await sandboxes.visible(store, "default", "ada", after="nothing")
    assert refused.value.code == "invalid_request"


async def test_activity_is_written_back(
    store: Store, make_sandbox: MakeSandbox, make_kernel: MakeKernel
) -> None:
    await sandboxes.insert(store, make_sandbox(), make_kernel("k-1"))
    await kernels.insert(store, make_kernel("k-2", is_default=False))
    await kernels.note_activity(
        store, [("k-1", 9.0, "busy", 2), ("k-2", 8.0, None, 0), ("gone", 7.0, None, 1)]
    )
    first, second = await kernels.of_sandbox(store, "sb-1")
    assert (first.last_activity, first.execution_state, first.connections) == (9.0, "busy", 2)
    assert (second.last_activity, second.execution_state) == (8.0, "idle")
    changed = await kernels.update(store, "sb-1", "k-2", path="x.ipynb")
    assert changed is not None
    assert changed.path == "x.ipynb"


async def test_a_kernel_again_is_no_second_kernel(
    store: Store, make_sandbox: MakeSandbox, make_kernel: MakeKernel
) -> None:
    await sandboxes.insert(store, make_sandbox("sb-1"))
    await sandboxes.insert(store, make_sandbox("sb-2"))
    assert await kernels.insert(store, make_kernel("k", "sb-1"))
    assert not await kernels.insert(store, make_kernel("k", "sb-1"))
    for sandbox, code in (("sb-2", "conflict"), ("sb-none", "conflict")):
        with pytest.raises(ApiError) as refused:
            await kernels.insert(store, make_kernel("k", sandbox))
        assert refused.value.code == code
    with pytest.raises(ApiError) as missing:
        await kernels.insert(store, make_kernel("k-new", "sb-none"))
    assert missing.value.code == "not_found"
    assert not await kernels.delete(store, "sb-2", "k")
    assert await kernels.delete(store, "sb-1", "k")
    assert not await kernels.delete(store, "sb-1", "k")


async def test_sessions_change_and_end_with_their_kernel(
    store: Store, make_sandbox: MakeSandbox, make_kernel: MakeKernel
) -> None:
    await sandboxes.insert(store, make_sandbox(), make_kernel())
    row = SessionRow(
        id="s", kernel_id="k-1", owner="ada", tenant="default", path="p", name="n", type="notebook"
    )
    await sessions.insert(store, row)
    with pytest.raises(ApiError):
        await sessions.insert(store, row)
    assert await sessions.by_path(store, "ada", "p", "notebook") == row
    assert await sessions.by_path(store, "bob", "p", "notebook") is None
    changed = await sessions.update(store, "default", "s", path="q")
    assert changed is not None
    assert changed.path == "q"
    assert await sessions.visible(store, "default", "ada") == [changed]
    assert await sessions.visible(store, "default", "bob") == []
    await kernels.delete(store, "sb-1", "k-1")
    assert await sessions.get(store, "default", "s") is None


async def test_pools_are_put_and_seen_by_their_tenant(store: Store) -> None:
    await pools.insert(store, PoolRow(name="b", tenant="acme", spec={"minSize": 1}))
    await pools.insert(store, PoolRow(name="a", spec={}))
    with pytest.raises(ApiError):
        await pools.insert(store, PoolRow(name="b", tenant="acme", spec={}))
    await pools.insert(store, PoolRow(name="d", tenant="default", published=True, spec={}))
    await pools.insert(store, PoolRow(name="e", tenant="default", spec={}))
    await pools.insert(store, PoolRow(name="f", tenant="other", published=True, spec={}))
    await pools.put(store, PoolRow(name="b", tenant="acme", spec={"minSize": 2}))
    await pools.put(store, PoolRow(name="c", tenant="other", spec={}))
    assert [pool.name for pool in await pools.visible(store, "acme")] == ["a", "b", "d"]
    assert [pool.name for pool in await pools.visible(store, None, limit=2, after="a")] == ["b", "c"]
    there = await pools.get(store, "acme", "b")
    assert there is not None
    assert there.spec == {"minSize": 2}
    assert not await pools.delete(store, "other", "b")
    assert await pools.delete(store, "acme", "b")
    assert not await pools.delete(store, "acme", "b")


async def test_pools_of_two_tenants_may_have_one_name(store: Store) -> None:
    for tenant in ("acme", "other"):
        await pools.insert(store, PoolRow(name="p", tenant=tenant, owner=tenant, spec={"of": tenant}))
    await pools.put(store, PoolRow(name="p", tenant="acme", owner="acme", published=True, spec={}))
    assert [pool.owner for pool in await pools.visible(store, "other")] == ["other"]
    kept = await pools.get(store, "other", "p")
    assert kept is not None
    assert (kept.published, kept.spec) == (False, {"of": "other"})


async def test_grants_are_one_per_user_and_sandbox(store: Store, make_sandbox: MakeSandbox) -> None:
    user = await ensure_user(store, "default", "bob", "developer")
    await sandboxes.insert(store, make_sandbox())
    first = await grants.put(store, GrantRow(id="g1", sandbox_id="sb-1", user_id=user.id, level="viewer"))
    second = await grants.put(store, GrantRow(id="g2", sandbox_id="sb-1", user_id=user.id, level="developer"))
    assert (first.id, second.id, second.level) == ("g1", "g1", "developer")
    assert await grants.of_tenant(store, "default", "ada") == [second]
    assert await grants.of_tenant(store, "default", user.id) == []
    with pytest.raises(ApiError):
        await grants.put(store, GrantRow(id="g3", sandbox_id="sb-none", user_id=user.id, level="viewer"))
    assert await grants.get(store, "other", "g1") is None
    assert await grants.get(store, "default", "g1") == second
    assert not await grants.delete(store, "sb-2", "g1")
    assert await grants.delete(store, "sb-1", "g1")
    assert await grants.level(store, "sb-1", user.id) is None


async def test_the_audit_log_is_filtered_and_paged(store: Store) -> None:
    rows = [
        AuditRow(
            id=audit.new_id(),
            at=float(number),
            user_id="ada" if number % 2 else "bob",
            tenant="acme",
            action="sandbox.create",
            target=f"sb-{number}",
            outcome="ok",
            details={"n": number},
        )
        for number in range(6)
    ]
    await audit.append(store, rows)
    newest = rows[::-1]
    assert await audit.entries(store, "acme") == newest
    assert await audit.entries(store, "other") == []
    assert await audit.entries(store, "acme", user_id="ada") == newest[::2]
    assert await audit.entries(store, "acme", since=2.0, until=4.0) == newest[2:4]
    assert await audit.entries(store, "acme", target="sb-3", action="sandbox.create") == [rows[3]]
    assert await audit.entries(store, "acme", limit=2, after=newest[1].id) == newest[2:4]
