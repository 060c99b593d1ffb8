"""Warm pools and the room that they take, where the backend fails or two ask at once."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from llmsafespace_gateway.access import Access
from llmsafespace_gateway.access.principal import ROLES, Principal
from llmsafespace_gateway.backends.base import WarmPoolSpec, WarmPoolStatus
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.rest import pools
from llmsafespace_gateway.rest.types_admin import WarmPoolCreate
from llmsafespace_gateway.store import Store

ADA = Principal("ada", "ada", "acme", "admin", "k1", ROLES["admin"])


class Backend:
    """Keeps no account of pools, as on one machine, or one (`there`), as in a cluster."""

    def __init__(self, there: list[WarmPoolSpec] | None) -> None:
        self.there = there
        self.fails = False

    async def pools(self, tenant: str | None = None) -> list[WarmPoolSpec] | None:
        return None if self.there is None else list(self.there)

    def capacity(self) -> None:
        return None

    async def apply_pool(self, pool: WarmPoolSpec) -> None:
        await asyncio.sleep(0.01)
        if self.fails:
            raise ApiError("service_unavailable", "not now")
        if self.there is not None:
            self.there[:] = [each for each in self.there if each.key != pool.key] + [pool]

    async def delete_pool(self, pool: WarmPoolSpec) -> None:
        if self.fails:
            raise ApiError("service_unavailable", "not now")
        if self.there is not None:
            self.there[:] = [each for each in self.there if each.key != pool.key]

    async def pool_status(self, pool: WarmPoolSpec) -> WarmPoolStatus:
        return WarmPoolStatus()


@pytest.fixture(params=[None, []], ids=["one machine", "a cluster"])
def backend(request: pytest.FixtureRequest) -> Backend:
    return Backend(None if request.param is None else [])


@pytest.fixture
def call(store: Store, backend: Backend) -> Any:
    def made(**more: Any) -> Any:
        access = Access(store) if "access" not in more else more.pop("access")
        audit = lambda *_, **__: None  # noqa: E731
        values = {"principal": ADA, "access": access, "backend": backend, "store": store, "audit": audit}
        return SimpleNamespace(**(values | {"path_values": {"name": "p"}} | more))

    return made


def _body(min_size: int) -> WarmPoolCreate:
    return WarmPoolCreate(name="p", runtime="python", min_size=min_size, max_size=9)


async def test_a_pool_that_cannot_be_removed_takes_room_only_while_it_can_be_asked_for(
    call: Any, backend: Backend
) -> None:
    first = call(body=_body(3))
    await pools.create_pool(first)
    assert first.access.usage(ADA)["sandboxes"] == 3
    backend.fails = True
    with pytest.raises(ApiError, match="not now"):
        await pools.delete_pool(call(access=first.access))
    assert first.access.usage(ADA)["sandboxes"] == (0 if backend.there is None else 3)
    backend.fails = False
    if backend.there is not None:
        await pools.delete_pool(call(access=first.access))
    assert first.access.usage(ADA)["sandboxes"] == 0


@pytest.mark.parametrize("fails", [False, True], ids=["one wins", "both fail"])
async def test_two_that_make_one_pool_at_once(call: Any, backend: Backend, fails: bool) -> None:
    """One is told of the conflict, and the room taken is that of the pool that is there."""
    backend.fails = fails
    first = call(body=_body(3))
    second = call(body=_body(5), access=first.access)
    both = (pools.create_pool(first), pools.create_pool(second))
    done = await asyncio.gather(*both, return_exceptions=True)
    refused = [each for each in done if isinstance(each, ApiError)]
    assert len(refused) == (2 if fails else 1)
    if not fails:
        assert refused[0].code == "conflict"
    assert first.access.usage(ADA)["sandboxes"] == (0 if fails else 3)
