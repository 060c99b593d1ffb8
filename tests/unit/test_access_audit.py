"""The audit log in memory: nothing private gets in, nothing is written twice or lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from llmsafespace_gateway.access.audit import AuditLog, harmless, text
from llmsafespace_gateway.access.key_format import new_key
from llmsafespace_gateway.access.principal import ROLES, Principal
from llmsafespace_gateway.store import Store, audit
from llmsafespace_gateway.store.rows import AuditRow

ADA = Principal("ada", "ada", "acme", "developer", "k1", ROLES["developer"])


def test_details_hold_nothing_private() -> None:
    key = new_key()[1]
    given = {
        "Code": "x = 1",
        "env": {"SECRET": "s"},
        "nested": {"files": {"a": "b"}, "ok": 1},
        "note": f"used {key}",
        "many": ["a"] * 1000,
        "long": "x" * 10_000,
        "size": 12,
        "other": object,
    }
    got = harmless(given)
    assert got["Code"] == got["env"] == "…"
    assert got["nested"] == {"files": "…", "ok": 1}
    assert got["note"] == "used lsp_…"
    assert (len(got["many"]), len(got["long"]), got["size"]) == (64, 256, 12)
    assert isinstance(got["other"], str)
    assert text(key) == "lsp_…"


async def test_entries_survive_a_store_that_fails(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    log = AuditLog(store)
    for number in range(1200):
        log.add(ADA, "test", str(number), "ok", {})
    real, calls = audit.append, 0

    async def fails_once(of: Store, rows: list[AuditRow], *rest: Any) -> list[AuditRow]:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("disk full")
        return await real(of, rows, *rest)

    monkeypatch.setattr(audit, "append", fails_once)
    with pytest.raises(OSError, match="disk full"):
        await log.flush()
    await asyncio.gather(log.flush(), log.flush())
    rows = await audit.entries(store, "acme", limit=5000)
    assert [int(row.target) for row in rows] == list(range(1199, -1, -1))


async def test_memory_is_bounded(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("llmsafespace_gateway.access.audit.MAX_WAITING", 2)
    log = AuditLog(store)
    for number in range(5):
        log.add(None, "test", str(number), "ok", {})
    await log.flush()
    assert "3 audit entries were lost" in caplog.text


def _execution(
    log: AuditLog, mark: str, counted: list[str], again: bool = False, at: float | None = None
) -> AuditRow:
    who = (ADA.tenant, ADA.user_id, ADA.key_id)
    count: Callable[[], None] = lambda: counted.append(mark)  # noqa: E731
    return log.add_execution(who, "run", mark, {}, mark=mark, again=again, count=count, at=at)


async def _targets(store: Store) -> list[str]:
    return sorted(row.target for row in await audit.entries(store, "acme"))


async def test_an_execution_is_one_entry_of_all_processes(store: Store) -> None:
    """Sent again through another process, before or after the first has written its entry."""
    one, other = AuditLog(store), AuditLog(store)
    counted: list[str] = []
    _execution(one, "a", counted)
    _execution(other, "a", counted)
    await asyncio.gather(one.flush(), other.flush(), return_exceptions=True)
    await other.flush()
    await one.flush()
    _execution(other, "a", counted)
    _execution(other, "b", counted)
    await other.flush()
    assert await _targets(store) == ["a", "b"]
    assert counted == ["a", "b"]


async def test_what_runs_again_is_another_entry(store: Store) -> None:
    """What plain Jupyter runs each time, and what the agent has forgotten since."""
    log = AuditLog(store)
    counted: list[str] = []
    _execution(log, "a", counted)
    _execution(log, "a", counted, again=True)
    await log.flush()
    _execution(log, "a", counted, again=True)
    _execution(log, "old", counted, at=1.0)
    await log.flush()
    _execution(log, "old", counted)
    await log.flush()
    assert await _targets(store) == ["a", "a", "a", "old", "old"]
    assert counted == ["a", "a", "a", "old", "old"]


@pytest.mark.parametrize("late", [False, True], ids=["still waiting", "written"])
async def test_an_entry_can_be_withdrawn(store: Store, late: bool) -> None:
    log = AuditLog(store)
    counted: list[str] = []
    row = _execution(log, "a", counted)
    _execution(log, "b", counted)
    if late:
        await log.flush()
    log.withdraw(row)
    await log.flush()
    assert await _targets(store) == ["b"]


async def test_entries_are_written_by_themselves(store: Store) -> None:
    log = AuditLog(store)
    written = asyncio.Event()

    async def hear(rows: list[AuditRow]) -> None:
        written.set()

    log.on_written = hear
    log.start()
    log.add(ADA, "test", "x", "ok", {})
    await asyncio.wait_for(written.wait(), 60)
    assert await _targets(store) == ["x"]
    log.add(ADA, "test", "y", "ok", {})
    await log.stop()
    assert await _targets(store) == ["x", "y"]
