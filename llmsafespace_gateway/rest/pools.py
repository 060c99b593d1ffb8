"""Routes: warm pools. What one preloads runs in other people's sandboxes only where an admin published it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from llmsafespace_gateway.access import Access
from llmsafespace_gateway.access.principal import EXECUTE, Principal
from llmsafespace_gateway.backends.base import (
    Condition,
    Resources,
    SandboxBackend,
    WarmPoolSpec,
    WarmPoolStatus,
)
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.rest import quantities
from llmsafespace_gateway.rest.conversions import (
    check_package,
    pool_answer,
    pool_status,
    resources,
    resources_answer,
)
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import Route
from llmsafespace_gateway.rest.types_admin import (
    AutoScaling,
    PreloadScript,
    WarmPoolAnswer,
    WarmPoolCreate,
    WarmPoolList,
    WarmPoolPatch,
    WarmPoolStatusAnswer,
)
from llmsafespace_gateway.rest.validation import decode, invalid
from llmsafespace_gateway.store import Store, pools
from llmsafespace_gateway.store.rows import PoolRow

log = logging.getLogger(__name__)
_turns: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

_DEFAULTS = Resources(cpu=1.0, memory=1024**3)
LEAST_MEMORY = 32 * 1024**2  # what a warm sandbox takes, however little it is allowed


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


async def _visible(call: RestHandler) -> list[WarmPoolSpec]:
    """The pools that serve the caller."""
    tenant = call.principal.tenant
    kept = await call.backend.pools(tenant)
    return kept if kept is not None else [_spec(row) for row in await pools.visible(call.store, tenant)]


async def every_pool(store: Store, backend: SandboxBackend) -> list[WarmPoolSpec]:
    """The pools of all tenants."""
    kept = await backend.pools()
    return kept if kept is not None else [_spec(row) for row in await pools.visible(store, None)]


async def visible_pool(call: RestHandler, name: str) -> WarmPoolSpec | None:
    """The pool of this name that serves the caller: of two the tenant's own."""
    tenant = call.principal.tenant
    known = [spec for spec in await _visible(call) if spec.name == name]
    return min(known, key=lambda spec: spec.tenant != tenant, default=None)


async def _one(call: RestHandler, *, change: bool = False) -> WarmPoolSpec:
    """The pool that the path names. Raises ApiError."""
    name = call.path_values["name"]
    found = await visible_pool(call, name)
    if found is None:
        raise ApiError("not_found", f"there is no warm pool {name[:128]!r} that you can see")
    if change:
        _may_change(call.principal, found)
    return found


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


async def _answer(call: RestHandler, spec: WarmPoolSpec) -> WarmPoolAnswer:
    return pool_answer(spec, await _status(call, spec))


async def _status(call: RestHandler, spec: WarmPoolSpec) -> WarmPoolStatus:
    """How a pool stands; one that the backend could not take up (its runtime has gone) says so."""
    try:
        return await call.backend.pool_status(spec)
    except ApiError as error:
        if error.code != "not_found":
            raise
        message = f"nothing is started for it: see GET /api/v1/runtimes/{spec.runtime}"
        return WarmPoolStatus(
            conditions=(Condition(type="Ready", status="False", reason="NotKept", message=message),)
        )


def _check_size(spec: WarmPoolSpec, there: Resources | None) -> None:
    """Raise ApiError(invalid_request) for more than there is: one of its sandboxes, or all that stay warm."""
    if there is None:
        return
    own = spec.resources
    if not own.fits(there):
        asked, all_there = (resources_answer(each.cpu, each.memory, each.storage) for each in (own, there))
        raise invalid(
            "body.resources",
            f"expected at most cpu {all_there.cpu}, memory {all_there.memory} and ephemeralStorage "
            f"{all_there.ephemeral_storage}, which is all there is; got {asked.cpu}, {asked.memory} and "
            f"{asked.ephemeral_storage}",
        )
    warm = spec.min_size * max(own.memory, LEAST_MEMORY)
    if warm > there.memory:
        raise invalid(
            "body.minSize",
            f"expected at most {there.memory // max(own.memory, LEAST_MEMORY)}: there are "
            f"{quantities.format_size(there.memory)} of memory, and {spec.min_size} sandboxes of "
            f"{quantities.format_size(own.memory)} were asked for",
        )


