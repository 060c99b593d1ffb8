"""Use cases: warm pools. Only an admin lets what a pool preloads run in other people's sandboxes.

Where the backend keeps pools itself (a cluster does), it is the only record of them; otherwise the store is.
Room for a pool's minimum is taken from its tenant's quota before anything is made, and one request at a time
makes or changes a pool: of two that fail, neither's room may come back.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import logging
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from llmsafespace_gateway.access import Access
from llmsafespace_gateway.access.principal import EXECUTE, Principal
from llmsafespace_gateway.backends.base import Condition, SandboxBackend, WarmPoolSpec, WarmPoolStatus
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.services.base import Caller, Parts, Service
from llmsafespace_gateway.services.pool_rules import check, check_size
from llmsafespace_gateway.store import Store, pools
from llmsafespace_gateway.store.rows import PoolRow

log = logging.getLogger(__name__)


class PoolService(Service):
    """The warm pools that serve a tenant."""

    def __init__(self, parts: Parts) -> None:
        super().__init__(parts)
        self._turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def all(self, caller: Caller) -> list[WarmPoolSpec]:
        """The pools that serve the caller."""
        return await _known(self.store, self.backend, caller.principal.tenant)

    async def default_runtime(self, caller: Caller, pool: str | None) -> str:
        """The runtime of a request that names none: its warm pool's, else the configured one."""
        found = await self._named(caller, pool) if pool is not None else None
        return found.runtime if found is not None else self.configured_runtime

    async def find(self, caller: Caller, name: str) -> WarmPoolSpec:
        """A pool by name: of two with one name the tenant's own. Raises ApiError(not_found)."""
        found = await self._named(caller, name)
        if found is None:
            raise ApiError("not_found", f"there is no warm pool {name[:128]!r} that you can see")
        return found

    async def status(self, spec: WarmPoolSpec) -> WarmPoolStatus:
        """How a pool is now; one that the backend could not start (its runtime is gone) says so."""
        try:
            return await self.backend.pool_status(spec)
        except ApiError as error:
            if error.code != "not_found":
                raise
            message = f"nothing is started for it: see GET /api/v1/runtimes/{spec.runtime}"
            return WarmPoolStatus(
                conditions=(Condition(type="Ready", status="False", reason="NotKept", message=message),)
            )

    async def create(self, caller: Caller, wanted: WarmPoolSpec) -> WarmPoolSpec:
        """A new pool of the caller's tenant. Raises ApiError.

        Names are the tenant's own: other tenants' pools neither conflict nor are told of.
        """
        who = caller.principal
        spec = msgspec.structs.replace(wanted, tenant=who.tenant, owner=who.user_id)
        check(spec)
        told = {"runtime": spec.runtime, "min_size": spec.min_size, "published": spec.published}
        with self.act(caller, "warmpool.create", spec.name, **told):
            _may_be(who, spec)
            check_size(spec, self.backend.capacity())
            async with self._turn(spec):
                if any(pool.name == spec.name for pool in await self.all(caller)):
                    raise ApiError(
                        "conflict", f"there is a warm pool {spec.name!r} already; choose another name"
                    )
                with self._reserved(spec):
                    await self._record_and_apply(spec)
        return spec

    async def change(self, caller: Caller, name: str, changes: dict[str, Any]) -> WarmPoolSpec:
        """Change fields of a pool. Raises ApiError."""
        async with self._turn(await self._own(caller, name)):
            spec = msgspec.structs.replace(await self._own(caller, name), **changes)
            check(spec)
            told = {"fields": sorted(changes), "published": spec.published}
            with self.act(caller, "warmpool.update", name, **told):
                _may_be(caller.principal, spec)
                check_size(spec, self.backend.capacity())
                with self._reserved(spec):
                    await self.backend.apply_pool(spec)
                    if await self.backend.pools() is None:
                        await pools.put(self.store, _row(spec))
        return spec

    async def delete(self, caller: Caller, name: str) -> None:
        """Remove a pool; its claimed sandboxes live on. Raises ApiError."""
        spec = await self._own(caller, name)
        async with self._turn(spec):
            with self.act(caller, "warmpool.delete", name):
                await self._forget(spec)

    async def _forget(self, spec: WarmPoolSpec) -> None:
        kept = await self.backend.pools() is not None
        if not kept:
            await pools.delete(self.store, spec.tenant or "", spec.name)
        try:
            await self.backend.delete_pool(spec)
        except BaseException:
            if not kept:  # nobody could ask again
                self.access.pool_gone(spec)
            raise
        self.access.pool_gone(spec)

    async def sizes(self) -> dict[tuple[str, str], int]:
        """Sandboxes of the pools of all tenants, by runtime and state (available, assigned, pending)."""
        sums: collections.Counter[tuple[str, str]] = collections.Counter()
        for pool in await _known(self.store, self.backend, None):
            with contextlib.suppress(ApiError):  # removed meanwhile
                status = await self.backend.pool_status(pool)
                for state in ("available", "assigned", "pending"):
                    sums[pool.runtime, state] += getattr(status, state)
        return sums

    async def _named(self, caller: Caller, name: str) -> WarmPoolSpec | None:
        tenant = caller.principal.tenant
        known = [spec for spec in await self.all(caller) if spec.name == name]
        return min(known, key=lambda spec: spec.tenant != tenant, default=None)

    async def _own(self, caller: Caller, name: str) -> WarmPoolSpec:
        """A pool that the caller may change. Raises ApiError."""
        found = await self.find(caller, name)
        _may_change(caller.principal, found)
        return found

    def _turn(self, pool: WarmPoolSpec) -> asyncio.Lock:
        return self._turns.setdefault(pool.key, asyncio.Lock())

    @contextlib.contextmanager
    def _reserved(self, pool: WarmPoolSpec) -> Iterator[None]:
        undo = self.access.reserve_pool(pool)
        try:
            yield
        except BaseException:
            undo()
            raise

    async def _record_and_apply(self, spec: WarmPoolSpec) -> None:
        if await self.backend.pools() is not None:
            await self.backend.apply_pool(spec)
            return
        await pools.insert(self.store, _row(spec))
        try:
            await self.backend.apply_pool(spec)
        except BaseException:
            await pools.delete(self.store, spec.tenant or "", spec.name)
            raise


