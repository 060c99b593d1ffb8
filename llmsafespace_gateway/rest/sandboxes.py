"""Routes: sandboxes."""

from __future__ import annotations

import re

import msgspec

from llmsafespace_gateway import bulk
from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.rest import conversions
from llmsafespace_gateway.rest.creation import answered
from llmsafespace_gateway.rest.executions import context_answer
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.pools import visible_pool
from llmsafespace_gateway.rest.routing import JSON, NDJSON, Query, Route
from llmsafespace_gateway.rest.types import (
    CreateEvent,
    SandboxAnswer,
    SandboxCreate,
    SandboxList,
    SandboxPatch,
    SandboxStatusAnswer,
    UsageAnswer,
)
from llmsafespace_gateway.rest.validation import invalid
from llmsafespace_gateway.sandboxes.executions import moment
from llmsafespace_gateway.sandboxes.requests import CreateSandbox, Owner
from llmsafespace_gateway.sandboxes.rows import request_digest
from llmsafespace_gateway.store import kernels, sandboxes
from llmsafespace_gateway.store.rows import SandboxRow
from llmsafespace_protocol.requests import Empty, Limits, Status

_KEY = re.compile(r"[\x21-\x7e]{1,200}")
_STATES = ("creating", "running", "ended")


async def list_sandboxes(call: RestHandler) -> SandboxList:
    """GET /sandboxes."""
    state, limit = call.query("status"), call.query("limit")
    rows = await call.access.list_sandboxes(
        call.principal,
        states=[state] if state else None,
        limit=limit + 1,
        after=call.query("after") or None,
    )
    more = len(rows) > limit
    rows = rows[:limit]
    defaults = await kernels.defaults_of(call.store, [row.id for row in rows])
    return SandboxList(
        items=[
            conversions.sandbox_answer(
                row, kernel.id if (kernel := defaults.get(row.id)) is not None else None
            )
            for row in rows
        ],
        next=rows[-1].id if more else None,
    )


async def create_sandbox(call: RestHandler) -> SandboxAnswer | None:
    """POST /sandboxes: see `creation.answered`."""
    body: SandboxCreate = call.body
    key = call.request.headers.get("Idempotency-Key")
    if key is not None and _KEY.fullmatch(key) is None:
        raise invalid("header.Idempotency-Key", "expected 1 to 200 printable ASCII characters, no spaces")
    wanted = await bulk.run(call.body_size, _wanted, body, key, await _default_runtime(call, body))
    owner = Owner(call.principal.user_id, call.principal.tenant)
    return await answered(call, _made(call, owner, wanted))


async def _made(call: RestHandler, owner: Owner, wanted: CreateSandbox) -> SandboxAnswer:
    known = await call.sandboxes.existing(owner, wanted)
    row = known if known is not None else await _create(call, owner, wanted)
    if not call.headers_written:
        call.set_header("Location", f"/api/v1/sandboxes/{row.id}")
    return conversions.sandbox_answer(row, await call.default_kernel(row.id))


async def _default_runtime(call: RestHandler, body: SandboxCreate) -> str:
    """The runtime of a request that names none: its warm pool's, else the configured one."""
    pool = None
    if body.runtime is None and body.warm_pool is not None:
        pool = await visible_pool(call, body.warm_pool)
    return pool.runtime if pool is not None else str(call.settings["default_runtime"])


def _wanted(body: SandboxCreate, key: str | None, default_runtime: str) -> CreateSandbox:
    wanted = conversions.create_request(body, key, default_runtime)
    return msgspec.structs.replace(wanted, digest=request_digest(wanted)) if key is not None else wanted


async def _create(call: RestHandler, owner: Owner, wanted: CreateSandbox) -> SandboxRow:
    if call.sandboxes.under_way(owner, wanted):  # repeated: the first request holds the quota for it
        return await call.sandboxes.create(owner, wanted)
    with call.access.reserve(call.principal, wanted.resources) as room:
        try:
            row = await call.sandboxes.create(owner, wanted)
        except ApiError as error:
            call.audit("sandbox.create", "", error.code, runtime=wanted.runtime)
            raise
        if row.state == "ended":
            room.release()
        else:
            room.commit(row.id)
    call.metrics.starts.labels(row.start_kind).inc()
    call.audit("sandbox.create", row.id, runtime=row.runtime, start=row.start_kind)
    return row


async def get_sandbox(call: RestHandler) -> SandboxAnswer:
    """GET /sandboxes/{sandbox_id}."""
    row = await call.sandbox("sandboxes:read")
    return conversions.sandbox_answer(row, await call.default_kernel(row.id))


