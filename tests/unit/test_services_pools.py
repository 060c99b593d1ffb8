"""Warm pools and the room that they take, where the backend fails or two ask at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from llmsafespace_gateway.access import Access
from llmsafespace_gateway.access.principal import ROLES, Principal
from llmsafespace_gateway.backends.base import WarmPoolSpec, WarmPoolStatus
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.metrics import Metrics
from llmsafespace_gateway.services import Caller, Parts
from llmsafespace_gateway.services.pools import PoolService
from llmsafespace_gateway.store import Store

ADA = Caller(Principal("ada", "ada", "acme", "admin", "k1", ROLES["admin"]), "rest")


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
def service(store: Store, backend: Backend) -> PoolService:
    taken: Any = backend
    return PoolService(Parts(Access(store), None, store, taken, Metrics(), "python"))  # type: ignore[arg-type]


def _pool(min_size: int) -> WarmPoolSpec:
    return WarmPoolSpec(name="p", runtime="python", min_size=min_size, max_size=9)


async def test_a_pool_that_cannot_be_removed_takes_room_only_while_it_can_be_asked_for(
    service: PoolService, backend: Backend
) -> None:
    await service.create(ADA, _pool(3))
    assert _used(service) == 3
    backend.fails = True
    with pytest.raises(ApiError, match="not now"):
        await service.delete(ADA, "p")
    assert _used(service) == (0 if backend.there is None else 3)
    backend.fails = False
    if backend.there is not None:
        await service.delete(ADA, "p")
    assert _used(service) == 0


@pytest.mark.parametrize("fails", [False, True], ids=["one wins", "both fail"])
async def test_two_that_make_one_pool_at_once(service: PoolService, backend: Backend, fails: bool) -> None:
    """One is told of the conflict, and the room taken is that of the pool that is there."""
    backend.fails = fails
    both = (service.create(ADA, _pool(3)), service.create(ADA, _pool(5)))
    done = await asyncio.gather(*both, return_exceptions=True)
    refused = [each for each in done if isinstance(each, ApiError)]
    assert len(refused) == (2 if fails else 1)
    if not fails:
        assert refused[0].code == "conflict"
    assert _used(service) == (0 if fails else 3)


def _used(service: PoolService) -> float:
    return service.access.usage(ADA.principal)["sandboxes"]
