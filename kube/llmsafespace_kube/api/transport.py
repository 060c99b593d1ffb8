"""Calls of the API server: time limits, repetition of failed calls, and the errors that they raise."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from urllib.parse import quote

from llmsafespace_kube.api import metrics
from llmsafespace_kube.api.errors import (
    KubeError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unreachable,
    error_of,
)
from llmsafespace_kube.api.http import BadAnswer, Connection, Endpoint, NoConnection
from llmsafespace_kube.api.server import Server

JSON = "application/json"
LIMIT = 15.0  # seconds for a call with its repetitions

_CONNECTIONS = 64
_ATTEMPTS = 4
_LONGEST_PAUSE = 5.0  # seconds; if the API server asks for a longer pause, the caller gets the error at once


class Transport:
    """Sends requests to the API server. Watches use connections of their own, so that they delay no call."""

    def __init__(self, server: Server, *, user_agent: str) -> None:
        self._server = server
        self._endpoint = Endpoint(server.url, server.tls, server.server_name)
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._headers = f"Host: {self._endpoint.authority}\r\nUser-Agent: {user_agent}\r\nAccept: {JSON}\r\n"

    def close(self) -> None:
        """Close all connections that are not in use."""
        self._endpoint.close()

    async def call(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, str] | None = None,
        body: bytes = b"",
        content_type: str = JSON,
        limit: float = LIMIT,
    ) -> bytes:
        """Return the body of the answer. Raises KubeError, after at most `limit` seconds."""
        call = f"{method} {path}"
        failed: KubeError = Unavailable(f"the API server did not answer within {limit:g} s", call=call)
        try:
            async with asyncio.timeout(limit):
                for attempt in range(1, _ATTEMPTS):
                    try:
                        return await self._once(method, path, query, body, content_type)
                    except KubeError as error:
                        pause = await self._pause(error, method, attempt)
                        if pause is None:
                            raise
                        failed = error
                    await asyncio.sleep(pause)
                return await self._once(method, path, query, body, content_type)
        except TimeoutError:
            raise failed from None

    async def stream(self, path: str, query: dict[str, str], silence: float) -> AsyncGenerator[bytes, None]:
        """Yield the parts of the body as they arrive.

        Raises Unavailable if the connection breaks, or if nothing arrives for `silence` seconds.
        """
        call = f"WATCH {path}"
        connection: Connection | None = None
        try:
            request = await self._request("GET", path, query, b"", JSON)
            connection = await self._endpoint.connect()
            async with asyncio.timeout(silence):
                head = await connection.send(request)
                if head.status != 200:
                    raise error_of(head.status, await connection.body(head), call, head.retry_after)
            async with aclosing(connection.pieces(head)) as pieces:
                while True:
                    async with asyncio.timeout(silence):
                        piece = await anext(pieces, None)
                    if piece is None:
                        return
                    yield piece
        except TimeoutError:
            raise Unavailable(f"the API server was silent for {silence:g} s", call=call) from None
        except (NoConnection, BadAnswer, OSError) as error:
            raise self._lost(error, call) from None
        finally:
            if connection is not None:
                connection.close()

    async def _pause(self, error: KubeError, method: str, attempt: int) -> float | None:
        if isinstance(error, Unauthorized):
            return 0.0 if await self._server.renew() else None
        return pause_before_repeating(error, method, attempt)

    async def _once(
        self, method: str, path: str, query: dict[str, str] | None, body: bytes, content_type: str
    ) -> bytes:
        began = time.perf_counter()
        status = 0
        try:
            async with self._slots:
                request = await self._request(method, path, query, body, content_type)
                status, answer, retry_after = await self._exchange(request)
        except (NoConnection, BadAnswer, OSError) as error:
            raise self._lost(error, f"{method} {path}") from None
        finally:
            host = self._endpoint.host
            metrics.REQUESTS.labels(str(status) if status else "<error>", method, host).inc()
            metrics.REQUEST_DURATION.labels(method, host).observe(time.perf_counter() - began)
        if status >= 300:
            raise error_of(status, answer, f"{method} {path}", retry_after)
        return answer

    async def _exchange(self, request: bytes) -> tuple[int, bytes, str]:
        connection = await self._endpoint.connection()
        keep_alive = False
        try:
            head = await connection.send(request)
            body = await connection.body(head)
            keep_alive = head.keep_alive
        finally:
            if keep_alive:
                self._endpoint.keep(connection)
            else:
                connection.close()
        return head.status, body, head.retry_after

    async def _request(
        self, method: str, path: str, query: dict[str, str] | None, body: bytes, content_type: str
    ) -> bytes:
        credentials = "".join(
            f"{name}: {value}\r\n" for name, value in (await self._server.credentials()).items()
        )
        target = self._endpoint.prefix + path + _query(query)
        content = f"Content-Type: {content_type}\r\nContent-Length: {len(body)}\r\n" if body else ""
        return f"{method} {target} HTTP/1.1\r\n{self._headers}{credentials}{content}\r\n".encode() + body

    def _lost(self, error: Exception, call: str) -> Unavailable:
        if isinstance(error, NoConnection):
            return Unreachable(f"cannot reach the API server at {self._server.url}: {error}", call=call)
        words = str(error) or type(error).__name__
        return Unavailable(f"the connection to the API server was lost: {words}", call=call)


def pause_before_repeating(error: KubeError, method: str, attempt: int) -> float | None:
    """Seconds after which to repeat a failed call; None if it must not be repeated, or only much later."""
    repeatable = isinstance(error, Unreachable) or (
        method in ("GET", "DELETE") and isinstance(error, Unavailable | TooManyRequests)
    )
    if not repeatable or (error.retry_after or 0.0) > _LONGEST_PAUSE:
        return None
    return error.retry_after or 0.1 * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)  # noqa: S311


def _query(query: dict[str, str] | None) -> str:
    if query is None:
        return ""
    return "?" + "&".join(f"{name}={quote(value, safe='')}" for name, value in query.items() if value)
