"""The audit log in memory: nothing private gets in, nothing is written twice or lost."""

from __future__ import annotations

import asyncio

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

    async def fails_once(of: Store, rows: list[AuditRow]) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("disk full")
        await real(of, rows)

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
