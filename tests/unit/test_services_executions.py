"""What people run, through any door: the same limits, the same entry, the same count; refused or not."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import pytest

from llmsafespace_gateway.access import Access
from llmsafespace_gateway.access.executions import Door
from llmsafespace_gateway.access.principal import ROLES, Principal
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.services.base import Caller, Parts
from llmsafespace_gateway.services.executions import Execute, ExecutionService
from llmsafespace_gateway.store import Store, audit, sandboxes, users
from llmsafespace_gateway.store.rows import SandboxRow

ADA = Principal("ada", "ada", "acme", "developer", "k1", ROLES["developer"])
DOORS: list[Door] = ["rest", "stream"]


class Sandboxes:
    """Refuses everything: what a sandbox says of it is not what this is about."""

    async def open(self, sandbox_id: str, open_: Any) -> Any:
        raise ApiError("conflict", "this id was used for something else")

    async def explained(self, sandbox_id: str, error: Exception) -> Exception:
        return error


@pytest.fixture
async def access(store: Store) -> AsyncIterator[Access]:
    await users.ensure_tenant(store, "acme")
    access = Access(store, rate=0.001, burst=1)  # five executions at once
    await access.start()
    yield access
    await access.stop()


async def _outcomes(service: ExecutionService, row: SandboxRow, door: Door) -> list[str]:
    seen = []
    for number in range(7):
        wanted = Execute(id=f"{door}-{number}", kind="code", content="x = 1")
        with pytest.raises(ApiError) as caught:
            await service.begin(Caller(ADA, door), row, wanted)
        seen.append(caught.value.code)
    return seen


@pytest.mark.parametrize("door", DOORS)
async def test_a_refusal_is_one_entry_and_one_count(
    store: Store, access: Access, make_sandbox: Callable[..., SandboxRow], door: Door
) -> None:
    counted: list[tuple[str, str]] = []
    access.executions.count = lambda door, outcome: counted.append((door, outcome))
    none = cast("Any", None)
    service = ExecutionService(Parts(access, cast("Any", Sandboxes()), store, none, none, "python"))
    row = make_sandbox("sb-1", "acme", "ada")
    await sandboxes.insert(store, row)
    outcomes = await _outcomes(service, row, door)
    assert outcomes == ["conflict"] * 5 + ["rate_limited"] * 2
    assert counted == [(door, outcome) for outcome in outcomes]
    await access.flush_audit()
    rows = sorted(await audit.entries(store, "acme"), key=lambda entry: str(entry.details["execution"]))
    assert [entry.outcome for entry in rows] == outcomes
    expected = {"door": door, "type": "code", "size": 5}
    for number, entry in enumerate(rows):
        assert entry.details == {"execution": f"{door}-{number}", **expected}
        assert (entry.action, entry.target, entry.key_id) == ("sandbox.execute", "sb-1", "k1")
