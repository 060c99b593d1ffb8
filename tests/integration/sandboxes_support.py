"""What the tests of whole sandboxes share: a backend, its proxy, a store and the manager over them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from llmsafespace_gateway.backends.base import EgressRule, Resources
from llmsafespace_gateway.backends.local import LocalBackend
from llmsafespace_gateway.egress.proxy import EgressProxy
from llmsafespace_gateway.sandboxes.manager import Sandboxes
from llmsafespace_gateway.sandboxes.requests import CreateSandbox, Owner
from llmsafespace_gateway.store import Store, sandboxes, sqlite_url
from tests.integration import local_support as support

SMALL = Resources(cpu=1.0, memory=128 * support.MIB, storage=64 * support.MIB)
RULES = (EgressRule("example.org", (443,)),)
ADA = Owner("u-ada", "default")


def wanted(**more: Any) -> CreateSandbox:
    return CreateSandbox(runtime="probe", **{"resources": SMALL, "egress": RULES, **more})


class House:
    """A backend, its egress proxy, a store and the manager over them, as wiring makes them."""

    backend: LocalBackend
    store: Store
    egress: EgressProxy
    sandboxes: Sandboxes

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ended: list[str] = []

    @contextlib.asynccontextmanager
    async def open(self, **options: Any) -> AsyncIterator[House]:
        self.egress = EgressProxy()
        async with support.started(self.folder, egress=self.egress, **options) as self.backend:
            self.store = await Store.open(sqlite_url(self.folder))
            self.sandboxes = Sandboxes(self.store, self.backend)
            self.sandboxes.on_any_ended = self.ended.append
            await self.sandboxes.start()
            try:
                yield self
            finally:
                await self.sandboxes.stop()
                await self.store.close()
                await self.egress.stop()

    async def row(self, sandbox_id: str) -> Any:
        return await sandboxes.get(self.store, sandbox_id)

    async def clear(self) -> None:
        for place in await self.backend.living():
            await self.sandboxes.delete(place.sandbox_id)

    def folders(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "sandboxes").iterdir())
