"""Refusals in the audit log: a key can cause as many as it likes, and pushes nobody's entries out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmsafespace_gateway.access import Access
from llmsafespace_gateway.access.principal import ROLES, Principal
from llmsafespace_gateway.access.refusals import REFUSALS_AT_ONCE, Refusals
from llmsafespace_gateway.store import Store, audit, sqlite_url

ADA = Principal("ada", "ada", "acme", "developer", "k1", ROLES["developer"])
BOB = Principal("bob", "bob", "acme", "developer", "k2", ROLES["developer"])


def test_what_is_left_out_is_counted() -> None:
    now = [0.0]
    written: list[tuple[str, str, int]] = []

    def write(principal: Principal, action: str, target: str, outcome: str, **details: Any) -> None:
        written.append((principal.key_id, outcome, details["left_out"]))

    refusals = Refusals(write, clock=lambda: now[0])
    taken = [refusals.take(ADA, "sandbox.execute", "forbidden") for _ in range(REFUSALS_AT_ONCE + 7)]
    assert taken == [{}] * REFUSALS_AT_ONCE + [None] * 7
    assert refusals.take(BOB, "sandbox.execute", "forbidden") == {}
    assert refusals.take(ADA, "sandbox.execute", "rate_limited") == {}
    refusals.flush_past()
    assert written == []
    now[0] = 1.5
    assert refusals.take(ADA, "sandbox.execute", "forbidden") == {"left_out": 7}
    assert refusals.take(ADA, "sandbox.execute", "forbidden") is None
    now[0] = 3.0
    refusals.flush_past()
    refusals.flush_past()
    assert written == [("k1", "forbidden", 1)]


@pytest.mark.parametrize("door", ["stream", "jupyter", "durable"])
async def test_refused_executions_are_few_entries(tmp_path: Path, door: Any) -> None:
    """Through any door, and each is counted all the same."""
    store = await Store.open(sqlite_url(tmp_path))
    access = Access(store)
    counted: list[str] = []
    access.executions.count = lambda door, outcome: counted.append(outcome)
    for number in range(1000):
        access.executions.note(ADA, "sb", str(number), door, "forbidden")
    await access.stop()
    rows = await audit.entries(store, "acme", limit=1000)
    assert REFUSALS_AT_ONCE < len(rows) <= REFUSALS_AT_ONCE + 10
    assert sum(row.details.get("left_out", 0) + ("execution" in row.details) for row in rows) == 1000
    assert len(counted) == 1000
    await store.close()


async def test_what_is_left_out_asks_no_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = await Store.open(sqlite_url(tmp_path))
    access = Access(store)
    asked = 0

    async def level_on(principal: Principal, sandbox_id: str) -> str | None:
        nonlocal asked
        asked += 1
        return None

    monkeypatch.setattr(access, "level_on", level_on)
    for _ in range(500):
        await access.refused_on(ADA, "sandbox.execute", "sb-of-others", "not_found")
    assert asked <= REFUSALS_AT_ONCE + 10
    await access.stop()
    rows = await audit.entries(store, "acme", limit=1000)
    assert {row.target for row in rows} == {""}
    await store.close()