async def patch_sandbox(call: RestHandler) -> SandboxAnswer:
    """PATCH /sandboxes/{sandbox_id}: the agent first, then the record."""
    body: SandboxPatch = call.body
    row = await call.sandbox("sandboxes:write")
    if row.state == "ended":
        end = row.end or "lost"
        raise ApiError("gone", f"the sandbox has ended: {end}; create another", {"end": end})
    sent = {
        name: value
        for name in ("metadata", "timeout", "idle_timeout", "max_lifetime")
        if (value := getattr(body, name)) is not msgspec.UNSET
    }
    changed = msgspec.structs.replace(row, **sent)
    if changed.max_lifetime > row.max_lifetime and not call.backend.extends:
        raise invalid(
            "body.maxLifetime", f"expected at most {row.max_lifetime:g}: it can only be shortened here"
        )
    if sent.keys() - {"metadata"}:
        limits = Limits(
            timeout=changed.timeout,
            idle_timeout=changed.idle_timeout,
            max_lifetime=changed.max_lifetime,
        )
        await call.sandboxes.set_limits(row, limits)
    if sent:
        await sandboxes.update(call.store, row.tenant, row.id, **sent)
        call.audit("sandbox.update", row.id, fields=sorted(sent))
    return conversions.sandbox_answer(changed, await call.default_kernel(row.id))


async def delete_sandbox(call: RestHandler) -> None:
    """DELETE /sandboxes/{sandbox_id}. One that has ended already stays as it ended."""
    row = await call.sandbox("sandboxes:write")
    if row.state != "ended":
        await call.sandboxes.delete(row.id)
        call.audit("sandbox.delete", row.id)


async def sandbox_status(call: RestHandler) -> SandboxStatusAnswer:
    """GET /sandboxes/{sandbox_id}/status: asked of the agent, while there is one."""
    row = await call.sandbox("sandboxes:read")
    seen = await _ask(call, row) if row.state == "running" else None
    if seen is None:
        row = await call.access.sandbox(call.principal, row.id, "sandboxes:read")
    default = await call.default_kernel(row.id)
    limits = conversions.resources_answer(row.cpu, row.memory, row.storage)
    usage = seen.usage if seen is not None else None
    return SandboxStatusAnswer(
        id=row.id,
        status=row.state,  # type: ignore[arg-type]
        started_at=moment(row.created_at),
        uptime=conversions.uptime(row),
        last_activity=moment(seen.last_activity) if seen is not None else None,
        expires_at=moment(row.created_at + row.max_lifetime) if row.state != "ended" else None,
        end=row.end,
        end_message=row.end_message,
        resources=UsageAnswer(
            cpu_seconds=usage.cpu_seconds if usage is not None else 0.0,
            memory_bytes=usage.memory_bytes if usage is not None else 0,
            disk_bytes=usage.disk_bytes if usage is not None else 0,
            processes=usage.processes if usage is not None else 0,
            limits=limits,
        ),
        contexts=[context_answer(info, default) for info in seen.contexts] if seen is not None else [],
        connections=seen.connections if seen is not None else 0,
        isolation=row.isolation,
        problems=[problem[:500] for problem in seen.problems[:20]] if seen is not None else [],
    )


async def _ask(call: RestHandler, row: SandboxRow) -> Status | None:
    """The agent's account; None when the sandbox ended meanwhile."""
    try:
        status: Status = await call.sandboxes.rpc(row.id, "status", Empty())
    except ApiError as error:
        if error.code == "gone":
            return None
        raise
    return status


_SANDBOX = "/sandboxes/{sandbox_id}"

ROUTES = [
    Route(
        method="GET",
        path="/sandboxes",
        handle=list_sandboxes,
        scope="sandboxes:read",
        tag="Sandboxes",
        summary="Your sandboxes, newest first",
        response=SandboxList,
        query=(
            Query("status", "only those in this state", choices=_STATES),
            Query("limit", "at most so many", "integer", 100, 1, 1000),
            Query("after", "`next` of the page before"),
        ),
    ),
    Route(
        method="POST",
        path="/sandboxes",
        handle=create_sandbox,
        scope="sandboxes:write",
        tag="Sandboxes",
        summary="Create a sandbox",
        request=SandboxCreate,
        response=SandboxAnswer,
        status=201,
        produces=(JSON, NDJSON),
        events=CreateEvent,
        headers=(("Idempotency-Key", "a repeated request with the same key is one sandbox"),),
        max_body=32 * 1024 * 1024,
        errors=(409, 422),
    ),
    Route(
        method="GET",
        path=_SANDBOX,
        handle=get_sandbox,
        scope="sandboxes:read",
        tag="Sandboxes",
        summary="A sandbox; an ended one with how it ended",
        response=SandboxAnswer,
        errors=(404,),
    ),
    Route(
        method="PATCH",
        path=_SANDBOX,
        handle=patch_sandbox,
        scope="sandboxes:write",
        tag="Sandboxes",
        summary="Change metadata or limits of time",
        request=SandboxPatch,
        response=SandboxAnswer,
        errors=(404, 410),
    ),
    Route(
        method="DELETE",
        path=_SANDBOX,
        handle=delete_sandbox,
        scope="sandboxes:write",
        tag="Sandboxes",
        summary="End a sandbox and everything in it",
        status=204,
        errors=(404,),
    ),
    Route(
        method="GET",
        path=f"{_SANDBOX}/status",
        handle=sandbox_status,
        scope="sandboxes:read",
        tag="Sandboxes",
        summary="How a sandbox is now: use, contexts, isolation",
        response=SandboxStatusAnswer,
        errors=(404,),
    ),
]
