"""One request on its way to the application: whose it is, and which phase its connection is in."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Any

import msgspec
from tornado.httputil import HTTPHeaders, HTTPMessageDelegate, RequestStartLine, ResponseStartLine

from llmsafespace_gateway.serving.connections import Connection, Phase
from llmsafespace_gateway.serving.proxies import scheme

if TYPE_CHECKING:
    from llmsafespace_gateway.serving.server import Server


def refusal(message: str, retry_after: int) -> bytes:
    """A whole 503 answer, in the shape of the API's errors; the connection ends with it."""
    body = msgspec.json.encode(
        {"message": message, "error": {"code": "service_unavailable", "message": message, "details": {}}}
    )
    head = (
        "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nRetry-After: {retry_after}\r\nConnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


class Request(HTTPMessageDelegate):
    """Stands between tornado's parser and the application's delegate."""

    def __init__(self, server: Server, record: Connection, inner: HTTPMessageDelegate) -> None:
        self._server = server
        self._record = record
        self._inner = inner
        self._refused = False

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        """The head is whole."""
        record = self._record
        client = self._client(headers)
        if not self._server.request_begins(record, client):
            self._refuse("too many connections from your address at once; close some first")
            return None
        if self._server.draining and headers.get("Upgrade"):
            self._refuse("the gateway is about to stop; connect again")
            return None
        record.enter(Phase.ANSWER, time.monotonic())
        result = self._inner.headers_received(start_line, headers)
        has_body = "Transfer-Encoding" in headers or headers.get("Content-Length", "0") != "0"
        if result is not None:
            return self._prepared(result, has_body)
        if has_body:
            record.enter(Phase.BODY, time.monotonic())
        return None

    async def _prepared(self, result: Awaitable[None], has_body: bool) -> None:
        await result
        if has_body:
            self._record.enter(Phase.BODY, time.monotonic())

    def _client(self, headers: HTTPHeaders) -> str | None:
        """The client that a trusted proxy names, whose address and scheme the request then has; else None."""
        record, proxies = self._record, self._server.proxies
        if not proxies or not proxies.trusts(record.peer):
            return None
        context: Any = record.request.context
        client = proxies.client(headers.get("X-Forwarded-For"))
        # The context is the connection's: what one request said must not stay for the next.
        context.remote_ip = client or record.peer or "0.0.0.0"  # noqa: S104
        own = "https" if record.stream.secure else "http"
        context.protocol = scheme(headers.get("X-Forwarded-Proto")) or own
        return client

    def _refuse(self, message: str) -> None:
        self._refused = True
        stream = self._record.stream
        stream.write(refusal(message, 1)).add_done_callback(lambda _: stream.close())

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """A piece of the body."""
        if self._refused:
            return None
        result = self._inner.data_received(chunk)
        return self._taken(result) if result is not None else None

    async def _taken(self, result: Awaitable[None]) -> None:
        self._record.taking = True
        try:
            await result
        finally:
            self._record.taking = False

    def finish(self) -> None:
        """The request is whole."""
        if not self._refused:
            self._record.enter(Phase.ANSWER, time.monotonic())
            self._inner.finish()

    def on_connection_close(self) -> None:
        """The client went away in the middle of it."""
        if not self._refused:
            self._inner.on_connection_close()
