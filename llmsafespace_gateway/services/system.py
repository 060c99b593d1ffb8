"""Use cases: what admins and metrics say of this gateway as a whole."""

from __future__ import annotations

import msgspec

from llmsafespace_gateway.backends.base import Quarantined
from llmsafespace_gateway.services.base import Caller, Parts, Service
from llmsafespace_gateway.services.pools import PoolService
from llmsafespace_gateway.store import sandboxes


class Overview(msgspec.Struct, frozen=True):
    """A gateway as an admin sees it; `unwritten_ends` waits for the store."""

    backend: str
    quarantined: list[Quarantined]
    unwritten_ends: int


class SystemService(Service):
    """The gateway process itself."""

    def __init__(self, parts: Parts, pools: PoolService) -> None:
        super().__init__(parts)
        self._pools = pools

    async def overview(self, caller: Caller) -> Overview:
        """What is in the way of this gateway. Sandboxes of other tenants are left out."""
        tenant = caller.principal.tenant
        found = [each for each in await self.backend.quarantined() if each.tenant in (None, tenant)]
        return Overview(self.backend.name, found, len(self.store.unwritten))

    async def measure(self) -> None:
        """Set the gauges of sandboxes and pools: counts only, nothing of any tenant's."""
        living = await sandboxes.running_since(self.store, self.backend.name)
        self.metrics.sandboxes.set(len(living))
        sizes = await self._pools.sizes()
        self.metrics.pool.clear()
        for labels, count in sizes.items():
            self.metrics.pool.labels(*labels).set(count)
