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
from llmsafespace_gateway.rest.routing import JSON, Route, Routes
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
ROUTES = Routes("About")
ASSETS = Routes("About")  # of the documentation; not described
ROOT = Routes("About")  # beside the API


@cache
def _asset(name: str) -> bytes:
    return (files("llmsafespace_gateway.rest") / "docs" / name).read_bytes()


def _send(call: RestHandler, kind: str, body: bytes) -> None:
    call.set_header("Content-Type", kind)
    call.set_header("Content-Security-Policy", _POLICY)
    call.set_header("Referrer-Policy", "no-referrer")
    call.finish(body)


@ROUTES("GET", "/openapi.json", public=True)
async def description(call: RestHandler) -> None:
    """This API, described in OpenAPI 3.1."""
    _send(call, JSON, _document(call.router.listed))


@cache
def _document(routes: tuple[Route, ...]) -> bytes:
    return msgspec.json.encode(openapi.document(routes, version("llmsafespace-gateway")))


@ROUTES("GET", "/docs", public=True, produces=("text/html",))
async def docs(call: RestHandler) -> None:
    """This API, documented for people."""
    _send(call, HTML, _asset("index.html"))


@ASSETS("GET", "/docs/style.css", public=True)
async def docs_style(call: RestHandler) -> None:
    """Style."""
    _send(call, CSS, _asset("style.css"))


@ASSETS("GET", "/docs/script.js", public=True)
async def docs_script(call: RestHandler) -> None:
    """Script."""
    _send(call, JAVASCRIPT, _asset("script.js"))


@ROOT("GET", "/healthz", public=True, probe=True)
async def alive(call: RestHandler) -> dict[str, Any]:
    """The process answers."""
    return {"status": "ok"}


@ROOT("GET", "/readyz", public=True, probe=True)
async def ready(call: RestHandler) -> dict[str, Any]:
    """Whether the disk, the store and the backend work, and if not, which does not.

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


@ROOT("GET", "/metrics", public=True, probe=True)
async def metrics(call: RestHandler) -> None:
    """Counts only, nothing of any tenant's."""
    await call.access.flush_audit()  # executions count when they are written
    await call.services.system.measure()
    _send(
        call, METRICS, await asyncio.to_thread(call.metrics.text)
    )  # of every route and status: it takes long


@ROUTES("GET", "/system", scope="admin")
async def system(call: RestHandler) -> SystemAnswer:
    """For admins: what is in the way of this gateway, sandboxes that could not be taken in."""
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
