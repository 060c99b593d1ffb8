"""Which pages of other origins may read answers in a browser (CORS). Off unless the operator names them.

An answer's `Access-Control-*` headers are added by a tornado transform, so that no handler knows of them, and
preflights are answered before routing. A key is never sent by a browser by itself, so that credentials
(cookies) are never allowed.
"""

from __future__ import annotations

import re
from typing import Any

from tornado.httputil import HTTPHeaders, HTTPServerRequest
from tornado.routing import Matcher, Rule
from tornado.web import OutputTransform, RequestHandler

_METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
_REQUEST_HEADERS = (
    "Accept, Authorization, Content-Type, If-Match, If-None-Match, Last-Event-ID, Range, X-Request-Id"
)
_SHOWN = (
    "Content-Range, ETag, Location, Retry-After, X-RateLimit-Limit, X-RateLimit-Remaining, "
    "X-RateLimit-Reset, X-Request-Id"
)
_MAX_AGE = "600"  # seconds that a browser may keep a preflight's answer


class AllowedOrigins:
    """Origins by name (`*` is every one), and by a regular expression for the whole of it.

    Raises ValueError for a name that is no origin and for an expression that is none.
    """

    def __init__(self, origin: str = "", pattern: str = "") -> None:
        self._origin = origin.rstrip("/")
        if origin and origin != "*" and not re.fullmatch(r"[a-z][a-z0-9+.-]*://[^/\s]+", self._origin):
            raise ValueError(f"{origin!r} is not an origin; write it as https://app.example or *")
        try:
            self._pattern = re.compile(pattern) if pattern else None
        except re.error as error:
            raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None

    def __bool__(self) -> bool:
        return bool(self._origin or self._pattern)

    def allows(self, origin: str | None) -> bool:
        """Whether a page of this origin may read answers."""
        if not origin:
            return False
        if self._origin in ("*", origin):
            return True
        return self._pattern is not None and self._pattern.fullmatch(origin) is not None

    def rules(self) -> list[Rule]:
        """The rules that come before all others of an Application."""
        return [Rule(_IsPreflight(self), Preflight, {"origins": self})] if self else []

    def transforms(self) -> list[Any]:
        """The transforms of an Application."""
        return [lambda request: _Marked(request, self)] if self else []


class _IsPreflight(Matcher):
    def __init__(self, origins: AllowedOrigins) -> None:
        self._origins = origins

    def match(self, request: HTTPServerRequest) -> dict[str, Any] | None:
        """See Matcher: a preflight of an origin that is allowed; others are requests like any."""
        asked = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        return {} if asked and self._origins.allows(request.headers.get("Origin")) else None


class Preflight(RequestHandler):
    """Tells a browser that it may send the request itself, which then needs its key."""

    def initialize(self, origins: AllowedOrigins) -> None:
        """Called by tornado."""

    def options(self) -> None:
        """204 with what may be sent; the origin is added as for every answer."""
        self.set_status(204)
        self.clear_header("Server")
        self.clear_header("Content-Type")
        self.set_header("Access-Control-Allow-Methods", _METHODS)
        self.set_header("Access-Control-Allow-Headers", _REQUEST_HEADERS)
        self.set_header("Access-Control-Max-Age", _MAX_AGE)
        self.finish()


class _Marked(OutputTransform):
    """Names the origin in an answer, where it is allowed; caches learn that answers differ by origin."""

    def __init__(self, request: HTTPServerRequest, origins: AllowedOrigins) -> None:
        origin = request.headers.get("Origin")
        self._origin = origin if origins.allows(origin) else None

    def transform_first_chunk(
        self, status_code: int, headers: HTTPHeaders, chunk: bytes, finishing: bool
    ) -> tuple[int, HTTPHeaders, bytes]:
        """See OutputTransform."""
        headers.add("Vary", "Origin")
        if self._origin is not None:
            headers["Access-Control-Allow-Origin"] = self._origin
            headers["Access-Control-Expose-Headers"] = _SHOWN
        return status_code, headers, chunk
