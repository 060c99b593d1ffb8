"""A record means that its sandbox was bound: what becomes of records and sandboxes that lost each other."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from llmsafespace_gateway.backends.base import (
    Claim,
    EgressRule,
    Ended,
    Place,
    Resources,
    SandboxBackend,
    SandboxSpec,
    Start,
    Stranger,
)
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.sandboxes.reconciliation import ORPHAN_GRACE, Reconciliation
from llmsafespace_gateway.store import Store, kernels, sandboxes, users
from llmsafespace_gateway.store.rows import SandboxRow, UserRow
from llmsafespace_protocol.requests import Limits

MakeSandbox = Callable[..., SandboxRow]
LONG_AGO = time.time() - 100_000.0


class Backend:
    """What lives, in memory."""

    name = "kubernetes"

    def __init__(self, *, shared: bool = True) -> None:
        self.shared = shared
        self.there: dict[str, Place] = {}
        self.foreign: dict[str, Stranger] = {}
        self.ends: dict[str, Ended] = {}

    def add(self, sandbox_id: str, age: float) -> None:
        self.there[sandbox_id] = Place(
            sandbox_id=sandbox_id, runtime="python:3.11", started_at=time.time() - age
        )

    async def living(self) -> list[Place]:
        return list(self.there.values())

    async def strangers(self) -> list[Stranger]:
        return list(self.foreign.values())

    async def fate(self, sandbox_id: str) -> Ended | None:
        if sandbox_id in self.there or sandbox_id in self.foreign:
            return None
        return self.ends.get(sandbox_id, Ended(sandbox_id=sandbox_id, end="lost"))

    async def destroy(self, sandbox_id: str, end: str = "terminated") -> bool:
        return self.there.pop(sandbox_id, None) is not None


def reconciliation(store: Store, backend: Backend) -> Reconciliation:
    async def record_end(ended: Ended) -> None:
        await sandboxes.end(store, ended.sandbox_id, ended.end, ended.message, 1.0)

    return Reconciliation(store, cast(SandboxBackend, backend), record_end)


async def add_user(store: Store, name: str = "ada", tenant: str = "default", at: float = LONG_AGO) -> None:
    await users.ensure_tenant(store, tenant)
    await users.insert(
        store, UserRow(id=f"u-{name}", name=name, tenant=tenant, role="developer", created_at=at)
    )


def _stuck(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def stuck(sandbox_id: str, *arguments: Any) -> Any:
        if sandbox_id.endswith("stuck"):
            raise ApiError("service_unavailable", "not now")
        return await call(sandbox_id, *arguments)

    return stuck


def stranger(sandbox_id: str = "sb-1", owner: str = "ada", **more: Any) -> Stranger:
    return Stranger(
        spec=SandboxSpec(
            sandbox_id=sandbox_id,
            runtime="python:3.10",
            owner=owner,
            tenant="default",
            resources=Resources(cpu=2.0),
            egress=(EgressRule("example.org", (443,)),),
            limits=Limits(timeout=5.0, idle_timeout=6.0, max_lifetime=7.0),
        ),
        claim=Claim(
            sandbox_id=sandbox_id,
            runtime="python:3.11",
            languages=("python",),
            start=Start(kind="warm"),
            isolation={"backend": "kubernetes"},
        ),
        context_id=more.get("context_id", "k-1"),
        started_at=1000.0,
    )


async def test_an_orphan_is_removed_after_a_grace(store: Store) -> None:
    await add_user(store)
    backend = Backend()
    backend.add("sb-old", ORPHAN_GRACE + 10)
    backend.add("sb-new", ORPHAN_GRACE - 10)
    await reconciliation(store, backend).once()
    assert set(backend.there) == {"sb-new"}


async def test_what_fails_for_one_sandbox_holds_up_no_other(
    store: Store, make_sandbox: MakeSandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    await add_user(store)
    for name in ("sb-1-gone-stuck", "sb-2-gone"):
        await sandboxes.insert(store, make_sandbox(name, backend="kubernetes", created_at=LONG_AGO))
    backend = Backend()
    for name in ("sb-1-stuck", "sb-2"):
        backend.add(name, ORPHAN_GRACE + 10)
    for name in ("sb-1-strange-stuck", "sb-2-strange"):
        backend.foreign[name] = stranger(name, context_id=f"k-{name}")
    for call in ("destroy", "fate"):
        monkeypatch.setattr(backend, call, _stuck(getattr(backend, call)))
    await reconciliation(store, backend).once()
    assert set(backend.there) == {"sb-1-stuck"}
    ends = {
        name: await sandboxes.get(store, name) for name in ("sb-1-gone-stuck", "sb-2-gone", "sb-2-strange")
    }
    assert {name: row and row.end for name, row in ends.items()} == {
        "sb-1-gone-stuck": None,
        "sb-2-gone": "lost",
        "sb-2-strange": None,
    }


async def test_a_sandbox_with_a_record_stays(store: Store, make_sandbox: MakeSandbox) -> None:
    await add_user(store)
    backend = Backend()
    backend.add("sb-1", ORPHAN_GRACE + 10)
    await sandboxes.insert(store, make_sandbox("sb-1", backend="kubernetes"))
    await reconciliation(store, backend).once()
    assert set(backend.there) == {"sb-1"}


@pytest.mark.parametrize("since", [None, ORPHAN_GRACE])
async def test_a_store_that_was_lost_removes_nothing_that_it_cannot_know(
    store: Store, since: float | None
) -> None:
    if since is not None:
        await add_user(store, at=time.time() - since)
    backend = Backend()
    backend.add("sb-1", ORPHAN_GRACE + 1000)
    await reconciliation(store, backend).once()
    assert set(backend.there) == {"sb-1"}


async def test_where_one_process_makes_all_sandboxes_an_orphan_is_removed_at_once(store: Store) -> None:
    backend = Backend(shared=False)
    backend.add("sb-1", 0.0)
    await reconciliation(store, backend).once()
    assert backend.there == {}


async def test_records_whose_sandbox_is_gone_end_with_what_is_known(
    store: Store, make_sandbox: MakeSandbox
) -> None:
    backend = Backend()
    backend.ends["sb-oom"] = Ended(sandbox_id="sb-oom", end="oom", message="too much")
    for sandbox_id in ("sb-oom", "sb-gone", "sb-new", "sb-local"):
        await sandboxes.insert(
            store,
            make_sandbox(
                sandbox_id,
                backend="local" if sandbox_id == "sb-local" else "kubernetes",
                created_at=time.time() - (0.0 if sandbox_id == "sb-new" else 1000.0),
            ),
        )
    await reconciliation(store, backend).once()
    rows = {
        row_id: await sandboxes.get(store, row_id) for row_id in ("sb-oom", "sb-gone", "sb-new", "sb-local")
    }
    assert {row_id: row and (row.end, row.end_message) for row_id, row in rows.items()} == {
        "sb-oom": ("oom", "too much"),
        "sb-gone": ("lost", None),
        "sb-new": (None, None),  # other processes may not have heard of it yet
        "sb-local": (None, None),
    }


async def test_a_stranger_is_adopted_once_by_however_many(store: Store) -> None:
    await add_user(store)
    backend = Backend()
    backend.foreign["sb-1"] = stranger()
    adopted: list[SandboxRow] = []
    for _ in range(3):
        replica = reconciliation(store, backend)
        replica.on_adopted = adopted.append
        await replica.once()
        await replica.adopt(stranger())
    assert [row.id for row in adopted] == ["sb-1"]
    row = await sandboxes.get(store, "sb-1")
    assert row is not None
    assert (row.owner, row.tenant, row.runtime, row.requested_runtime) == (
        "u-ada",
        "default",
        "python:3.11",
        "python:3.10",
    )
    assert (row.timeout, row.idle_timeout, row.max_lifetime, row.created_at) == (5.0, 6.0, 7.0, 1000.0)
    assert (row.cpu, row.egress) == (2.0, [{"domain": "example.org", "ports": [443]}])
    (kernel,) = await kernels.of_sandbox(store, "sb-1")
    assert (kernel.id, kernel.language, kernel.is_default) == ("k-1", "python", True)


@pytest.mark.parametrize(
    ("named", "owner"),
    [("ada", "u-ada"), ("u-ada", "u-ada"), ("nobody", ""), ("", ""), ("u-eve", ""), ("eve", "")],
)
async def test_only_users_of_the_namespaces_tenant_own_what_is_adopted(
    store: Store, named: str, owner: str
) -> None:
    await add_user(store)
    await add_user(store, "eve", "other")
    backend = Backend()
    backend.foreign["sb-1"] = stranger(owner=named)
    await reconciliation(store, backend).once()
    row = await sandboxes.get(store, "sb-1")
    assert row is not None
    assert row.owner == owner


async def test_a_stranger_that_ends_while_it_is_adopted_has_ended(store: Store) -> None:
    backend = Backend()
    backend.ends["sb-1"] = Ended(sandbox_id="sb-1", end="expired")
    await reconciliation(store, backend).adopt(stranger())
    row = await sandboxes.get(store, "sb-1")
    assert row is not None
    assert (row.state, row.end) == ("ended", "expired")
