"""Routes: warm pools."""

from __future__ import annotations

from llmsafespace_gateway.rest.conversions import pool_answer, pool_changes, pool_request, pool_status
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import Routes
from llmsafespace_gateway.rest.types_admin import (
    WarmPoolAnswer,
    WarmPoolCreate,
    WarmPoolList,
    WarmPoolPatch,
    WarmPoolStatusAnswer,
)
from llmsafespace_gateway.services.types import WarmPoolSpec

_POOL = "/warmpools/{name}"
ROUTES = Routes("Warm pools")


async def _answer(call: RestHandler, spec: WarmPoolSpec) -> WarmPoolAnswer:
    return pool_answer(spec, await call.services.pools.status(spec))


async def _named(call: RestHandler) -> WarmPoolSpec:
    return await call.services.pools.find(call.caller, call.path_values["name"])


@ROUTES("GET", "/warmpools", scope="warmpools:read")
async def list_pools(call: RestHandler) -> WarmPoolList:
    """Warm pools that serve you."""
    return WarmPoolList(
        items=[await _answer(call, spec) for spec in await call.services.pools.all(call.caller)]
    )


@ROUTES(
    "POST",
    "/warmpools",
    scope="warmpools:write",
    action="warmpool.create",
    request=WarmPoolCreate,
    status=201,
    max_body=16 * 1024 * 1024,
    errors=(409, 422),
)
async def create_pool(call: RestHandler) -> WarmPoolAnswer:
    """Create a warm pool."""
    return await _answer(call, await call.services.pools.create(call.caller, pool_request(call.body)))


@ROUTES("GET", _POOL, scope="warmpools:read", errors=(404,))
async def get_pool(call: RestHandler) -> WarmPoolAnswer:
    """A warm pool."""
    return await _answer(call, await _named(call))


@ROUTES(
    "PATCH",
    _POOL,
    scope="warmpools:write",
    action="warmpool.update",
    request=WarmPoolPatch,
    max_body=16 * 1024 * 1024,
    errors=(403, 404, 422),
)
async def patch_pool(call: RestHandler) -> WarmPoolAnswer:
    """Scale or change a warm pool."""
    name, changes = call.path_values["name"], pool_changes(call.body)
    return await _answer(call, await call.services.pools.change(call.caller, name, changes))


@ROUTES("DELETE", _POOL, scope="warmpools:write", action="warmpool.delete", status=204, errors=(404,))
async def delete_pool(call: RestHandler) -> None:
    """Remove a warm pool; its claimed sandboxes live on."""
    await call.services.pools.delete(call.caller, call.path_values["name"])


@ROUTES("GET", f"{_POOL}/status", scope="warmpools:read", errors=(404,))
async def get_pool_status(call: RestHandler) -> WarmPoolStatusAnswer:
    """How a warm pool stands."""
    return pool_status(await call.services.pools.status(await _named(call)))
