"""The audit log is kept in bounds, by age and by size: a tenant that floods it loses its own entries."""

from __future__ import annotations

import asyncio
import time

import pytest

from llmsafespace_gateway.access import audit as access_audit
from llmsafespace_gateway.access.audit import Retention, fair_share
from llmsafespace_gateway.store import Store, audit
from llmsafespace_gateway.store.rows import AuditRow


def _row(number: int, at: float, tenant: str | None = "acme") -> AuditRow:
    return AuditRow(id=f"{number:08d}", at=at, tenant=tenant, action="x", target="y", outcome="ok")


async def _kept(store: Store, tenant: str | None) -> list[int]:
    """Numbers of a tenant's entries, oldest first."""
    found: list[int] = []
    last = ""
    while (step := await audit.step(store, tenant, last, 1)) is not None:
        found.append(int(step))
        last = step
    return found


@pytest.fixture(autouse=True)
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"FORGET_AT_ONCE": 7, "LOOK_AT_ONCE": 7, "LOOK_PAUSE": 0.0}.items():
        monkeypatch.setattr(access_audit, name, value)


@pytest.mark.parametrize(
    ("age", "most", "left"),
    [(3600.0, 10_000, 50), (1e9, 30, 30), (1e9, 99, 99), (1e9, 100, 100), (1e9, 10_000, 100), (0.0, 1, 0)],
    ids=["age", "size", "one too many", "full", "neither", "everything"],
)
async def test_the_oldest_go_a_batch_at_a_time(store: Store, age: float, most: int, left: int) -> None:
    now = time.time()
    await audit.append(store, [_row(n, now - 7200 if n < 50 else now - 1) for n in range(100)])
    retention = Retention(store, age, most)
    before, more = 100, True
    while more:
        more = await retention.apply()
        after = len(await _kept(store, "acme"))
        assert before - after <= 7
        before = after
    assert await _kept(store, "acme") == list(range(100 - left, 100))


async def test_who_floods_the_log_loses_its_own(store: Store) -> None:
    now = time.time()
    await audit.append(store, [_row(n, now, "calm") for n in range(20)])
    await audit.append(store, [_row(100 + n, now, None) for n in range(10)])
    await audit.append(store, [_row(1000 + n, now, "loud") for n in range(300)])
    await audit.append(store, [_row(2000 + n, now, "louder") for n in range(500)])
    retention = Retention(store, 1e9, 100)
    while await retention.apply():
        pass
    assert await _kept(store, "calm") == list(range(20))
    assert await _kept(store, None) == list(range(100, 110))
    assert await _kept(store, "loud") == list(range(1265, 1300))
    assert await _kept(store, "louder") == list(range(2465, 2500))


async def test_two_gateways_delete_no_more_than_one(store: Store) -> None:
    await audit.append(store, [_row(n, time.time()) for n in range(200)])
    both = [Retention(store, 1e9, 100) for _ in range(2)]
    assert await asyncio.gather(*(each.apply() for each in both)) == [True, True]
    for each in both:
        while await each.apply():
            pass
    assert await _kept(store, "acme") == list(range(100, 200))


async def test_it_looks_now_and_then(store: Store) -> None:
    await audit.append(store, [_row(n, 1.0) for n in range(3)])
    retention = Retention(store, 3600.0, 10)
    assert [await retention.apply() for _ in range(3)] == [True, False, False]
    assert await _kept(store, "acme") == []
    await audit.append(store, [_row(9, 1.0)])
    assert not await retention.apply()  # not yet again
    assert len(await _kept(store, "acme")) == 1


@pytest.mark.parametrize(
    ("counts", "room", "share"),
    [
        ([], 10, None),
        ([10], 10, None),
        ([11], 10, 10),
        ([1, 2, 100], 10, 7),
        ([100, 100], 11, 5),
        ([1, 1, 1], 1, 1),
        ([4, 4, 4], 12, None),
    ],
)
def test_fair_shares(counts: list[int], room: int, share: int | None) -> None:
    assert fair_share(counts, room) == share
