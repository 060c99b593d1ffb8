"""The OpenAPI 3.1 document, made from the routes and the Structs that they take and answer."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from llmsafespace_gateway.errors import STATUS
from llmsafespace_gateway.rest.routing import BYTES, JSON, PREFIX, SSE, Query, Route
from llmsafespace_gateway.rest.types import ErrorAnswer
from llmsafespace_gateway.rest.types_processes import StreamAnswer, StreamRequest
from llmsafespace_gateway.services.types import EventUnion

_REF = "#/components/schemas/{name}"
_REASONS = {
    304: "Not modified",
    400: "Something in the request is wrong; the message names the field",
    401: "No valid API key",
    403: "The key lacks the scope",
    404: "It is not there, or not yours to see",
    409: "It conflicts with what is there",
    410: "The sandbox has ended; `details.end` says how",
    412: "The file is not as If-Match says",
    413: "The body is too large",
    415: "The body is not JSON",
    416: "The range is beyond the end",
    422: "No runtime serves the request",
    429: "Too many requests, or over the quota",
    503: "Try again: a part is away, or there is no room",
}


def document(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The whole document, as JSON types."""
    named = [kind for route in routes for kind in (route.request, route.response, route.events)]
    types = [kind for kind in named if kind is not None]
    everything = [*dict.fromkeys(types), EventUnion, ErrorAnswer, StreamRequest, StreamAnswer]
    schemas, components = msgspec.json.schema_components(everything, ref_template=_REF)
    known = dict(zip(everything, schemas, strict=True))
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, known)
    paths["/sandboxes/{sandbox_id}/stream"] = {"get": _websocket(known)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "LLMSafeSpace",
            "version": version,
            "description": "Sandboxes that run code nobody has to trust. Errors always have the shape "
            "`{error: {code, message, details}}`, codes: " + ", ".join(sorted(STATUS)) + ".",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": PREFIX}],
        "security": [{"key": []}],
        "tags": [{"name": tag} for tag in dict.fromkeys(route.tag for route in routes)],
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "key": {"type": "http", "scheme": "bearer", "description": "An API key, `lsp_…`"}
            },
        },
    }


def _websocket(known: dict[Any, Any]) -> dict[str, Any]:
    """The one websocket of this API, as far as OpenAPI can say it."""
    refused = {JSON: {"schema": known[ErrorAnswer]}}
    return {
        "operationId": "get_sandboxes_sandbox_id_stream",
        "tags": ["Executions"],
        "summary": "Websocket: many executions over one connection",
        "description": "JSON text messages, each one of `x-client-messages` or `x-server-messages`. "
        "The key may also be sent as `?token=`. `execute` and `cancel` need the scope `execute`. "
        "Closed with 4401 when the key is revoked, 4410 when the sandbox ends.",
        "x-scope": "sandboxes:read",
        "x-client-messages": known[StreamRequest],
        "x-server-messages": known[StreamAnswer],
        "parameters": [{"name": "sandbox_id", "in": "path", "required": True, "schema": {"type": "string"}}],
        "responses": {
            "101": {"description": "The websocket stands"},
            **{
                str(status): {"description": _REASONS[status], "content": refused}
                for status in (400, 401, 403, 404, 410, 429)
            },
        },
    }


def _operation(route: Route, known: dict[Any, Any]) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": _operation_id(route),
        "tags": [route.tag],
        "summary": route.summary,
        "parameters": [*_path_parameters(route), *_query_parameters(route.query), *_headers(route)],
        "responses": _responses(route, known),
    }
    if route.public:
        operation["security"] = []
    elif route.scope is not None:
        operation["x-scope"] = route.scope
        operation["description"] = f"Needs the scope `{route.scope}`."
    if route.upload:
        operation["requestBody"] = {"content": {BYTES: {"schema": {"type": "string", "format": "binary"}}}}
    elif route.request is not None:
        operation["requestBody"] = {
            "required": not route.request_optional,
            "content": {JSON: {"schema": known[route.request]}},
        }
    return operation


def _operation_id(route: Route) -> str:
    words = re.findall(r"\w+", route.path)
    return "_".join((route.method.lower(), *words))


def _path_parameters(route: Route) -> Iterable[dict[str, Any]]:
    for name in route.parameters:
        yield {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}


def _query_parameters(queries: Iterable[Query]) -> Iterable[dict[str, Any]]:
    for query in queries:
        schema: dict[str, Any] = {"type": query.of}
        if query.default is not None:
            schema["default"] = query.default
        if query.of == "integer":
            schema |= {"minimum": query.minimum, "maximum": query.maximum}
        if query.choices:
            schema["enum"] = list(query.choices)
        yield {"name": query.name, "in": "query", "description": query.description, "schema": schema}


def _headers(route: Route) -> Iterable[dict[str, Any]]:
    for name, description in route.headers:
        yield {"name": name, "in": "header", "description": description, "schema": {"type": "string"}}


def _responses(route: Route, known: dict[Any, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {str(route.status): _success(route, known)}
    errors = {400, 429, 503, *route.errors}
    if not route.public:
        errors |= {401}
    if route.scope is not None:
        errors |= {403}
    if route.request is not None:
        errors |= {413, 415}
    for status in sorted(errors):
        content = {JSON: {"schema": known[ErrorAnswer]}}
        found[str(status)] = {"description": _REASONS[status], "content": content}
    return found


def _success(route: Route, known: dict[Any, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": route.summary}
    if route.status == 204:
        return answer
    content: dict[str, Any] = {}
    for kind in route.produces:
        if kind == BYTES:
            schema: Any = {"type": "string", "format": "binary"}
        elif kind == JSON:
            schema = known[route.response] if route.response is not None else {}
        else:
            schema = known[route.events or EventUnion]
            how = "`data` of each event" if kind == SSE else "each line"
            schema = {**schema, "description": f"{how} is one of these"}
        content[kind] = {"schema": schema}
    return answer | {"content": content}
