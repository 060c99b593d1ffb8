"""Real stores for tests: a SQLite file each, and a PostgreSQL schema each where a server is named."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmsafespace_gateway.store import Store, sqlite_url, users
from llmsafespace_gateway.store.rows import KernelRow, SandboxRow
from tests import postgres


@pytest.fixture(params=["sqlite", "postgresql"])
def store_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty store that only this test uses."""
    if request.param == "sqlite":
        yield sqlite_url(tmp_path)
        return
    if not postgres.SERVER:
        pytest.skip("LLMSAFESPACE_TEST_POSTGRES names no PostgreSQL server")
    with postgres.schema() as url:
        yield url


@pytest.fixture
async def store(store_url: str) -> AsyncIterator[Store]:
    """An open, empty store."""
    opened = await Store.open(store_url)
    yield opened
    await opened.close()


@pytest.fixture
async def sqlite_store(tmp_path: Path) -> AsyncIterator[Store]:
    """An open SQLite store with the tenant "default"; it keeps whatever is written into a column."""
    opened = await Store.open(sqlite_url(tmp_path))
    await users.ensure_tenant(opened, "default")
    yield opened
    await opened.close()


@pytest.fixture
def make_sandbox() -> Callable[..., SandboxRow]:
    """Rows of sandboxes; what a test does not care about has a value."""

    def make(
        sandbox_id: str = "sb-1", tenant: str = "default", owner: str = "ada", **more: Any
    ) -> SandboxRow:
        values: dict[str, Any] = {
            "backend": "local",
            "runtime": "python:3.11",
            "requested_runtime": "python",
            "security_level": "standard",
            "state": "running",
            "start_kind": "warm",
            "created_at": time.time(),
            "cpu": 0.5,
            "memory": 512,
            "storage": 1024,
            "max_lifetime": 86400.0,
        }
        return SandboxRow(id=sandbox_id, tenant=tenant, owner=owner, **(values | more))

    return make


@pytest.fixture
def make_kernel() -> Callable[..., KernelRow]:
    """Rows of kernels."""

    def make(kernel_id: str = "k-1", sandbox_id: str = "sb-1", **more: Any) -> KernelRow:
        now = time.time()
        values: dict[str, Any] = {
            "name": "python3",
            "language": "python",
            "created_at": now,
            "last_activity": now,
            "execution_state": "idle",
            "is_default": True,
        }
        return KernelRow(id=kernel_id, sandbox_id=sandbox_id, **(values | more))

    return make
