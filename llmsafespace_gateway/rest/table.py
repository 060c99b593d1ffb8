"""All routes in one list: it registers the handlers, and the OpenAPI document is made of it."""

from __future__ import annotations

from typing import Any

from llmsafespace_gateway.rest import (
    commands,
    executions,
    files,
    people,
    pools,
    runtimes,
    sandboxes,
    system,
    welcome,
)
from llmsafespace_gateway.rest.conversions import pool_spec, timezones
from llmsafespace_gateway.rest.handler import RestHandler
from llmsafespace_gateway.rest.routing import PREFIX, Route, Router
from llmsafespace_gateway.rest.stream import StreamSocket, drain

API: tuple[Route, ...] = (
    *sandboxes.ROUTES,
    *executions.ROUTES,
    *commands.ROUTES,
    *files.ROUTES,
    *runtimes.ROUTES,
    *pools.ROUTES,
    *people.ROUTES,
    *system.ROUTES,
)


def prepare() -> None:
    """Make once what takes long and what each request then finds ready (blocking; run it in a thread)."""
    system.prepare(API)
    timezones()


def routes() -> list[tuple[Any, ...]]:
    """The tornado rules of everything in this package."""
    api = {"router": Router(API, system.ASSETS), "prefix": PREFIX}
    root = {"router": Router((*system.ROOT, welcome.ROUTE)), "prefix": ""}
    return [
        (rf"{PREFIX}/sandboxes/([^/]+)/stream", StreamSocket),
        (rf"{PREFIX}(?:/.*)?", RestHandler, api),
        (r"/(?:healthz|readyz|metrics)?", RestHandler, root),
    ]


__all__ = ["API", "drain", "pool_spec", "prepare", "routes"]