def _check(spec: WarmPoolSpec) -> None:
    if spec.max_size and spec.max_size < spec.min_size:
        raise invalid(
            "body.maxSize", f"expected 0 or at least minSize ({spec.min_size}), got {spec.max_size}"
        )
    for index, package in enumerate(spec.preload_packages):
        check_package(package, f"body.preloadPackages[{index}]")


async def list_pools(call: RestHandler) -> WarmPoolList:
    """GET /warmpools."""
    return WarmPoolList(items=[await _answer(call, spec) for spec in await _visible(call)])


async def create_pool(call: RestHandler) -> WarmPoolAnswer:
    """POST /warmpools. Names are the tenant's own: other tenants' pools neither conflict nor are told of."""
    spec = _wanted(call.body, call.principal.tenant, call.principal.user_id)
    _may_be(call.principal, spec)
    _check_size(spec, call.backend.capacity())
    async with _turn(spec):
        if any(pool.name == spec.name for pool in await _visible(call)):
            raise ApiError("conflict", f"there is a warm pool {spec.name!r} already; choose another name")
        with _reserved(call, spec):
            if await call.backend.pools() is None:
                await _record_and_apply(call, spec)
            else:
                await call.backend.apply_pool(spec)
    call.audit(
        "warmpool.create",
        spec.name,
        runtime=spec.runtime,
        min_size=spec.min_size,
        published=spec.published,
    )
    return await _answer(call, spec)


def _turn(pool: WarmPoolSpec) -> asyncio.Lock:
    """One request at a time makes or changes a pool: of two that fail, neither's room may come back."""
    return _turns.setdefault(pool.key, asyncio.Lock())


@contextlib.contextmanager
def _reserved(call: RestHandler, pool: WarmPoolSpec) -> Iterator[None]:
    """Room for the pool's minimum in its tenant's quota, taken before the first await of making it."""
    undo = call.access.reserve_pool(pool)
    try:
        yield
    except BaseException:
        undo()
        raise


async def _record_and_apply(call: RestHandler, spec: WarmPoolSpec) -> None:
    await pools.insert(call.store, _row(spec))
    try:
        await call.backend.apply_pool(spec)
    except BaseException:
        await pools.delete(call.store, spec.tenant or "", spec.name)
        raise


def _wanted(body: WarmPoolCreate, tenant: str | None, owner: str | None) -> WarmPoolSpec:
    scaling = body.auto_scaling or AutoScaling()
    spec = WarmPoolSpec(
        name=body.name,
        runtime=body.runtime,
        min_size=body.min_size,
        max_size=body.max_size,
        security_level=body.security_level,
        resources=resources(body.resources, _DEFAULTS),
        preload_packages=tuple(body.preload_packages),
        preload_scripts=_scripts(body.preload_scripts),
        ttl=body.ttl,
        auto_scaling=scaling.enabled,
        target_utilization=scaling.target_utilization,
        scale_down_delay=scaling.scale_down_delay,
        tenant=tenant,
        owner=owner,
        published=body.published,
    )
    _check(spec)
    return spec


def pool_spec(pool: dict[str, Any]) -> WarmPoolSpec:
    """A pool of the configuration, in the shape of POST /warmpools, that serves all tenants.

    Raises ApiError(invalid_request), naming the field.
    """
    return _wanted(decode(msgspec.json.encode(pool), WarmPoolCreate), None, None)


