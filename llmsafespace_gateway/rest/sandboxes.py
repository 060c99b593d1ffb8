"""Routes: sandboxes."""

from __future__ import annotations

import re

from llmsafespace_gateway import bulk
from llmsafespace_gateway.rest import conversions
from llmsafespace_gateway.rest.creation import answered
from llmsafespace_gateway.rest.executions import context_answer
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import JSON, NDJSON, Query, Routes
from llmsafespace_gateway.rest.types import (
    CreateEvent,
    SandboxAnswer,
    SandboxCreate,
    SandboxList,
    SandboxPatch,
    SandboxStatusAnswer,
)
from llmsafespace_gateway.rest.validation import invalid
from llmsafespace_gateway.services.types import CreateSandbox, SandboxRow, moment

_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_STATES = ("creating", "running", "ended")

_SANDBOX = "/sandboxes/{sandbox_id}"
ROUTES = Routes("Sandboxes")


@ROUTES(
    "GET",
    "/sandboxes",
    scope="sandboxes:read",
    query=(
        Query("status", "only those in this state", choices=_STATES),
        Query("limit", "maximum number of items to return", "integer", 100, 1, 1000),
        Query("after", "`next` of the page before"),
    ),
)
async def list_sandboxes(call: RestHandler) -> SandboxList:
    """Your sandboxes, newest first."""
    items, more = await call.services.sandboxes.page(
        call.caller,
        state=call.query("status"),
        limit=call.query("limit"),
        after=call.query("after") or None,
    )
    return SandboxList(items=[conversions.sandbox_answer(*item) for item in items], next=more)


@ROUTES(
    "POST",
    "/sandboxes",
    action="sandbox.create",
    scope="sandboxes:write",
    request=SandboxCreate,
    status=201,
    produces=(JSON, NDJSON),
    events=CreateEvent,
    headers=(("Idempotency-Key", "a repeated request with the same key is one sandbox"),),
    max_body=32 * 1024 * 1024,
    errors=(409, 422),
)
async def create_sandbox(call: RestHandler) -> SandboxAnswer | None:
    """Create a sandbox."""
    key = call.request.headers.get("Idempotency-Key")
    if key is not None and _KEY.fullmatch(key) is None:
        raise invalid("header.Idempotency-Key", "expected 1 to 200 printable ASCII characters, no spaces")
    body: SandboxCreate = call.body
    runtime = body.runtime or await call.services.pools.default_runtime(call.caller, body.warm_pool)
    request = await bulk.run(call.body_size, conversions.create_request, body, key, runtime)
    return await answered(call, _made(call, request))


async def _made(call: RestHandler, request: CreateSandbox) -> SandboxAnswer:
    row = await call.services.sandboxes.create(call.caller, request)
    if not call.headers_written:
        call.set_header("Location", f"/api/v1/sandboxes/{row.id}")
    return await _answer(call, row)


async def _answer(call: RestHandler, row: SandboxRow) -> SandboxAnswer:
    return conversions.sandbox_answer(row, await call.services.sandboxes.default_context(row.id))


@ROUTES("GET", _SANDBOX, on="sandbox", scope="sandboxes:read", errors=(404,))
async def get_sandbox(call: RestHandler, row: SandboxRow) -> SandboxAnswer:
    """A sandbox; an ended one with how it ended."""
    return await _answer(call, row)


@ROUTES(
    "PATCH",
    _SANDBOX,
    action="sandbox.update",
    on="sandbox",
    scope="sandboxes:write",
    request=SandboxPatch,
    errors=(404, 410),
)
async def patch_sandbox(call: RestHandler, row: SandboxRow) -> SandboxAnswer:
    """Change metadata or limits of time."""
    changes = conversions.sent(call.body, "metadata", "timeout", "idle_timeout", "max_lifetime")
    return await _answer(call, await call.services.sandboxes.change(call.caller, row, changes))


@ROUTES(
    "DELETE",
    _SANDBOX,
    action="sandbox.delete",
    on="sandbox",
    scope="sandboxes:write",
    status=204,
    errors=(404,),
)
async def delete_sandbox(call: RestHandler, row: SandboxRow) -> None:
    """End a sandbox and everything in it."""
    await call.services.sandboxes.delete(call.caller, row)


@ROUTES("GET", f"{_SANDBOX}/status", on="sandbox", scope="sandboxes:read", errors=(404,))
async def sandbox_status(call: RestHandler, row: SandboxRow) -> SandboxStatusAnswer:
    """How a sandbox is now: use, contexts, isolation."""
    row, seen = await call.services.sandboxes.status(call.caller, row)
    default = await call.services.sandboxes.default_context(row.id)
    return SandboxStatusAnswer(
        id=row.id,
        status=row.state,  # type: ignore[arg-type]
        started_at=moment(row.created_at),
        uptime=conversions.uptime(row),
        last_activity=moment(seen.last_activity) if seen is not None else None,
        expires_at=moment(row.created_at + row.max_lifetime) if row.state != "ended" else None,
        end=row.end,
        end_message=row.end_message,
        resources=conversions.usage_answer(row, seen.usage if seen is not None else None),
        contexts=[context_answer(info, default) for info in seen.contexts] if seen is not None else [],
        connections=seen.connections if seen is not None else 0,
        isolation=row.isolation,
        problems=[problem[:500] for problem in seen.problems[:20]] if seen is not None else [],
    )
