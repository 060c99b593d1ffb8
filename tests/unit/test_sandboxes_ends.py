"""Ends that wait to be written: one that cannot be written holds up no other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from sqlalchemy import text

from llmsafespace_gateway.backends.base import Ended
from llmsafespace_gateway.sandboxes import ends
from llmsafespace_gateway.sandboxes.ends import Ends
from llmsafespace_gateway.store import Store, kernels, sandboxes
from llmsafespace_gateway.store.engine import Unwritten
from llmsafespace_gateway.store.rows import KernelRow, SandboxRow

MakeSandbox = Callable[..., SandboxRow]
MakeKernel = Callable[..., KernelRow]
NAMES = ("sb-bad", "sb-1", "sb-2")


class Backend:
    """What a backend keeps of ends."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self.noted_: list[str] = []
        self.fails: Exception | None = None

    async def hold_end(self, sandbox_id: str) -> None:
        self.held.append(sandbox_id)

    async def noted(self, sandbox_id: str) -> None:
        if self.fails is not None:
            raise self.fails
        self.noted_.append(sandbox_id)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ends, "AGAIN", (0.01, 0.02))


@pytest.fixture
def backend() -> Backend:
    return Backend()


@pytest.fixture
async def made(
    sqlite_store: Store, backend: Any, make_sandbox: MakeSandbox, make_kernel: MakeKernel
) -> AsyncIterator[Ends]:
    """The ends of three sandboxes, the first of which is damaged by the tests."""
    for name in NAMES:
        await sandboxes.insert(sqlite_store, make_sandbox(name), make_kernel(f"k-{name}", name))

    async def forget(sandbox_id: str) -> None:
        await kernels.ids_of(sqlite_store, sandbox_id)

    recorded = Ends(sqlite_store, backend, lambda ended: None, lambda sandbox_id: False, forget)
    yield recorded
    await recorded.stop()


async def run(store: Store, statement: str) -> None:
    async with store.write() as connection:
        await connection.execute(text(statement))


async def states(store: Store) -> dict[str, str]:
    """As they are in the database."""
    async with store.read() as connection:
        found = await connection.execute(text("SELECT id, state FROM sandboxes"))
        return {row.id: row.state for row in found}


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not check():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def wait_all(store: Store) -> None:
    """As after a database that was locked: all ends wait, the damaged row's first."""
    for name in NAMES:
        store.unwritten[name] = Unwritten("expired", None, time.time())


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE sandboxes SET metadata = '[1]' WHERE id = 'sb-bad'",
        "UPDATE sandboxes SET owner = X'ff' WHERE id = 'sb-bad'",
        "UPDATE kernels SET language = X'ff' WHERE sandbox_id = 'sb-bad'",
    ],
)
async def test_a_damaged_row_ends_as_any_other(sqlite_store: Store, made: Ends, damage: str) -> None:
    await run(sqlite_store, damage)
    wait_all(sqlite_store)
    made._retry()
    await until(lambda: not sqlite_store.unwritten)
    assert set((await states(sqlite_store)).values()) == {"ended"}


@pytest.mark.parametrize(
    "error",
    [None, ValueError("damaged"), OSError(5, "Input/output error")],
    ids=["refused row", "any", "as if all"],
)
async def test_an_end_that_cannot_be_written_holds_up_no_other(
    sqlite_store: Store, made: Ends, monkeypatch: pytest.MonkeyPatch, error: Exception | None
) -> None:
    real = sandboxes.end

    async def end(store: Store, sandbox_id: str, *more: Any) -> bool:
        if sandbox_id == "sb-bad" and error is not None:
            raise error
        return await real(store, sandbox_id, *more)

    refuse = "BEFORE UPDATE ON sandboxes WHEN NEW.id = 'sb-bad' BEGIN SELECT RAISE(ABORT, 'no'); END"
    await run(sqlite_store, f"CREATE TRIGGER refuse {refuse}")
    with monkeypatch.context() as patched:
        patched.setattr(sandboxes, "end", end)
        wait_all(sqlite_store)
        made._retry()
        await until(lambda: list(sqlite_store.unwritten) == ["sb-bad"])
        await made.record(Ended(sandbox_id="sb-bad", end="expired"))
        await asyncio.sleep(0.1)
    assert await states(sqlite_store) == {"sb-bad": "running", "sb-1": "ended", "sb-2": "ended"}
    await run(sqlite_store, "DROP TRIGGER refuse")
    await until(lambda: not sqlite_store.unwritten)
    assert (await states(sqlite_store))["sb-bad"] == "ended"


async def test_an_end_that_cannot_be_written_is_held(
    sqlite_store: Store, made: Ends, backend: Backend
) -> None:
    refuse = "BEFORE UPDATE ON sandboxes WHEN NEW.id = 'sb-bad' BEGIN SELECT RAISE(ABORT, 'no'); END"
    await run(sqlite_store, f"CREATE TRIGGER refuse {refuse}")
    await made.record(Ended(sandbox_id="sb-bad", end="oom"))
    assert (backend.held, backend.noted_) == (["sb-bad"], [])
    await run(sqlite_store, "DROP TRIGGER refuse")
    await until(lambda: backend.noted_ == ["sb-bad"])


async def test_a_backend_that_cannot_forget_holds_up_no_end(
    sqlite_store: Store, made: Ends, backend: Backend
) -> None:
    backend.fails = OSError(30, "Read-only file system")
    wait_all(sqlite_store)
    made._retry()
    await until(lambda: not sqlite_store.unwritten)
    assert set((await states(sqlite_store)).values()) == {"ended"}
    await made.record(Ended(sandbox_id="sb-1", end="expired"))