async def restore_pools(
    store: Store, backend: SandboxBackend, access: Access, configured: Sequence[WarmPoolSpec]
) -> None:
    """At a gateway's start: record the configuration's pools, forget those that left it, apply all others.

    They count in their tenants' quotas from now on, beside the sandboxes that live.

    `configured` are the backend's own already. A pool whose runtime has gone is logged, and stays recorded.
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


def _scripts(scripts: list[PreloadScript]) -> tuple[tuple[str, str], ...]:
    return tuple((script.name, script.content) for script in scripts)


async def get_pool(call: RestHandler) -> WarmPoolAnswer:
    """GET /warmpools/{name}."""
    return await _answer(call, await _one(call))


async def patch_pool(call: RestHandler) -> WarmPoolAnswer:
    """PATCH /warmpools/{name}."""
    body: WarmPoolPatch = call.body
    async with _turn(await _one(call, change=True)):
        return await _change(call, await _one(call, change=True), body)


async def _change(call: RestHandler, spec: WarmPoolSpec, body: WarmPoolPatch) -> WarmPoolAnswer:
    changes: dict[str, object] = {
        name: value
        for name in ("min_size", "max_size", "ttl", "published")
        if (value := getattr(body, name)) is not msgspec.UNSET
    }
    if isinstance(body.preload_packages, list):
        changes["preload_packages"] = tuple(body.preload_packages)
    if isinstance(body.preload_scripts, list):
        changes["preload_scripts"] = _scripts(body.preload_scripts)
    if isinstance(body.auto_scaling, AutoScaling):
        changes["auto_scaling"] = body.auto_scaling.enabled
        changes["target_utilization"] = body.auto_scaling.target_utilization
        changes["scale_down_delay"] = body.auto_scaling.scale_down_delay
    changed = msgspec.structs.replace(spec, **changes)
    _check(changed)
    _may_be(call.principal, changed)
    _check_size(changed, call.backend.capacity())
    with _reserved(call, changed):
        await call.backend.apply_pool(changed)
        if await call.backend.pools() is None:
            await pools.put(call.store, _row(changed))
    call.audit("warmpool.update", spec.name, fields=sorted(changes), published=changed.published)
    return await _answer(call, changed)


async def delete_pool(call: RestHandler) -> None:
    """DELETE /warmpools/{name}."""
    spec = await _one(call, change=True)
    async with _turn(spec):
        kept = await call.backend.pools() is not None
        if not kept:
            await pools.delete(call.store, spec.tenant or "", spec.name)
        try:
            await call.backend.delete_pool(spec)
        except BaseException:
            if not kept:  # nobody could ask again
                call.access.pool_gone(spec)
            raise
        call.access.pool_gone(spec)
    call.audit("warmpool.delete", spec.name)


async def get_pool_status(call: RestHandler) -> WarmPoolStatusAnswer:
    """GET /warmpools/{name}/status."""
    return pool_status(await _status(call, await _one(call)))


_POOL = "/warmpools/{name}"

ROUTES = [
    Route(
        method="GET",
        path="/warmpools",
        handle=list_pools,
        scope="warmpools:read",
        tag="Warm pools",
        summary="Warm pools that serve you",
        response=WarmPoolList,
    ),
    Route(
        method="POST",
        path="/warmpools",
        handle=create_pool,
        scope="warmpools:write",
        tag="Warm pools",
        summary="Create a warm pool",
        request=WarmPoolCreate,
        response=WarmPoolAnswer,
        status=201,
        max_body=16 * 1024 * 1024,
        errors=(409, 422),
    ),
    Route(
        method="GET",
        path=_POOL,
        handle=get_pool,
        scope="warmpools:read",
        tag="Warm pools",
        summary="A warm pool",
        response=WarmPoolAnswer,
        errors=(404,),
    ),
    Route(
        method="PATCH",
        path=_POOL,
        handle=patch_pool,
        scope="warmpools:write",
        tag="Warm pools",
        summary="Scale or change a warm pool",
        request=WarmPoolPatch,
        response=WarmPoolAnswer,
        max_body=16 * 1024 * 1024,
        errors=(403, 404, 422),
    ),
    Route(
        method="DELETE",
        path=_POOL,
        handle=delete_pool,
        scope="warmpools:write",
        tag="Warm pools",
        summary="Remove a warm pool; its claimed sandboxes live on",
        status=204,
        errors=(404,),
    ),
    Route(
        method="GET",
        path=f"{_POOL}/status",
        handle=get_pool_status,
        scope="warmpools:read",
        tag="Warm pools",
        summary="How a warm pool stands",
        response=WarmPoolStatusAnswer,
        errors=(404,),
    ),
]