async def restore(
    store: Store, backend: SandboxBackend, access: Access, configured: Sequence[WarmPoolSpec]
) -> None:
    """At a gateway's start: record the configuration's pools, forget those that left it, apply all others.

    They count in their tenants' quotas from now on, beside the sandboxes that live. `configured` are the
    backend's own already. A pool whose runtime is gone is logged, and stays recorded.
    """
    names = {spec.name for spec in configured}
    for spec in configured:
        await pools.put(store, _row(spec))
    for row in await pools.visible(store, None):
        if not row.tenant:
            if row.name not in names:
                await pools.delete(store, row.tenant, row.name)
            continue
        try:
            spec = _spec(row)
            access.pool_grows(spec, spec.min_size)
            await backend.apply_pool(spec)
        except (ApiError, msgspec.ValidationError, OSError) as error:
            log.warning("warm pool %s cannot be filled: %s", row.name, error)


async def _known(store: Store, backend: SandboxBackend, tenant: str | None) -> list[WarmPoolSpec]:
    """The pools that serve a tenant; None: those of all tenants."""
    kept = await backend.pools(tenant)
    return kept if kept is not None else [_spec(row) for row in await pools.visible(store, tenant)]


def _spec(row: PoolRow) -> WarmPoolSpec:
    stated = {
        "name": row.name,
        "tenant": row.tenant or None,
        "owner": row.owner,
        "published": row.published,
    }
    return msgspec.convert(row.spec | stated, WarmPoolSpec)


def _row(spec: WarmPoolSpec) -> PoolRow:
    return PoolRow(
        name=spec.name,
        tenant=spec.tenant or "",
        owner=spec.owner,
        published=spec.published,
        spec=msgspec.to_builtins(spec),
    )


def _may_change(principal: Principal, pool: WarmPoolSpec) -> None:
    """Raise ApiError(forbidden): what runs in other people's sandboxes is not anybody's to change."""
    if pool.tenant != principal.tenant:
        raise ApiError("forbidden", "this pool serves all tenants; whoever runs the gateway changes it")
    if principal.is_admin or (principal.user_id == pool.owner and not pool.published):
        return
    if pool.published:
        raise ApiError("forbidden", f"the pool {pool.name!r} is published: only admins change it")
    raise ApiError("forbidden", f"the pool {pool.name!r} is changed by its owner and by admins only")


def _may_be(principal: Principal, pool: WarmPoolSpec) -> None:
    """Raise ApiError(forbidden) when the caller may not make or keep such a pool."""
    if pool.published and not principal.is_admin:
        raise ApiError("forbidden", "published: only an admin lets a pool serve others' sandboxes")
    if pool.has_code and EXECUTE not in principal.scopes:
        raise ApiError(
            "forbidden",
            f"a pool that preloads packages or scripts runs code: this key lacks the scope {EXECUTE}",
            {"scope": EXECUTE},
        )
