"""Quotas: what is reserved before an await is taken, whatever else happens in between."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from llmsafespace_gateway.access import Access
from llmsafespace_gateway.access.principal import ROLES, Principal
from llmsafespace_gateway.access.quotas import Limit, Quota, Quotas, merge_quota
from llmsafespace_gateway.backends.base import Resources, WarmPoolSpec
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.store import Store, sandboxes, users
from llmsafespace_gateway.store.rows import SandboxRow

ADA = Principal("ada", "ada", "acme", "developer", "k1", ROLES["developer"])
BOB = Principal("bob", "bob", "acme", "developer", "k2", ROLES["developer"])
EVE = Principal("eve", "eve", "other", "developer", "k3", ROLES["developer"])
SMALL = Resources(cpu=0.1, memory=100)


async def test_overlapping_creates_never_exceed_the_quota() -> None:
    quotas = Quotas(Quota(sandboxes=3))
    made: list[int] = []

    async def create(number: int) -> None:
        with quotas.reserve(ADA, SMALL) as room:
            await asyncio.sleep(0)
            made.append(number)
            room.commit(f"sb-{number}")

    results = await asyncio.gather(*(create(number) for number in range(20)), return_exceptions=True)
    refused = [error for error in results if isinstance(error, ApiError)]
    assert len(made) == 3
    assert {error.code for error in refused} == {"quota_exceeded"}
    assert refused[0].details == {
        "quota": "sandboxes",
        "limit": 3,
        "used": 3,
        "requested": 1.0,
        "of": "tenant",
    }
    assert refused[0].status == 429
    quotas.ended(f"sb-{made[0]}")
    await create(99)


def test_each_amount_is_limited_exactly() -> None:
    quotas = Quotas(Quota(cpu=0.3))
    for _ in range(3):  # 0.1 + 0.1 + 0.1 is more than 0.3 in floats
        quotas.reserve(ADA, SMALL)
    with pytest.raises(ApiError, match="cpu"):
        quotas.reserve(ADA, Resources(cpu=0.001))
    quotas = Quotas(Quota(memory=250))
    quotas.reserve(ADA, SMALL)
    quotas.reserve(BOB, SMALL)
    with pytest.raises(ApiError, match="memory"):
        quotas.reserve(BOB, SMALL)
    quotas.reserve(EVE, SMALL)


def test_users_have_limits_of_their_own() -> None:
    quotas = Quotas(Quota(sandboxes=3, user=Limit(sandboxes=2)))
    quotas.reserve(ADA, SMALL)
    quotas.reserve(ADA, SMALL)
    with pytest.raises(ApiError) as refused:
        quotas.reserve(ADA, SMALL)
    assert refused.value.details["of"] == "user"
    quotas.reserve(BOB, SMALL)
    with pytest.raises(ApiError) as refused:
        quotas.reserve(BOB, SMALL)
    assert refused.value.details["of"] == "tenant"


def test_a_failed_creation_gives_its_room_back_once() -> None:
    quotas = Quotas(Quota())
    with pytest.raises(RuntimeError), quotas.reserve(ADA, SMALL) as room:
        raise RuntimeError
    room.release()
    room.commit("sb-late")
    assert quotas.used("acme") == {"sandboxes": 0, "cpu": 0, "memory": 0}


def test_a_sandbox_counts_once_until_it_ends() -> None:
    quotas = Quotas(Quota())
    quotas.reserve(ADA, SMALL).commit("sb-1")
    quotas.reserve(ADA, SMALL).commit("sb-1")  # a repeated request found the sandbox there
    assert quotas.used("acme", "ada") == {"sandboxes": 1, "cpu": 0.1, "memory": 100}
    quotas.ended("sb-1")
    quotas.ended("sb-1")
    assert quotas.used("acme")["sandboxes"] == 0
    late = quotas.reserve(ADA, SMALL)
    quotas.ended("sb-2")
    late.commit("sb-2")  # it ended before its creator was done
    assert quotas.used("acme")["sandboxes"] == 0


def test_a_tenants_quota_overrides_key_by_key() -> None:
    default = Quota(sandboxes=5, cpu=2, user=Limit(sandboxes=2))
    assert merge_quota(default, {"cpu": 8}) == Quota(sandboxes=5, cpu=8, user=Limit(sandboxes=2))
    assert merge_quota(default, {"sandboxes": None, "user": {"cpu": 1}}) == Quota(
        cpu=2, user=Limit(sandboxes=2, cpu=1)
    )
    for wrong in ({"sandboxes": "many"}, {"discs": 3}, {"user": {"discs": 3}}):
        with pytest.raises(msgspec.ValidationError):
            merge_quota(default, wrong)


async def test_use_is_rebuilt_from_the_store(store: Store, make_sandbox: Callable[..., SandboxRow]) -> None:
    await users.ensure_tenant(store, "acme")
    await users.set_quota(store, "acme", {"sandboxes": 2})
    await sandboxes.insert(store, make_sandbox("sb-1", "acme", "ada"))
    await sandboxes.insert(store, make_sandbox("sb-2", "acme", "ada"))
    await sandboxes.insert(store, make_sandbox("sb-3", "acme", "ada", state="ended"))
    access = Access(store)
    await access.start()
    assert access.usage(ADA) == {"sandboxes": 2, "cpu": 1.0, "memory": 1024}
    with pytest.raises(ApiError, match="quota of sandboxes is 2"):
        access.reserve(BOB, SMALL)
    assert await sandboxes.end(store, "sb-2", "terminated", None, 1.0)
    access.sandbox_ended("sb-2")
    access.reserve(BOB, SMALL)
    await access.stop()


def test_a_quota_that_is_none_is_refused_at_the_start(store: Store) -> None:
    with pytest.raises(ApiError, match="default quota"):
        Access(store, quota={"sandboxes": "lots"})


def _pool(min_size: int = 2, **more: Any) -> WarmPoolSpec:
    size = Resources(cpu=1.0, memory=100)
    wish: dict[str, Any] = {"name": "p", "runtime": "python", "tenant": "acme", "owner": "ada"}
    return WarmPoolSpec(min_size=min_size, **(wish | {"resources": size} | more))


def _quotas(**limits: Any) -> Quotas:
    quotas = Quotas(Quota())
    quotas.set_quota("acme", limits)
    return quotas


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        ({}, True),
        ({"sandboxes": 2}, True),
        ({"sandboxes": 1}, False),
        ({"cpu": 1.9}, False),
        ({"memory": 199}, False),
        ({"user": {"sandboxes": 1}}, False),
    ],
    ids=["none", "enough", "sandboxes", "cpu", "memory", "its owner's"],
)
def test_a_pool_needs_room_for_its_minimum(limits: dict[str, Any], fits: bool) -> None:
    quotas = _quotas(**limits)
    if fits:
        quotas.set_pool(_pool(), 2)
        assert quotas.used("acme") == {"sandboxes": 2, "cpu": 2.0, "memory": 200}
    else:
        with pytest.raises(ApiError) as refused:
            quotas.set_pool(_pool(), 2)
        assert refused.value.code == "quota_exceeded"
        assert quotas.used("acme")["sandboxes"] == 0


def test_a_pool_grows_as_far_as_there_is_room() -> None:
    """Never below its minimum, however full the tenant is, and it gives back what it does not need."""
    quotas = _quotas(sandboxes=5)
    pool = _pool()
    quotas.set_pool(pool, 2)
    assert quotas.fit_pool(pool, 9) == 5
    with pytest.raises(ApiError):
        quotas.reserve(ADA, SMALL)
    assert quotas.fit_pool(pool, 3) == 3
    quotas.reserve(ADA, SMALL).commit("sb-1")
    assert quotas.fit_pool(pool, 9) == 4
    quotas.set_quota("acme", {"sandboxes": 1})
    assert quotas.fit_pool(pool, 9) == 2
    quotas.drop_pool(pool.key)
    assert quotas.used("acme")["sandboxes"] == 1


def test_a_refused_change_leaves_what_a_pool_has() -> None:
    quotas = _quotas(sandboxes=3)
    quotas.set_pool(_pool(), 2)
    with pytest.raises(ApiError):
        quotas.set_pool(_pool(4), 4)
    assert (quotas.pool_size("acme/p"), quotas.used("acme")["sandboxes"]) == (2, 2)
    quotas.set_pool(_pool(3), 3)
    assert quotas.used("acme")["sandboxes"] == 3


def test_the_operators_pools_are_nobodys() -> None:
    quotas = _quotas(sandboxes=1)
    assert quotas.fit_pool(_pool(tenant=None), 7) == 7
    assert quotas.used("acme")["sandboxes"] == 0


BIG = Resources(cpu=8.0, memory=1000)


def test_a_change_that_is_taken_back_leaves_exactly_what_was_there() -> None:
    """Two make a pool of one name: the second is refused, and the first has what it asked for."""
    quotas = _quotas()
    quotas.set_pool(_pool(2), 2)
    undo = quotas.set_pool(_pool(5, resources=BIG), 5)
    assert quotas.used("acme") == {"sandboxes": 5, "cpu": 40.0, "memory": 5000}
    undo()
    undo()
    assert quotas.used("acme") == {"sandboxes": 2, "cpu": 2.0, "memory": 200}


def test_a_change_that_was_overtaken_is_not_taken_back() -> None:
    quotas = _quotas()
    undo = quotas.set_pool(_pool(2), 2)
    quotas.fit_pool(_pool(2), 3)
    undo()
    assert quotas.used("acme")["sandboxes"] == 3


def test_pools_of_a_cluster_are_counted_as_they_come_and_go(store: Store) -> None:
    """Whatever process made them; those that nobody made through a gateway are the cluster's."""
    access = Access(store)

    def used() -> float:
        return access.usage(ADA)["sandboxes"]

    access.pool_seen(_pool(3), True)
    access.pool_seen(_pool(4, name="by-hand", owner=None), True)
    access.pool_seen(_pool(4, name="everybodys", tenant=None), True)
    assert used() == 3
    access.pool_seen(_pool(5), True)
    assert used() == 5
    access.pool_seen(_pool(5), False)
    assert used() == 0
