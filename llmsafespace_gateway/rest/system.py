"""Routes: the API's description and documentation; health and metrics."""

from __future__ import annotations

import asyncio
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from typing import Any

import msgspec

from llmsafespace_gateway.errors import ApiError
from llmsafespace_gateway.rest import openapi
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import JSON, Route
from llmsafespace_gateway.rest.types_admin import QuarantinedAnswer, SystemAnswer
from llmsafespace_gateway.services.types import moment

HTML = "text/html; charset=utf-8"
CSS = "text/css; charset=utf-8"
JAVASCRIPT = "text/javascript; charset=utf-8"
METRICS = "text/plain; version=0.0.4; charset=utf-8"
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@cache
def _asset(name: str) -> bytes:
    return (files("llmsafespace_gateway.rest") / "docs" / name).read_bytes()


def _send(call: RestHandler, kind: str, body: bytes) -> None:
    call.set_header("Content-Type", kind)
    call.set_header("Content-Security-Policy", _POLICY)
    call.set_header("Referrer-Policy", "no-referrer")
    call.finish(body)


async def description(call: RestHandler) -> None:
    """GET /openapi.json."""
    _send(call, JSON, _document(call.router.listed))


@cache
def _document(routes: tuple[Route, ...]) -> bytes:
    return msgspec.json.encode(openapi.document(routes, version("llmsafespace-gateway")))


async def docs(call: RestHandler) -> None:
    """GET /docs."""
    _send(call, HTML, _asset("index.html"))


async def docs_style(call: RestHandler) -> None:
    """GET /docs/style.css."""
    _send(call, CSS, _asset("style.css"))


async def docs_script(call: RestHandler) -> None:
    """GET /docs/script.js."""
    _send(call, JAVASCRIPT, _asset("script.js"))


async def alive(call: RestHandler) -> dict[str, Any]:
    """GET /healthz: the process answers."""
    return {"status": "ok"}


async def ready(call: RestHandler) -> dict[str, Any]:
    """GET /readyz: whether the disk, the store and the backend work, and if not, which does not.

    Anybody may ask: what is wrong, with its paths, hosts and users, is in the log and for admins in /system.
    """
    problems = sorted(await call.readiness.problems())
    if problems:
        text = f"not ready: {', '.join(problems)}; the gateway's log says more"
        raise ApiError("service_unavailable", text, {"problems": problems}, 1.0)
    return {"status": "ok"}


def prepare(routes: tuple[Route, ...]) -> None:
    """Make the documents that are served, once (blocking)."""
    _document(routes)
    for name in ("index.html", "style.css", "script.js"):
        _asset(name)


async def metrics(call: RestHandler) -> None:
    """GET /metrics: counts only, nothing of any tenant's."""
    await call.access.flush_audit()  # executions count when they are written
    await call.services.system.measure()
    _send(
        call, METRICS, await asyncio.to_thread(call.metrics.text)
    )  # of every route and status: it takes long


async def system(call: RestHandler) -> SystemAnswer:
    """GET /system: what an admin must know of this gateway. Sandboxes of other tenants are left out."""
    found = await call.services.system.overview(call.caller)
    return SystemAnswer(
        version=version("llmsafespace-gateway"),
        backend=found.backend,
        quarantined=[
            QuarantinedAnswer(
                name=each.name,
                sandbox_id=each.sandbox_id,
                reason=each.reason,
                since=moment(each.since),
                kept=each.kept,
            )
            for each in found.quarantined
        ],
        unwritten_ends=found.unwritten_ends,
        problems=await call.readiness.problems(),
    )


ROUTES = [
    Route(
        method="GET",
        path="/system",
        handle=system,
        scope="admin",
        tag="About",
        summary="For admins: what is in the way of this gateway, sandboxes that could not be taken in",
        response=SystemAnswer,
    ),
    Route(
        method="GET",
        path="/openapi.json",
        handle=description,
        public=True,
        tag="About",
        summary="This API, described in OpenAPI 3.1",
    ),
    Route(
        method="GET",
        path="/docs",
        handle=docs,
        public=True,
        tag="About",
        summary="This API, documented for people",
        produces=("text/html",),
    ),
]
ASSETS = [
    Route(method="GET", path="/docs/style.css", handle=docs_style, public=True, tag="About", summary="Style"),
    Route(
        method="GET", path="/docs/script.js", handle=docs_script, public=True, tag="About", summary="Script"
    ),
]
ROOT = [
    Route(method="GET", path="/healthz", handle=alive, public=True, probe=True, tag="About", summary="Alive"),
    Route(method="GET", path="/readyz", handle=ready, public=True, probe=True, tag="About", summary="Ready"),
    Route(
        method="GET", path="/metrics", handle=metrics, public=True, probe=True, tag="About", summary="Metrics"
    ),
]
