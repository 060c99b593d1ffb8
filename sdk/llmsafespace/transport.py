"""HTTP with the gateway: one client, retries of what may be repeated, errors as exceptions."""

from __future__ import annotations

import asyncio
import functools
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from llmsafespace.errors import GatewayUnavailable, SandboxTimeout, error_for
from llmsafespace.settings import Endpoint

API = "/api/v1"
REQUEST_TIMEOUT = 120.0  # seconds for an answer, unless the operation has a limit of its own
FIRST_CONTACT = 3.0  # seconds to try when the gateway has never answered: the URL may be wrong
RETRY_FOR = 60.0  # seconds to ride out a gateway that restarts
_BUSY_FOR = 10.0  # seconds to repeat what was answered with "unavailable"
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_UNAVAILABLE = frozenset({502, 503, 504})


class Transport:
    """The requests of one client. Not to be shared between event loops."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.reached = False
        verify: ssl.SSLContext | bool = tls_context() if endpoint.url.startswith("https:") else False
        self._http = httpx.AsyncClient(
            base_url=endpoint.url,
            headers=endpoint.headers,
            timeout=httpx.Timeout(REQUEST_TIMEOUT, connect=10.0),
            transport=httpx.AsyncHTTPTransport(uds=endpoint.socket) if endpoint.socket else None,
            trust_env=not endpoint.is_local,
            verify=verify,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
        repeatable: bool | None = None,
    ) -> Any:
        """The decoded JSON of the answer (None when it has no body).

        `repeatable` marks a POST that carries an id of ours, so that repeating it does nothing new.
        Raises the SandboxError that the answer means; GatewayUnavailable when nobody answers;
        SandboxTimeout when the answer takes longer than `timeout` seconds.
        """
        content = None if body is None else msgspec.json.encode(body)
        sent = dict(headers or {})
        if content is not None:
            sent.setdefault("Content-Type", "application/json")
        repeat = method in _REPEATABLE if repeatable is None else repeatable
        response = await self._send(method, path, content, params, sent, timeout, repeat)
        return decoded(response)

    @asynccontextmanager
    async def stream(
        self,
        method: str,
        path: str,
        *,
        content: Any = None,
        params: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """An answer whose body is read as it comes, with no limit between two pieces of it.

        httpx.TransportError passes through: the caller knows whether it can go on.
        """
        timeout = httpx.Timeout(None, connect=10.0)
        async with self._http.stream(
            method, path, content=content, params=params, headers=dict(headers or {}), timeout=timeout
        ) as response:
            self.reached = True
            if response.is_error:
                await response.aread()
                raise_for(response)
            yield response

    async def _send(
        self,
        method: str,
        path: str,
        content: bytes | None,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        timeout: float | None,
        repeat: bool,
    ) -> httpx.Response:
        patience = Patience(self)
        limit = httpx.Timeout(timeout or REQUEST_TIMEOUT, connect=10.0)
        while True:
            try:
                response = await self._http.request(
                    method, path, content=content, params=params, headers=dict(headers), timeout=limit
                )
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                await patience.wait(error)  # nothing was sent: safe for every method
            except httpx.TimeoutException as error:
                raise SandboxTimeout(f"{method} {path}: no answer within {limit.read:g} s") from error
            except httpx.TransportError as error:
                if not repeat:
                    raise GatewayUnavailable(
                        f"{method} {path}: the connection broke before the answer came ({error}); "
                        "it is unknown whether it was carried out"
                    ) from error
                await patience.wait(error)
            else:
                self.reached = True
                busy = response.status_code in _UNAVAILABLE and patience.spent < _BUSY_FOR
                if not (repeat and busy):
                    raise_for(response)
                    return response
                await patience.wait(None)


class Patience:
    """Waits between attempts, longer each time, until the gateway has been away for too long."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._since = time.monotonic()
        self._delay = 0.05

    @property
    def spent(self) -> float:
        """Seconds since the first attempt."""
        return time.monotonic() - self._since

    async def wait(self, error: BaseException | None) -> None:
        """Pause before the next attempt. Raises GatewayUnavailable when patience is at its end."""
        limit = RETRY_FOR if self._transport.reached else FIRST_CONTACT
        if self.spent > limit:
            where = self._transport.endpoint.socket or self._transport.endpoint.url
            raise GatewayUnavailable(
                f"no gateway answers at {where} ({error}): is it running, and is the URL right?"
            ) from error
        await asyncio.sleep(self._delay)
        self._delay = min(self._delay * 1.6, 1.0)


def decoded(response: httpx.Response) -> Any:
    """The JSON body of an answer, None when it has none."""
    return msgspec.json.decode(response.content) if response.content else None


def raise_for(response: httpx.Response) -> None:
    """Raise the exception that an error answer means; its body must have been read."""
    if response.is_error:
        retry_after = response.headers.get("Retry-After")
        raise error_for(response.status_code, _document(response.content), retry_after)


def _document(content: bytes) -> object:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def segment(text: str) -> str:
    """A path segment, quoted."""
    return quote(text, safe="")


@functools.cache
def tls_context() -> ssl.SSLContext:
    """One TLS context for the process: making one costs some 20 ms."""
    return httpx.create_ssl_context()
