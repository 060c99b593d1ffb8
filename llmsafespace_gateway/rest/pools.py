"""Routes: warm pools."""

from __future__ import annotations

from llmsafespace_gateway.rest.conversions import pool_answer, pool_changes, pool_request, pool_status
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import Route
from llmsafespace_gateway.rest.types_admin import (
    WarmPoolAnswer,
    WarmPoolCreate,
    WarmPoolList,
    WarmPoolPatch,
    WarmPoolStatusAnswer,
)
from llmsafespace_gateway.services.types import WarmPoolSpec


async def _answer(call: RestHandler, spec: WarmPoolSpec) -> WarmPoolAnswer:
    return pool_answer(spec, await call.services.pools.status(spec))


async def _named(call: RestHandler) -> WarmPoolSpec:
    return await call.services.pools.find(call.caller, call.path_values["name"])


async def list_pools(call: RestHandler) -> WarmPoolList:
    """GET /warmpools."""
    return WarmPoolList(
        items=[await _answer(call, spec) for spec in await call.services.pools.all(call.caller)]
    )


async def create_pool(call: RestHandler) -> WarmPoolAnswer:
    """POST /warmpools."""
    return await _answer(call, await call.services.pools.create(call.caller, pool_request(call.body)))


async def get_pool(call: RestHandler) -> WarmPoolAnswer:
    """GET /warmpools/{name}."""
    return await _answer(call, await _named(call))


async def patch_pool(call: RestHandler) -> WarmPoolAnswer:
    """PATCH /warmpools/{name}."""
    name, changes = call.path_values["name"], pool_changes(call.body)
    return await _answer(call, await call.services.pools.change(call.caller, name, changes))


async def delete_pool(call: RestHandler) -> None:
    """DELETE /warmpools/{name}."""
    await call.services.pools.delete(call.caller, call.path_values["name"])


async def get_pool_status(call: RestHandler) -> WarmPoolStatusAnswer:
    """GET /warmpools/{name}/status."""
    return pool_status(await call.services.pools.status(await _named(call)))


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
        action="warmpool.create",
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
        action="warmpool.update",
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
        action="warmpool.delete",
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
