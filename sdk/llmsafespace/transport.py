"""HTTP with the gateway: one client, retries of what may be repeated, errors as exceptions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx
import msgspec

from llmsafespace import connections, patience
from llmsafespace.connections import http_client, time_limits
from llmsafespace.decoding import BadMessage, decode_json
from llmsafespace.errors import GatewayUnavailable, InvalidRequest, SandboxError, SandboxTimeout, error_for
from llmsafespace.patience import Patience
from llmsafespace.schemes import certificate_problem, check_scheme
from llmsafespace.settings import Endpoint

API = "/api/v1"
REQUEST_TIMEOUT = 120.0  # seconds for an answer, unless the operation has a limit of its own
ANSWER_SOON = 30.0  # seconds after which a GET, PUT or DELETE is tried on another connection
ANSWER_LATER = 60.0  # the same for a POST, which may start something
_TLS_SOON = 0.4  # seconds without an answer over TLS until it is asked whether that is right
_REPEATABLE = frozenset({"GET", "HEAD", "PUT", "DELETE"})
_reached: set[tuple[str, str | None]] = set()  # addresses where something answered this process


class Transport:
    """The requests of one client. Not to be shared between event loops."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._http = http_client(endpoint)
        self._closed = False

    @property
    def reached(self) -> bool:
        """True when something has answered at this address: the URL is right, so waiting makes sense."""
        return (self.endpoint.url, self.endpoint.socket) in _reached

    def note_contact(self) -> None:
        """Something answered, or took a request and then broke off."""
        _reached.add((self.endpoint.url, self.endpoint.socket))

    async def close(self) -> None:
        """Close the connections. What still waits for an answer fails with SandboxError."""
        self._closed = True
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
        soon: float | None = None,
    ) -> Any:
        """The decoded JSON of the answer (None when it has no body).

        `repeatable` marks a POST that carries an id of ours, so that repeating it does nothing new. What is
        repeatable is sent again after a broken connection, and on another connection when no answer comes
        within `soon` seconds (then twice that, and so on), since the first may have gone silent.
        Raises the SandboxError that the answer means; GatewayUnavailable when nobody answers;
        SandboxTimeout when the answer takes longer than `timeout` seconds.
        """
        content = None if body is None else msgspec.json.encode(body)
        sent = dict(headers or {})
        if content is not None:
            sent.setdefault("Content-Type", "application/json")
        repeat = method in _REPEATABLE if repeatable is None else repeatable
        limit = REQUEST_TIMEOUT if timeout is None else timeout
        first = limit if not repeat else soon or (ANSWER_SOON if method in _REPEATABLE else ANSWER_LATER)
        response = await self._send(method, path, content, params, sent, limit, first, repeat)
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
        silence: float | None = None,
    ) -> AsyncIterator[httpx.Response]:
        """An answer whose body is read as it comes, as long as no `silence` is in it (seconds).

        httpx.TransportError and GatewayUnavailable pass through: the caller knows whether it can go on.
        """
        self._check_open()
        async with self._http.stream(
            method,
            path,
            content=content,
            params=params,
            headers=dict(headers or {}),
            timeout=time_limits(connections.SILENCE if silence is None else silence),
        ) as response:
            self.note_contact()
            if response.is_error:
                await response.aread()
                raise_for(response)
            yield response

    def _check_open(self) -> None:
        if self._closed:
            raise SandboxError(
                "the sandbox object was closed here; connect to the sandbox again", code="closed"
            )

    async def _send(
        self,
        method: str,
        path: str,
        content: bytes | None,
        params: Mapping[str, Any] | None,
        headers: Mapping[str, str],
        timeout: float,
        soon: float,
        repeat: bool,
    ) -> httpx.Response:
        patience_left = Patience(self)
        waited = 0.0  # for answers; time in which the gateway was away is patience's matter
        while True:
            self._check_open()
            limit = min(soon, timeout - waited)
            began = patience.now()
            try:
                response = await self._answer(
                    self._http.request(
                        method,
                        path,
                        content=content,
                        params=params,
                        headers=dict(headers),
                        timeout=time_limits(limit, len(content or b"")),
                    )
                )
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                if (problem := certificate_problem(error)) is not None:
                    raise GatewayUnavailable(
                        f"no gateway answers at {self.endpoint.url}: {problem}"
                    ) from error
                await patience_left.wait(error)  # nothing was sent: safe for every method
            except httpx.TimeoutException as error:
                waited += limit
                if not repeat or waited >= timeout:
                    raise SandboxTimeout(f"{method} {path}: no answer within {timeout:g} s") from error
                soon *= 2
            except httpx.TransportError as error:
                await self._check_scheme()
                if not repeat:
                    raise GatewayUnavailable(
                        f"{method} {path}: the connection broke before the answer came ({error}); "
                        "it is unknown whether it was carried out"
                    ) from error
                self.note_break(error)
                await patience_left.wait(error, held=last_sign(error, began, began) - began)
            else:
                if response.status_code == 400 and document_of(response.content) is None:
                    await self._check_scheme()
                self.note_contact()
                if response.is_success:
                    return response
                refusal = _error(response)
                if not (repeat and isinstance(refusal, GatewayUnavailable)):
                    raise refusal
                await patience_left.wait(refusal)

    async def _answer(self, request: Coroutine[Any, Any, httpx.Response]) -> httpx.Response:
        """The answer to a request. One to a new address over TLS is not waited for where that is no use."""
        if self.reached or not self.endpoint.url.startswith("https:"):
            return await request
        answer = asyncio.ensure_future(request)
        try:
            await asyncio.wait({answer}, timeout=_TLS_SOON)
            if not answer.done():
                await self._check_scheme()
            return await answer
        finally:
            answer.cancel()

    async def _check_scheme(self) -> None:
        """Raise GatewayUnavailable when what never answered yet speaks http for https, or vice versa."""
        if not self.reached and self.endpoint.socket is None:
            await check_scheme(self.endpoint)

    def note_break(self, error: httpx.TransportError) -> None:
        """A connection that broke was one: something is there, unless what it spoke was not HTTP."""
        garbage = isinstance(error, httpx.RemoteProtocolError) and "disconnected" not in str(error)
        if not garbage and not isinstance(error, (httpx.TimeoutException, httpx.ConnectError)):
            self.note_contact()


