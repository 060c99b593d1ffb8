"""Routes: warm pools, runtimes and profiles."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import msgspec

from llmsafespace_gateway.backends.base import Profile, Resources, SandboxBackend, WarmPoolSpec
from llmsafespace_gateway.errors import ApiError
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
    ProfileAnswer,
    ProfileList,
    RuntimeAnswer,
    RuntimeList,
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

_DEFAULTS = Resources(cpu=1.0, memory=1024**3)


def _spec(row: PoolRow) -> WarmPoolSpec:
    return msgspec.convert({**row.spec, "name": row.name, "tenant": row.tenant}, WarmPoolSpec)


def _row(spec: WarmPoolSpec) -> PoolRow:
    return PoolRow(name=spec.name, tenant=spec.tenant, spec=msgspec.to_builtins(spec))


async def _visible(call: RestHandler) -> list[WarmPoolSpec]:
    """The pools that serve the caller."""
    tenant = call.principal.tenant
    kept = await call.backend.pools(tenant)
    return kept if kept is not None else [_spec(row) for row in await pools.visible(call.store, tenant)]


async def _one(call: RestHandler, *, change: bool = False) -> WarmPoolSpec:
    """The pool that the path names. One of several tenants is seen by them, and changed by none of them."""
    name = call.path_values["name"]
    found = next((spec for spec in await _visible(call) if spec.name == name), None)
    if found is None:
        raise ApiError("not_found", f"there is no warm pool {name[:128]!r} that you can see")
    if change and found.tenant is None:
        raise ApiError("forbidden", "this pool serves all tenants; whoever runs the gateway changes it")
    return found


def _check(spec: WarmPoolSpec) -> None:
    if spec.max_size and spec.max_size < spec.min_size:
        raise invalid(
            "body.maxSize", f"expected 0 or at least minSize ({spec.min_size}), got {spec.max_size}"
        )
    for index, package in enumerate(spec.preload_packages):
        check_package(package, f"body.preloadPackages[{index}]")


async def list_pools(call: RestHandler) -> WarmPoolList:
    """GET /warmpools."""
    found = await _visible(call)
    return WarmPoolList(
        items=[pool_answer(spec, await call.backend.pool_status(spec.name)) for spec in found]
    )


async def create_pool(call: RestHandler) -> WarmPoolAnswer:
    """POST /warmpools."""
    spec = _wanted(call.body, call.principal.tenant)
    kept = await call.backend.pools()
    if kept is None:
        await _record_and_apply(call, spec)
    elif any(pool.name == spec.name for pool in kept):
        raise ApiError("conflict", f"there is a warm pool {spec.name!r} already; choose another name")
    else:
        await call.backend.apply_pool(spec)
    call.audit("warmpool.create", spec.name, runtime=spec.runtime, min_size=spec.min_size)
    return pool_answer(spec, await call.backend.pool_status(spec.name))


async def _record_and_apply(call: RestHandler, spec: WarmPoolSpec) -> None:
    await pools.insert(call.store, _row(spec))
    try:
        await call.backend.apply_pool(spec)
    except BaseException:
        await pools.delete(call.store, spec.name)
        raise


def _wanted(body: WarmPoolCreate, tenant: str | None) -> WarmPoolSpec:
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
    )
    _check(spec)
    return spec


def pool_spec(pool: dict[str, Any]) -> WarmPoolSpec:
    """A pool of the configuration, in the shape of POST /warmpools, that serves all tenants.

    Raises ApiError(invalid_request), naming the field.
    """
    return _wanted(decode(msgspec.json.encode(pool), WarmPoolCreate), None)


async def restore_pools(store: Store, backend: SandboxBackend, configured: Sequence[WarmPoolSpec]) -> None:
    """At a gateway's start: record the configuration's pools, forget those that left it, apply all others.

    `configured` are the backend's own already. A pool whose runtime has gone is logged, and stays recorded.
    """
    names = {spec.name for spec in configured}
    for spec in configured:
        await pools.put(store, _row(spec))
    for row in await pools.visible(store, None):
        if row.name in names:
            continue
        if row.tenant is None:
            await pools.delete(store, row.name)
            continue
        try:
            await backend.apply_pool(_spec(row))
        except ApiError as error:
            log.warning("warm pool %s cannot be filled: %s", row.name, error.message)


def _scripts(scripts: list[PreloadScript]) -> tuple[tuple[str, str], ...]:
    return tuple((script.name, script.content) for script in scripts)


async def get_pool(call: RestHandler) -> WarmPoolAnswer:
    """GET /warmpools/{name}."""
    spec = await _one(call)
    return pool_answer(spec, await call.backend.pool_status(spec.name))


async def patch_pool(call: RestHandler) -> WarmPoolAnswer:
    """PATCH /warmpools/{name}."""
    body: WarmPoolPatch = call.body
    spec = await _one(call, change=True)
    changes: dict[str, object] = {
        name: value
        for name in ("min_size", "max_size", "ttl")
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
    await call.backend.apply_pool(changed)
    if await call.backend.pools() is None:
        await pools.put(call.store, _row(changed))
    call.audit("warmpool.update", spec.name, fields=sorted(changes))
    return pool_answer(changed, await call.backend.pool_status(spec.name))


async def delete_pool(call: RestHandler) -> None:
    """DELETE /warmpools/{name}."""
    spec = await _one(call, change=True)
    await pools.delete(call.store, spec.name)
    await call.backend.delete_pool(spec.name)
    call.audit("warmpool.delete", spec.name)


async def get_pool_status(call: RestHandler) -> WarmPoolStatusAnswer:
    """GET /warmpools/{name}/status."""
    spec = await _one(call)
    return pool_status(await call.backend.pool_status(spec.name))


# -- runtimes and profiles -------------------------------------------------------------------------------


async def list_runtimes(call: RestHandler) -> RuntimeList:
    """GET /runtimes."""
    return RuntimeList(
        items=[
            RuntimeAnswer(
                id=runtime.id,
                language=runtime.language,
                version=runtime.version,
                display_name=runtime.display_name,
                languages=list(runtime.languages),
                pre_installed_packages=list(runtime.packages),
                available=runtime.available,
                reason=runtime.reason,
            )
            for runtime in await call.backend.runtimes()
        ]
    )


async def get_runtime(call: RestHandler) -> RuntimeAnswer:
    """GET /runtimes/{runtime_id}."""
    wanted = call.path_values["runtime_id"]
    for runtime in (await list_runtimes(call)).items:
        if runtime.id == wanted:
            return runtime
    raise ApiError("not_found", f"there is no runtime {wanted[:128]!r}; GET /api/v1/runtimes lists them")


async def list_profiles(call: RestHandler) -> ProfileList:
    """GET /profiles."""
    return ProfileList(items=[_profile_answer(profile) for profile in await call.backend.profiles()])


async def get_profile(call: RestHandler) -> ProfileAnswer:
    """GET /profiles/{profile_id}."""
    wanted, known = call.path_values["profile_id"], await call.backend.profiles()
    found = next((profile for profile in known if profile.name == wanted), None)
    if found is None:
        names = ", ".join(profile.name for profile in known)
        raise ApiError("not_found", f"there is no such profile; known are {names}")
    return _profile_answer(found)


def _profile_answer(profile: Profile) -> ProfileAnswer:
    defaults = profile.resource_defaults
    return ProfileAnswer(
        id=profile.name,
        security_level=profile.security_level,
        description=profile.description,
        resource_defaults=resources_answer(defaults.cpu, defaults.memory, defaults.storage),
        measures=list(profile.measures),
        writable_paths=list(profile.writable_paths),
        network=profile.network,
    )


_POOL = "/warmpools/{name}"

ROUTES = [
    Route(
        method="GET",
        path="/runtimes",
        handle=list_runtimes,
        tag="Runtimes",
        summary="Runtimes that sandboxes can have",
        response=RuntimeList,
    ),
    Route(
        method="GET",
        path="/runtimes/{runtime_id}",
        handle=get_runtime,
        tag="Runtimes",
        summary="A runtime",
        response=RuntimeAnswer,
        errors=(404,),
    ),
    Route(
        method="GET",
        path="/profiles",
        handle=list_profiles,
        tag="Runtimes",
        summary="What the security levels mean",
        response=ProfileList,
    ),
    Route(
        method="GET",
        path="/profiles/{profile_id}",
        handle=get_profile,
        tag="Runtimes",
        summary="What a security level means",
        response=ProfileAnswer,
        errors=(404,),
    ),
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
        errors=(404, 422),
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