def last_sign(error: Exception, alive: float, began: float) -> float:
    """When the peer of a connection that `began` and failed was last there, `alive` being when it last sent.

    One that breaks a connection was there to do so; one that could not be reached, never.
    """
    if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
        return began
    return alive if isinstance(error, httpx.TimeoutException) else patience.now()


def decoded(response: httpx.Response) -> Any:
    """The JSON body of an answer, None when it has none. Raises GatewayUnavailable for another body."""
    try:
        return decode_json(response.content) if response.content else None
    except BadMessage as error:
        raise GatewayUnavailable(f"{response.request.url.path}: the gateway's answer is {error}") from error


def raise_for(response: httpx.Response) -> None:
    """Raise the exception that an error answer means; its body must have been read."""
    if response.is_error:
        raise _error(response)


def _error(response: httpx.Response) -> SandboxError:
    retry_after = response.headers.get("Retry-After")
    document = document_of(response.content)
    if response.is_redirect:
        return InvalidRequest(
            f"{response.url} was answered with a redirection to {response.headers['Location']}: "
            "use the URL of the gateway there"
        )
    if document is None and response.status_code < 500:
        said = f"{response.url} answered with status {response.status_code}"
        document = {"message": f"{said}, not as a gateway does: is the URL right?"}
    return error_for(response.status_code, document, retry_after)


def document_of(content: bytes | bytearray) -> object:
    """The JSON document of an error answer; None where it is not JSON."""
    try:
        return decode_json(content)
    except BadMessage:
        return None


def segment(text: str) -> str:
    """A path segment, quoted."""
    return quote(text, safe="")
